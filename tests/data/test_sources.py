import gzip
import json
import pickle
import shutil
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds

from vitlab.data.embedded import EmbeddedBuilder, png
from vitlab.data.folders import suffixes
from vitlab.data.sources import open_source
from vitlab.data.splits import resolve, split_names
from vitlab.errors import InputError


def labels(source):
    return [source[i]["label"] for i in range(len(source))]


def names(source):
    return [source.describe(i) for i in range(len(source))]


# Splits


@pytest.mark.parametrize("size", [1, 3, 7, 99, 100, 101, 1437])
@pytest.mark.parametrize(
    "split",
    # fmt: off
    [
        "train",
        "train[:]",
        "train[:99%]",
        "train[99%:]",
        "train[-10%:]",
        "train[:-10%]",
        "train[33%:67%]",
        "train[0.5%:]",
        "train[:1]",
        "train[-1:]",
        "train[1:3]",
        "train[2:]",
        "train[:50]",
        "train[-50:]",
        "train[1_0:2_0]",
        "train[10:50%]",
        "train[:150%]",
        "train[60%:40%]",
        "train[5:5]",
        "train[5]",
        "train[:50%]+test[50%:]",
        "train+train",
        "train[a:b]",
        "train[1.5:]",
        "train[]",
        "all[:3]",
        "train[:10%",
    ],
    # fmt: on
)
def test_splits_are_those_of_tfds(split, size):
    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=[length], num_bytes=0)
        for name, length in (("train", size), ("test", 13))
    }
    try:
        found = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
        ends = [infos[part.splitname].num_examples for part in found]
        theirs = [
            (part.splitname, part.from_ or 0, end if part.to is None else part.to)
            for part, end in zip(found, ends, strict=True)
        ]
    except (ValueError, NotImplementedError):
        theirs = []
    # TFDS lets empty ranges through, and then cannot read them.
    if theirs and all(start < stop for _, start, stop in theirs):
        assert resolve(split, {"train": size, "test": 13}, "source") == theirs
    else:
        with pytest.raises(InputError):
            resolve(split, {"train": size, "test": 13}, "source")


def test_split_names():
    assert split_names("train[:5%] + test+train") == ["train", "test", "train"]


def test_split_errors_name_source_and_splits():
    with pytest.raises(InputError, match=r"^digits: split 'val' does not exist: .* test, train$"):
        resolve("train+val", {"train": 5, "test": 3}, "digits")


# The source string


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "zip:x",
            "the sources are digits, digit_scenes, tfds:NAME, folder:PATH, images:PATH, idx:PATH",
        ),
        ("digits:x", "is not known"),
        ("folder:", "write folder:PATH"),
        ("folder:x?classes=a", "unknown option 'classes', folder: takes no option"),
        ("tfds:x?dir=a", "unknown option 'dir', tfds: takes data_dir"),
    ],
)
def test_unknown_sources(spec, message):
    with pytest.raises(InputError, match=message):
        open_source(spec, "train")


# folder:


@pytest.fixture
def animals(tmp_path, write_image):
    """Three training images of two classes in three modes, two test images of one class."""
    write_image(tmp_path / "train" / "dog" / "a.JPG")
    write_image(tmp_path / "train" / "dog" / "deep" / "b.png", "L")
    write_image(tmp_path / "train" / "cat" / "c.Png", "P")
    write_image(tmp_path / "train" / "cat" / "f.TIF")
    write_image(tmp_path / "train" / "dog" / "g.tiff", "CMYK")
    write_image(tmp_path / "test" / "dog" / "d.bmp")
    for name in ("h.ppm", "i.pgm", "j.pbm"):
        write_image(tmp_path / "test" / "dog" / name, {"p": "RGB", "g": "L", "b": "1"}[name[3]])
    write_image(tmp_path / "test" / "dog" / "e.webp")
    (tmp_path / "train" / "dog" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "train" / "__MACOSX").mkdir()
    return tmp_path


