import pickle
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.refusals import refused
from vitlab.data.decode import decode_mask
from vitlab.data.pipeline import train_batches
from vitlab.data.preprocess import Preprocess
from vitlab.data.sources import open_source
from vitlab.errors import InputError

CAMVID = "sky,building,pole,road,pavement,tree,sign,fence,car,pedestrian,bicyclist"
IDS = np.array([[0, 1, 2], [2, 255, 1]], np.uint8)


@pytest.fixture
def write(tmp_path):
    """write(name, mask, size) writes a mask, and an image to it: names are such as "train/a"."""

    def write(name, mask=IDS, size=None, images="images", masks="masks", suffix=".jpg"):
        mask = Image.fromarray(mask) if isinstance(mask, np.ndarray) else mask
        if mask is not None:
            path = tmp_path / masks / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            mask.save(path)
        if images:
            path = tmp_path / images / f"{name}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size or mask.size).save(path)
        return f"masks:{tmp_path}"

    return write


@pytest.fixture
def classes(tmp_path):
    """classes(text) writes classes.txt."""

    def classes(text="cat\n big dog \n\ntree\n", name="classes.txt"):
        (tmp_path / name).write_text(text)

    return classes


def only(spec, split="train"):
    source = open_source(spec, split)
    assert len(source) == 1
    return source, source.segments(0)


def test_ids(write, classes):
    classes()
    source, segments = only(write("train/a"))
    assert source.segment_names == source.class_names == ("cat", "big dog", "tree")
    assert source.things == (False, False, False)
    assert segments.map.tolist() == [[0, 1, 2], [2, -1, 1]]
    assert segments.labels.tolist() == [0, 1, 2]
    assert not segments.crowd.any()
    example = source[0]
    assert example.keys() == {"image", "segments"}
    np.testing.assert_array_equal(example["segments"]().map, segments.map)
    assert example["image"].startswith(b"\xff\xd8")
    assert source.describe(0).endswith("images/train/a.jpg")


def test_a_class_that_is_not_there_has_no_segment(write, classes):
    classes()
    source, segments = only(write("train/a", np.array([[2, 2, 255, 0]], np.uint8)))
    assert segments.labels.tolist() == [0, 2]
    assert segments.map.tolist() == [[1, 1, -1, 0]]
    assert segments.semantic().tolist() == [[2, 2, -1, 0]]


def test_ids_of_16_bits_and_in_palettes(write, tmp_path):
    names = ",".join(f"c{i}" for i in range(700))
    wide = np.array([[0, 699], [255, 256]], np.uint16)
    write("train/a", wide)
    palette = Image.fromarray(IDS, mode="P")
    palette.putpalette([7, 7, 7] * 256)  # One colour for all.
    write("val/b", palette)
    source, segments = only(f"masks:{tmp_path}?classes={names}")
    assert segments.semantic().tolist() == wide.tolist()  # 255 is a class.
    _, segments = only(f"masks:{tmp_path}?classes=a,b,c", "val")
    assert segments.semantic().tolist() == [[0, 1, 2], [2, -1, 1]]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_numbers_of_a_png_are_those_that_are_stored(bits, tmp_path):
    numbers = np.array([[0, 1, 2**bits - 1], [1, 0, 2**bits - 1]], np.uint8)
    picture = Image.fromarray(numbers, mode="P")
    picture.putpalette([9, 9, 9] * 2**bits)
    picture.save(tmp_path / "a.png", bits=bits)
    content = bytearray((tmp_path / "a.png").read_bytes())
    assert decode_mask(bytes(content)).tolist() == numbers.tolist()
    # The same bits as levels of grey: another header, with its checksum, and no palette.
    assert content[24:26] == bytes([bits, 3])
    content[25] = 0
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    start = content.index(b"PLTE") - 4
    length = int.from_bytes(content[start : start + 4], "big")
    del content[start : start + 12 + length]
    assert decode_mask(bytes(content)).tolist() == numbers.tolist()


