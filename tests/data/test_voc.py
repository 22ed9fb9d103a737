from collections import Counter
from pathlib import Path

import pytest

from tests.data.refusals import fails
from vitlab.data.sources import open_source


@pytest.fixture
def bccd() -> Path:
    path = Path(__file__).parents[3] / "shared" / "data" / "bccd"
    if not path.is_dir():
        pytest.skip("needs the blood cells of BCCD in ../shared/data/bccd")
    return path


def an_object(name="cat", box=(1, 1, 6, 4), extra=""):
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    bounds = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return f"<object><name>{name}</name>{extra}<bndbox>{bounds}</bndbox></object>"


@pytest.fixture
def voc(tmp_path, write_image):
    """voc(stem, *xml) writes an annotation and its image of 6 x 4 pixels, and gives the source."""
    (tmp_path / "Annotations").mkdir()

    def write(stem, *inside, suffix=".png"):
        text = "\n".join(["<annotation>", *inside, "</annotation>"])
        (tmp_path / "Annotations" / f"{stem}.xml").write_text(text)
        write_image(tmp_path / "JPEGImages" / f"{stem}{suffix}")
        return f"voc:{tmp_path}"

    return write


def listed(tmp_path, **splits):
    folder = tmp_path / "ImageSets" / "Main"
    folder.mkdir(parents=True)
    for name, text in splits.items():
        (folder / f"{name}.txt").write_text(text)


def by_name(source):
    return {Path(source.describe(i)).name: source.annotation(i) for i in range(len(source))}


def test_bccd(bccd):
    counts, image_ids, notes = Counter(), set(), []
    for split, images in (("train", 205), ("val", 87), ("test", 72)):
        source = open_source(f"voc:{bccd}", split)
        assert len(source) == images
        assert source.class_names == ("Platelets", "RBC", "WBC")
        for i in range(images):
            found = source.annotation(i)
            assert (found.width, found.height) == (640, 480)
            counts.update(source.class_names[label] for label in found.labels)
            image_ids.add(found.image_id)
        notes += source.notes
    assert counts == {"RBC": 4155, "WBC": 372, "Platelets": 361}
    assert image_ids == set(range(1, 365))
    assert sorted(Path(note.partition(":")[0]).stem for note in notes) == [
        "BloodImage_00338",
        "BloodImage_00343",
    ]
    assert all("a box of 'RBC' has no area" in note for note in notes)
    assert len(open_source(f"voc:{bccd}", "trainval")) == 292


def test_boxes_of_bccd_lie_within_the_images_only_when_counted_from_1(bccd):
    for offset, lowest in ((1, 0), (0, 1)):
        source = open_source(f"voc:{bccd}?offset={offset}", "train")
        boxes = [source.annotation(i).boxes for i in range(len(source))]
        assert min(each[:, :2].min() for each in boxes) == lowest
        assert max(each[:, 2].max() for each in boxes) == 640
        assert max(each[:, 3].max() for each in boxes) == 480


def test_what_may_be_absent(voc):
    voc("b", an_object(), an_object("dog", (2.5, 1, 4.5, 3), "<difficult>1</difficult>"))
    spec = voc("a", suffix=".jpg")
    voc("c", "<filename>b.png</filename><size><width>0</width><height>0</height></size>")
    source = open_source(spec, "train")
    assert source.class_names == ("cat", "dog")
    assert source.category_ids == (1, 2)
    names = sorted(Path(source.describe(i)).name for i in range(3))
    assert names == ["a.jpg", "b.png", "b.png"]  # The last as the tag of c.xml says.
    found = next(each for each in map(source.annotation, range(3)) if len(each))
    assert found.image_id == 2
    assert (found.width, found.height) == (6, 4)
    assert found.boxes.tolist() == [[0, 0, 6, 4], [1.5, 0, 4.5, 3]]
    assert found.difficult.tolist() == [False, True]
    assert found.crowd.tolist() == [False, False]
    assert found.segmentations == (None, None)


def test_files_of_labelimg_beside_the_images(tmp_path, write_image):
    for name in ("a", "b", "c"):
        write_image(tmp_path / f"{name}.jpg")
    for name in ("a", "b"):
        text = f"<annotation><filename>{name}.jpg</filename>{an_object()}</annotation>"
        (tmp_path / f"{name}.xml").write_text(text)
    source = open_source(f"voc:{tmp_path}", "train")
    found = by_name(source)
    assert sorted(found) == ["a.jpg", "b.jpg"]
    assert found["a.jpg"].boxes.tolist() == [[0, 0, 6, 4]]
    assert source[0]["image"].startswith(b"\xff\xd8")
    fails(f"voc:{tmp_path}", "the only split is train: 'val' does not exist", "val")


def test_a_file_name_from_elsewhere_gives_way_to_that_of_the_xml(voc):
    spec = voc("a", "<filename>C:/photos/a.jpg</filename>", an_object())
    assert list(by_name(open_source(spec, "train"))) == ["a.png"]