def test_folder_reads_every_kind_of_image(animals, decode):
    train, test = (open_source(f"folder:{animals}", split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("cat", "dog")
    places = [name.removeprefix(str(animals)) for name in names(train)]
    found = dict(zip(places, labels(train), strict=True))
    assert found == {
        "/train/dog/a.JPG": 1,
        "/train/dog/deep/b.png": 1,
        "/train/dog/g.tiff": 1,
        "/train/cat/c.Png": 0,
        "/train/cat/f.TIF": 0,
    }
    # A split that lacks a class still counts the others as the training split does.
    assert labels(test) == [1, 1, 1, 1, 1]
    rng = np.random.default_rng(0)
    for source in (train, test):
        for i in range(len(source)):
            assert decode(source[i], rng)["image"].shape == (4, 6, 3)


def test_folder_mixes_classes_in_an_order_that_stays(tmp_path, write_image):
    for label in "ab":
        for i in range(50):
            write_image(tmp_path / label / f"{i}.png", size=(1, 1))
    whole = open_source(f"folder:{tmp_path}", "train")
    assert whole.class_names == ("a", "b")
    assert 10 < sum(labels(whole)[:50]) < 40
    head, tail = (open_source(f"folder:{tmp_path}", f"train[{s}]") for s in (":90%", "90%:"))
    assert names(head) + names(tail) == names(whole)
    assert len(set(names(whole))) == 100
    # The path of the root plays no part in the order.
    shutil.copytree(tmp_path, tmp_path.parent / "moved")
    moved = open_source(f"folder:{tmp_path.parent / 'moved'}", "train")
    assert labels(moved) == labels(whole)
    assert names(pickle.loads(pickle.dumps(head))) == names(head)


def test_folder_without_train_takes_the_classes_of_all_splits(tmp_path, write_image):
    write_image(tmp_path / "fold1" / "b" / "x.png")
    write_image(tmp_path / "fold2" / "a" / "x.png")
    source = open_source(f"folder:{tmp_path}", "fold1")
    assert (source.class_names, labels(source)) == (("a", "b"), [1])


def test_folder_errors(animals, write_image):
    def fails(message, split="train", path=animals):
        with pytest.raises(InputError, match=message) as caught:
            open_source(f"folder:{path}", split)
        assert "\n" not in str(caught.value)

    fails(f"folder {animals}/nowhere does not exist", path=animals / "nowhere")
    fails("notes.txt is a file", path=animals / "train" / "dog" / "notes.txt")
    fails("holds no folder of images", path=animals / "test" / "dog")
    fails("has the split test, train: 'val' does not exist", "val")
    fails("holds classes, so has only the split train: 'test' does", "test", animals / "test")
    (animals / "train" / "emu").mkdir()
    none = r"holds no image \(jpg, jpeg, jfif, png, webp, bmp, gif, tif, tiff, ppm, pgm, pbm\)"
    fails(f"class folder .*/train/emu {none}: remove it")
    for name in ("a.heic", "b.HEIC", "c.svg", "README"):
        (animals / "train" / "emu" / name).touch()
    there = "2 .heic, 1 .svg, 1 no suffix"
    fails(f"class folder .*/train/emu {none} but {there}: remove it")
    (animals / "emus").mkdir()
    (animals / "train" / "emu").rename(animals / "emus" / "emu")
    fails(f"folder .*/emus {none} but {there}", path=animals / "emus")
    shutil.rmtree(animals / "emus")
    write_image(animals / "test" / "fox" / "f.png")
    fails("test/fox: the split train has no class 'fox'", "test")


@pytest.mark.parametrize("deeper", [False, True])
def test_a_class_whose_folder_holds_no_image_is_named(tmp_path, write_image, deeper):
    for name in ("cat", "dog"):
        write_image(tmp_path / name / "a.png")
    (tmp_path / "bird").mkdir()
    if deeper:
        write_image(tmp_path / "bird" / "wild" / "a.png")
    said = "if its folders are classes, .* hold no image themselves .*: bird$"
    with pytest.raises(InputError, match=said):
        open_source(f"folder:{tmp_path}", "train")


@pytest.mark.parametrize("splits", [("train",), ("train", "val"), ("photos",)])
def test_a_stray_image_beside_the_classes_makes_no_class_of_a_split(tmp_path, write_image, splits):
    for split in splits:
        for name in ("cat", "dog"):
            write_image(tmp_path / split / name / "a.png")
        write_image(tmp_path / split / "overview.png")
    with pytest.raises(InputError) as error:
        open_source(f"folder:{tmp_path}", "train")
    assert str(error.value) == (
        f"folder {tmp_path}/{splits[0]} holds images, such as overview.png, and folders of images, "
        f"such as cat: if these are the classes, remove the images beside them; if {splits[0]} is "
        "a class, put them all in one folder"
    )
    (tmp_path / splits[0] / "overview.png").unlink()
    assert open_source(f"folder:{tmp_path}", splits[0]).class_names == ("cat", "dog")


def test_classes_may_have_images_in_folders_of_their_own(tmp_path, write_image):
    for name in ("cat", "train"):
        write_image(tmp_path / name / "a.png")
        write_image(tmp_path / name / "deep" / "b.png")
    source = open_source(f"folder:{tmp_path}", "train")
    assert (source.class_names, len(source)) == (("cat", "train"), 4)


def test_links_to_folders_are_followed_and_each_folder_is_read_once(tmp_path, write_image):
    write_image(tmp_path / "disk" / "a.png")
    write_image(tmp_path / "set" / "cat" / "deep" / "b.png")
    write_image(tmp_path / "set" / "cat" / "c.gif")
    write_image(tmp_path / "set" / "dog" / "d.png")
    for name, target in (
        ("cat/0", "disk"),  # Sorted before what is no link.
        ("cat/more", "disk"),
        ("cat/deep/self", "set/cat"),
        ("cat/deep/above", "set"),
        ("cat/gone", "nowhere"),
        ("emu", "disk"),
    ):
        (tmp_path / "set" / name).symlink_to(tmp_path / target)
    source = open_source(f"folder:{tmp_path / 'set'}", "train")
    assert source.class_names == ("cat", "dog", "emu")
    found = sorted(name.removeprefix(f"{tmp_path}/set/") for name in names(source))
    assert found == [
        "cat/0/a.png",
        "cat/c.gif",
        "cat/deep/above/dog/d.png",
        "cat/deep/b.png",
        "dog/d.png",
        "emu/a.png",
    ]
    assert suffixes(source.other_files) == {"no suffix": 1}  # The link that leads nowhere.


def test_folder_file_that_vanished(animals):
    source = open_source(f"folder:{animals}", "test")
    (animals / "test" / "dog" / "d.bmp").unlink()
    with pytest.raises(InputError, match=r"test/dog/d.bmp: cannot be read \(No such file"):
        labels(source)


# idx:


def test_images_are_all_files_below_a_folder_in_an_order_that_stays(tmp_path, write_image):
    root = tmp_path / "photos"
    for i in range(9):
        write_image(root / f"{i % 2}" / "deep" / f"{i}.png", size=(6, 4 + i))
    (root / "notes.txt").write_text("no image")
    source = open_source(f"images:{root}", "train")
    assert len(source) == 9
    assert source.class_names == ()
    assert source[0]["label"] == 0
    order = [source.describe(i) for i in range(9)]
    assert order != sorted(order)
    part = open_source(f"images:{root}", "train[3:5]")
    assert [part.describe(i) for i in range(2)] == order[3:5]
    assert part[0]["image"] == (root / order[3]).read_bytes()
    for spec, split, message in [
        (f"images:{root}", "test", "has only the split train: 'test' does not exist"),
        (f"images:{root}/0/nowhere", "train", "does not exist or is not a folder"),
        ("images:", "train", "names nothing: write images:PATH"),
    ]:
        with pytest.raises(InputError, match=message):
            open_source(spec, split)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        open_source(f"images:{tmp_path / 'empty'}", "train")


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def tiny_mnist(tmp_path):
    """Five training images, gzipped, and two test images, plain."""
    images = np.arange(5 * 2 * 3).reshape(5, 2, 3)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(5))))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(images[:2]))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.array([7, 9])))
    return tmp_path