def test_transparency_is_dropped(tmp_path):
    numbers = np.array([[[3, 0], [4, 255]]], np.uint8)
    Image.fromarray(numbers, mode="LA").save(tmp_path / "a.png")
    assert decode_mask((tmp_path / "a.png").read_bytes()).tolist() == [[3, 4]]


def test_ignored_ids_and_an_offset(write):
    ids = np.array([[0, 1, 2], [3, 255, 17]], np.uint8)
    spec = write("train/a", ids)
    _, segments = only(f"{spec}?classes=a,b,c&offset=1&ignore=255,17")
    assert segments.semantic().tolist() == [[-1, 0, 1], [2, -1, -1]]
    _, segments = only(f"{spec}?classes=a,b,c,d&ignore=255,17,2")
    assert segments.semantic().tolist() == [[0, 1, -1], [3, -1, -1]]
    refused(
        "has ids that are of no class and not void: 255 (1 pixels); ?ignore=ID makes one void",
        f"{spec}?classes=a,b,c,d&ignore=17",
    )
    refused("255 (1 pixels)", f"{spec}?classes=a,b,c,d&ignore=17,")
    refused("17 (1 pixels)", f"{spec}?classes=a,b,c&offset=1")


@pytest.mark.parametrize(
    ("levels", "query", "there"),
    [
        ((0, 255), "classes=ground,cell", "no class but ground"),
        ((0, 255), "classes=ground,", "no class but ground"),
        ((0, 255), "classes=ground,cell&offset=1", "no class"),
        ((1, 255), "classes=ground,cell&offset=1", "no class but ground"),
        ((0, 255), "classes=ground,cell&ignore=255", None),
        ((0, 1), "classes=ground,cell&offset=1", None),
        ((0, 1, 255), "classes=ground,cell,wall", None),
        ((0, 255), ",".join(["classes=c0", *(f"c{i}" for i in range(1, 256))]), None),
        ((255,), ",".join(["classes=c0", *(f"c{i}" for i in range(1, 256))]), None),
    ],
)
def test_who_trains_is_told_of_one_class_and_255(write, levels, query, there):
    write("b", Image.new("RGB", (2, 2)))  # Cannot be read.
    source = open_source(f"{write('a', np.array([levels], np.uint8))}?{query}", "train")
    if there is None:
        source.check_classes()
        return
    said = (
        f"?{query}: the first masks have {there}, and the id 255, which is void by default: if it "
        f"is of a class, give the classes colours in classes.txt, such as "
        f"{source.class_names[-1]} 255 255 255; if it is void, say ignore=255"
    )
    with pytest.raises(InputError, match=f"{re.escape(said)}$"):
        source.check_classes()


def test_colours(write, classes):
    classes("cat 255 0 0\nroad marking 0 0 255\nvoid 0 0 0\nvoid 9 9 9")
    colors = np.array([[0, 0, 255], [255, 0, 0], [0, 0, 0], [9, 9, 9]], np.uint8)
    spec = write("train/a", colors[[[0, 1, 2], [3, 3, 0]]])
    source, segments = only(spec)
    assert source.segment_names == ("cat", "road marking")
    assert segments.semantic().tolist() == [[1, 0, -1], [-1, -1, 1]]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    palette.putpalette(colors[:2].ravel().tolist())
    write("val/b", palette)
    assert only(spec, "val")[1].semantic().tolist() == [[1, 0]]
    write("test/c", colors[[[0, 1]]] + np.uint8(1))
    refused(
        "masks/test/c.png: has colours that are of no class and not void: 0 1 1 (1 pixels), "
        "1 1 0 (1 pixels)",
        spec,
        "test",
    )