def test_offset(voc):
    spec = voc("a", an_object(box=(1, 1, 5, 3)), an_object(box=(3, 2, 3, 4)))
    for offset, expected in (("1", [0, 0, 5, 3]), ("0", [1, 1, 5, 3])):
        source = open_source(f"{spec}?offset={offset}", "train")
        assert source.annotation(0).boxes[0].tolist() == expected
        assert source.annotation(0).area[1] == 0
        assert len(source.notes) == 1


def test_classes_are_those_of_train(voc, tmp_path):
    spec = voc("a", an_object("dog"))
    voc("b", an_object("cat"), an_object("dog"))
    voc("c", an_object("emu"))
    assert open_source(spec, "train").class_names == ("cat", "dog", "emu")
    listed(tmp_path, trainval="a -1\n\nb  1\n", val="a\n", test="c\n", empty="\n")
    assert open_source(spec, "val").class_names == ("cat", "dog")
    assert open_source(spec, "val").annotation(0).labels.tolist() == [1]
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\n")
    assert open_source(spec, "val").class_names == ("dog",)
    message = f"{tmp_path}/Annotations/c.xml: the class 'emu' is not among the classes dog: name"
    fails(spec, message, "test")
    fails(spec, "the split empty holds no image", "empty")
    named = open_source(f"{spec}?classes=emu, cat,dog", "test")
    assert named.class_names == ("emu", "cat", "dog")
    fails(f"{spec}?classes=cat", "a.xml: the class 'dog' is not among the classes cat", "trainval")
    fails(f"{spec}?classes=cat,cat", "classes must be names, each once")
    fails(f"{spec}?classes=,", "classes must be names, each once")


def test_a_name_that_is_listed_twice_is_read_once(voc, tmp_path):
    spec = voc("a", an_object())
    listed(tmp_path, train="a\na\n")
    source = open_source(spec, "train")
    assert len(source) == 1
    assert source.notes == [f"{tmp_path}/ImageSets/Main/train.txt: a is listed twice"]


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("<object>", "a.xml:3: is not xml (mismatched tag at column 3)"),
        ("<object><bndbox/></object>", "a.xml: object 1 has no name"),
        ("<object><name>cat</name></object>", "a.xml: object 1 has no bndbox/xmin"),
        (
            an_object() + an_object(box=(1, 1, "x", 4)),
            "a.xml: object 2: bndbox/xmax is 'x' but must be a finite number",
        ),
        (an_object(box=(1, 1, "nan", 4)), "bndbox/xmax is 'nan' but must be a finite number"),
        (an_object(box=(1, 1, "", 4)), "bndbox/xmax is '' but must be a finite number"),
        (an_object(extra="<difficult>no</difficult>"), "object 1: difficult is 'no' but must be"),
        ("<size><width>x</width><height>3</height></size>", "a.xml: size/width is 'x' but must"),
    ],
)
def test_wrong_annotations(voc, inside, message):
    fails(voc("a", inside), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotations/>", "a.xml: is not VOC's: <annotation> is expected, not <annotations>"),
        ("", "a.xml:1: is not xml (no element found at column 1)"),
        (
            '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>',
            "a.xml: has a DOCTYPE, which annotations never need: remove it",
        ),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "a.xml"),
    ],
)
def test_not_voc(voc, tmp_path, text, message):
    spec = voc("a")
    (tmp_path / "Annotations" / "a.xml").write_text(text)
    fails(spec, message)


def test_missing_files_and_splits(voc, tmp_path):
    fails(f"voc:{tmp_path}/no", f"folder {tmp_path}/no/Annotations cannot be read (No such file")
    fails(f"voc:{tmp_path}", f"{tmp_path}/Annotations holds no xml file")
    spec = voc("a", an_object())
    fails(spec, "without ImageSets/Main the only split is train: 'val' does not exist", "val")
    fails(f"{spec}?offset=2", "offset is '2' but must be 0 or 1")
    listed(tmp_path, train="a\n\nb\n")
    fails(spec, f"split 'val' does not exist: there is no {tmp_path}/ImageSets/Main/val.txt", "val")
    fails(spec, f"train.txt:3: there is no {tmp_path}/Annotations/b.xml")


def test_lists_may_hold_names_with_blanks_and_a_byte_order_mark(voc, tmp_path):
    spec = voc("my cat 1", an_object())
    voc("b", an_object())
    listed(tmp_path, train="\ufeffmy cat 1\nb  1\n")
    assert set(by_name(open_source(spec, "train"))) == {"my cat 1.png", "b.png"}
    (tmp_path / "ImageSets/Main/train.txt").write_bytes("b\nm\u00fcller".encode("latin-1"))
    fails(spec, "ImageSets/Main/train.txt: is not UTF-8 (byte 3): save it as such")


@pytest.mark.parametrize("text", ["<difficult/>", "<difficult>Unspecified</difficult>"])
def test_what_is_not_said_to_be_difficult_is_not(voc, text):
    source = open_source(voc("a", an_object(extra=text)), "train")
    assert source.annotation(0).difficult.tolist() == [False]