def test_idx_reads_plain_and_gzipped_files(tiny_mnist):
    source = open_source(f"idx:{tiny_mnist}", "train[3:]+test")
    for each in (source, pickle.loads(pickle.dumps(source))):
        assert labels(each) == [3, 4, 7, 9]
        assert each.class_names == tuple("0123456789")
        np.testing.assert_array_equal(each[0]["image"], [[18, 19, 20], [21, 22, 23]])
        assert each[0]["image"].dtype == np.uint8
    assert len(pickle.dumps(source)) < 1000


def test_idx_class_names(tiny_mnist):
    (tiny_mnist / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    assert open_source(f"idx:{tiny_mnist}", "train").class_names == tuple("abcde")
    named = open_source(f"idx:{tiny_mnist}?classes=v,w,x,y,z", "train")
    assert named.class_names == tuple("vwxyz")
    with pytest.raises(InputError, match="label 9 but 5 class names: name them all"):
        open_source(f"idx:{tiny_mnist}", "test")


def test_idx_class_names_in_other_encodings(tiny_mnist):
    path = tiny_mnist / "classes.txt"
    path.write_text("\ufeffa\nb\nc\nd\ne\n")
    assert open_source(f"idx:{tiny_mnist}", "train").class_names == tuple("abcde")
    path.write_bytes(b"K\xe4fer\n")
    with pytest.raises(InputError, match=r"classes.txt: is not UTF-8 \(byte 1\): save it as such$"):
        open_source(f"idx:{tiny_mnist}", "train")


def test_options_are_no_form(tiny_mnist):
    """In which a plus would be a blank."""
    source = open_source(f"idx:{tiny_mnist}?classes=c++,a%2Cb,c d,=,%26", "train")
    assert source.class_names == ("c++", "a", "b", "c d", "=", "&")


def test_idx_errors(tiny_mnist):
    def fails(message, split="test", path=tiny_mnist):
        with pytest.raises(InputError, match=message) as caught:
            open_source(f"idx:{path}", split)
        assert "\n" not in str(caught.value)

    images, labels = (tiny_mnist / f"t10k-{n}-ubyte" for n in ("images-idx3", "labels-idx1"))
    whole = images.read_bytes()
    fails("does not exist or is not a folder", path=tiny_mnist / "nowhere")
    fails("has the splits test, train: 'val' does not exist", "val")
    images.write_bytes(whole[:-1])
    fails("t10k-images-idx3-ubyte is truncated or damaged: 28 bytes expected .* 27 found")
    images.write_bytes(whole[:9])
    fails("is truncated or damaged")
    images.write_bytes(b"\0\0\x0d\x03" + whole[4:])
    fails(r"is no idx file of 3-dimensional bytes \(magic number\)")
    images.write_bytes(idx(np.zeros((3, 2, 3))))
    fails("3 images but 2 labels in the split test")
    labels.unlink()
    fails(r"has no t10k-labels-idx1-ubyte \(nor with .gz\)")
    packed = tiny_mnist / "train-images-idx3-ubyte.gz"
    packed.write_bytes(packed.read_bytes()[:-12])
    fails("train-images-idx3-ubyte.gz cannot be read", "train")


def test_fashion_mnist(fashion_mnist):
    train, test = (open_source(f"idx:{fashion_mnist}", split) for split in ("train", "test"))
    for source, count in ((train, 60_000), (test, 10_000)):
        assert len(source) == count
        assert np.bincount(labels(source)).tolist() == [count // 10] * 10
        assert source[0]["image"].shape == (28, 28)
    assert (train[0]["label"], test[0]["label"]) == (9, 9)  # Two ankle boots.
    assert np.mean(train._images) / 255 == pytest.approx(0.2860, abs=1e-4)


# tfds:


@pytest.fixture
def tfds_dir(digits, digits_dir, tmp_path):
    """A copy of the prepared digits, to be damaged."""
    digits("train")
    shutil.copytree(digits_dir, tmp_path / "tfds")
    return tmp_path / "tfds"


def edit_info(tfds_dir, **changes):
    path = tfds_dir / "digits" / "1.0.0" / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_tfds_reads_what_tfds_prepared(digits, tfds_dir):
    for spec in ("tfds:digits", "tfds:digits:1.0.0"):
        source = open_source(f"{spec}?data_dir={tfds_dir}", "train[-10%:]+test[:3]")
        expected = [digits("train")[i] for i in range(1437 - 144, 1437)]
        expected += [digits("test")[i] for i in range(3)]
        for each in (source, pickle.loads(pickle.dumps(source))):
            # Twice: the second time comes from memory.
            assert [[each[i] for i in range(len(each))] for _ in range(2)] == [expected] * 2
        assert source[0]["image"].startswith(b"\x89PNG")
        assert source.class_names == tuple("0123456789")
        assert source.describe(2) == f"{spec}?data_dir={tfds_dir} train[-10%:]+test[:3][2]"


def test_tfds_set_prepared_as_tfrecord_is_refused_with_the_command(tfds_dir):
    edit_info(tfds_dir, fileFormat="tfrecord")
    with pytest.raises(InputError, match="prepared as tfrecord") as caught:
        open_source(f"tfds:digits?data_dir={tfds_dir}", "train")
    folder = tfds_dir / "digits" / "1.0.0"
    command = f"tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record"
    assert command in str(caught.value)
    # What that command leaves behind: the new files beside the old, and a line in the metadata.
    edit_info(tfds_dir, fileFormat="tfrecord", alternativeFileFormats=["array_record"])
    assert len(open_source(f"tfds:digits?data_dir={tfds_dir}", "train")) == 1437


def test_tfds_errors(tfds_dir, tmp_path):
    def fails(message, spec, split="train"):
        with pytest.raises(InputError, match=message) as caught:
            open_source(f"tfds:{spec}?data_dir={tfds_dir}", split)
        assert "\n" not in str(caught.value)

    fails("split 'validation' does not exist: there is test, train", "digits", "validation")
    fails(f"TFDS knows no set 'no_such_set' and {tfds_dir} holds none", "no_such_set")
    fails("digits cannot be loaded at version 2.0.0", "digits:2.0.0")
    fails(r"not prepared in .*: run python -c .*tfds.builder\('mnist', data_dir='", "mnist")


def test_tfds_record_that_cannot_be_read_is_named(tfds_dir):
    (tfds_dir / "digits" / "1.0.0" / "digits-test.array_record-00000-of-00001").unlink()
    source = open_source(f"tfds:digits?data_dir={tfds_dir}", "test")
    with pytest.raises(InputError, match=r"test\[7\]: cannot be read"):
        source[7]


def test_coco_is_known_by_its_name_whatever_the_string_says_besides(tmp_path):
    with tfds.core.registered.skip_registration():

        class Coco(EmbeddedBuilder):
            VERSION = tfds.core.Version("1.1.0")

            def _info(self):
                objects = {
                    "bbox": tfds.features.BBoxFeature(),
                    "label": tfds.features.ClassLabel(num_classes=80),
                }
                features = {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "objects": tfds.features.Sequence(objects),
                }
                features = tfds.features.FeaturesDict(features)
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                box = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
                image = png(np.zeros((2, 3, 3), np.uint8))
                yield 0, {"image": image, "objects": [{"bbox": box, "label": 79}]}

    Coco(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    for spec in ("tfds:coco", "tfds:coco:1.1.0"):
        source = open_source(f"{spec}?data_dir={tmp_path}", "train")
        assert source.category_ids[-1] == 90