def test_where_images_and_masks_lie(write, tmp_path):
    for name in ("a", "deep/b"):
        write(name)
        write(f"train/{name}", images="in", masks="out/of")
        write(f"val/{name}", suffix=".png", images="in", masks="out/of")
    write("c", images="photos", masks="labels")
    names = "classes=a,b,c"
    assert len(open_source(f"masks:{tmp_path}?{names}", "train")) == 2
    refused("without {split} in the folders, such as", f"masks:{tmp_path}?{names}", "val")
    spec = f"masks:{tmp_path}?images=in/{{split}}&masks=out/of/{{split}}&{names}"
    source = open_source(spec, "train+val")
    found = {source.describe(i).removeprefix(f"{tmp_path}/") for i in range(4)}
    assert found == {
        f"in/{n}" for n in ("train/a.jpg", "train/deep/b.jpg", "val/a.png", "val/deep/b.png")
    }
    assert len(open_source(f"masks:{tmp_path}?images=photos&masks=labels&{names}", "train")) == 1
    refused(f"split 'test' does not exist: there is no folder {tmp_path}/in/test", spec, "test")


def test_the_order_is_mixed_and_fixed(write, tmp_path):
    for i in range(20):
        write(f"train/{i:02}")
    source = open_source(f"masks:{tmp_path}?classes=a,b,c", "train")
    names = [source.describe(i) for i in range(20)]
    assert names != sorted(names)
    first = open_source(f"masks:{tmp_path}?classes=a,b,c", "train[:25%]")
    assert [first.describe(i) for i in range(len(first))] == names[:5]
    assert [(r.name, r.start, r.stop) for r in first.ranges] == [("train", 0, 5)]


def test_images_that_lie_on_their_side(write, tmp_path):
    spec = write("train/a", images="")
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images" / "train").mkdir(parents=True)
    Image.new("RGB", (2, 3)).save(tmp_path / "images" / "train" / "a.jpg", exif=exif)
    assert only(f"{spec}?classes=a,b,c")[1].map.shape == (2, 3)


def test_a_mask_of_another_size(write, tmp_path):
    spec = write("train/a", size=(4, 2))
    refused(
        f"{tmp_path}/masks/train/a.png: is 3 x 2 but its image {tmp_path}/images/train/a.jpg is "
        "4 x 2",
        f"{spec}?classes=a,b,c",
    )


def test_masks_that_are_lacking_or_to_spare(write, tmp_path):
    write("train/a")
    write("train/b", None, size=(3, 2))
    write("train/deep/c", None, size=(3, 2))
    spec = f"{write('train/d', images='')}?classes=a,b,c"
    refused(f"2 images of {tmp_path}/images/train have no mask, such as ", spec)
    refused(f"; 1 masks of {tmp_path}/masks/train have no image, such as d.png", spec)


def test_images_that_would_share_a_mask(write, tmp_path):
    write("train/a")
    spec = write("train/a", suffix=".png")
    refused("images/train: two images are named a, and cannot share a mask", f"{spec}?classes=a,b")


def test_masks_and_images_in_tiff(write, tmp_path):
    spec = f"{write('train/a', suffix='.tif')}?classes=a,b,c"
    Image.fromarray(IDS).save(tmp_path / "masks" / "train" / "a.TIFF")
    refused("masks/train: two masks are named a, and an image has one", spec)
    (tmp_path / "masks" / "train" / "a.png").unlink()
    assert only(spec)[1].semantic().tolist() == [[0, 1, 2], [2, -1, 1]]


def test_no_images(write, tmp_path):
    write("train/a")
    for name in ("images/val", "masks/val"):
        (tmp_path / name).mkdir()
    (tmp_path / "images" / "val" / "a.heic").touch()
    refused("images/val holds no image", f"masks:{tmp_path}?classes=a,b", "val")
    refused("ppm, pgm, pbm) but 1 .heic", f"masks:{tmp_path}?classes=a,b", "val")


def test_broken_masks(write, tmp_path):
    spec = f"{write('train/a')}?classes=a,b,c"
    path = tmp_path / "masks" / "train" / "a.png"
    source = open_source(spec, "train")
    content = path.read_bytes()
    path.write_bytes(b"no mask")
    refused(f"{path}: the image (7 bytes) is not a PNG or TIFF", spec)
    path.write_bytes(content[:45])
    refused(f"{path}: the image (45 bytes) is damaged or cut short", spec)
    Image.new("RGB", (3, 2)).save(path)
    refused(f"{path}: is a picture in colours, but the classes have none: write each", spec)
    path.unlink()
    with pytest.raises(InputError, match="a.png: cannot be read"):
        source.segments(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "classes.txt: names no class"),
        ("void 1 2 3\n", "classes.txt: names no class"),
        ("cat\ndog\ncat", "classes.txt: names the class 'cat' twice"),
        ("cat 1 2 3\ndog 1 2 3", "classes.txt: has the colour 1 2 3 twice"),
        ("cat 1 2 3\ndog", "classes.txt: 'dog' has no colour, three numbers from 0 to 255, but"),
        ("cat 1 2 3\ndog 1 2 256", "classes.txt: 'dog 1 2 256' has no colour"),
    ],
)
def test_wrong_classes(write, classes, text, message):
    classes(text)
    refused(message, write("train/a"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "classes.txt: cannot be read (No such file"),
        ("?classes=names", "/names: cannot be read (No such file"),
        ("?classes=a,b,a", "classes: names the class 'a' twice"),
        ("?classes=,", "classes: names no class"),
        ("?classes=a,b&ignore=x", "ignore is 'x' but must be whole numbers from 0 to 65535"),
        ("?classes=a,b&ignore=-1", "ignore is '-1' but must be whole numbers from 0 to 65535"),
        ("?classes=a,b&ignore=65536", "ignore is '65536' but must be"),
        ("?classes=a,b&offset=1,2", "offset must be one number, the id of the first class"),
        ("?classes=a,b&offset=65535", "offset must be one number, the id of the first class"),
        ("?classes=a,b&offset=", "offset must be one number, the id of the first class"),
        ("?split=a", "unknown option 'split', masks: takes images, masks, classes, ignore, offset"),
        ("/no?classes=a,b", "/no does not exist or is not a folder"),
    ],
)
def test_wrong_options(write, options, message):
    refused(message, write("train/a") + options)


def test_options_of_ids_where_there_are_colours(write, classes):
    classes("cat 1 2 3", "colours.txt")
    for option in ("ignore=0", "offset=1"):
        spec = f"{write('train/a')}?classes=colours.txt&{option}"
        refused(f"{option.partition('=')[0]} is for ids, but the classes have colours", spec)


@pytest.fixture
def camvid():
    path = Path(__file__).parents[3] / "shared" / "data" / "camvid"
    if not path.is_dir():
        pytest.skip("needs CamVid in ../shared/data/camvid")
    return f"masks:{path}?images={{split}}&masks={{split}}annot&ignore=11&classes={CAMVID}"


def test_camvid(camvid):
    sizes = {name: len(open_source(camvid, name)) for name in ("train", "val", "test")}
    assert sizes == {"train": 367, "val": 101, "test": 233}
    source = open_source(camvid, "val")
    labels = np.stack([source.segments(i).semantic() for i in range(0, 101, 10)])
    assert labels.shape == (11, 360, 480)
    assert np.unique(labels).tolist() == list(range(-1, 11))
    names = CAMVID.split(",")
    # Seen from a car: sky above, road below.
    assert names[np.bincount(labels[:, :20].ravel() + 1)[1:].argmax()] in (
        "sky",
        "tree",
        "building",
    )
    assert names[np.bincount(labels[:, -60:].ravel() + 1)[1:].argmax()] == "road"
    refused("has ids that are of no class and not void: 11 (", camvid.replace("ignore=11&", ""))


def test_worker_processes_see_the_same_masks(camvid):
    source = open_source(camvid, "val[:8]")
    assert len(pickle.dumps(open_source(camvid, "train"))) < 400_000
    ops = "decode|random_scale(90)|segment_crop(64)|flip_lr|semantic|pad_segments(11)"
    batches = []
    for workers in (0, 1):
        running = train_batches(
            source,
            Preprocess.parse(f"{ops}|value_range(0,1)"),
            batch_size=8,
            seed=0,
            workers=workers,
        )
        batches.append(next(running))
        running.close()
    assert batches[0].keys() == batches[1].keys()
    for key, value in batches[0].items():
        np.testing.assert_array_equal(value, batches[1][key])
