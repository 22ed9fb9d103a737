from pathlib import Path

import numpy as np
import pytest

from tests.data.refusals import fails
from vitlab.data import annotated, folders
from vitlab.data import yolo as yolo_module
from vitlab.data.sources import open_source

YAML = "train: images/train\nval: images/val\nnames: [cat, dog]\n"


@pytest.fixture
def yolo_seg() -> Path:
    path = Path(__file__).parents[3] / "shared" / "data" / "formats" / "yolo_seg"
    if not path.is_dir():
        pytest.skip("needs the YOLO polygons in ../shared/data/formats/yolo_seg")
    return path


@pytest.fixture
def yolo(tmp_path, write_image):
    """yolo(yaml, **labels) writes training images of 10 x 20 pixels with these labels."""

    def write(content=YAML, **labels):
        for name, text in (labels or {"a": ""}).items():
            write_image(tmp_path / "images" / "train" / f"{name}.png", size=(10, 20))
            path = tmp_path / "labels" / "train" / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "data.yaml").write_text(content)
        return f"yolo:{tmp_path}/data.yaml"

    return write


def by_name(source):
    return {Path(source.describe(i)).stem: source.annotation(i) for i in range(len(source))}


def test_polygons_of_yolo_seg(yolo_seg):
    source = open_source(f"yolo:{yolo_seg}/dataset.yaml", "train")
    assert source.class_names == ("kite", "person", "elephant", "sports ball")
    found = by_name(source)
    ball, elephant = found["000000036086"], found["000000109005"]
    assert ball.labels.tolist() == [3, 1]
    assert elephant.labels.tolist() == [2]
    assert (ball.image_id, elephant.image_id) == (1, 2)
    for each in (ball, elephant):
        for box, (polygon,) in zip(each.boxes, each.segmentations, strict=True):
            bounds = [*polygon.min(axis=0), *polygon.max(axis=0)]
            np.testing.assert_allclose(box, bounds)
    assert ball.segmentations[0][0][0].tolist() == pytest.approx(
        [0.248797 * ball.width, 0.763484 * ball.height]
    )


def test_boxes_and_images_without_any(yolo, tmp_path):
    spec = yolo(
        a="1 0.5 0.25 0.2 0.1\n\n0.0 0.5 0.5 1 1\n",
        b="  \n",
        c="",
        d="0 0.1 0.1 0.5 0.1 0.5 0.9",
    )
    (tmp_path / "labels/train/c.txt").unlink()
    source = open_source(spec, "train")
    found = by_name(source)
    np.testing.assert_allclose(found["a"].boxes, [[4, 4, 6, 6], [0, 0, 10, 20]], atol=1e-12)
    assert found["a"].labels.tolist() == [1, 0]
    assert [len(found[name]) for name in "bcd"] == [0, 0, 1]
    assert found["d"].boxes.tolist() == [[1, 2, 5, 18]]
    assert [found[name].image_id for name in "abcd"] == [1, 2, 3, 4]
    assert source.category_ids == (1, 2)
    assert source.notes == []


def test_coordinates_outside_are_noted(yolo):
    source = open_source(yolo(a="0 0.5 0.5 2 0.5"), "train")
    assert source.annotation(0).boxes.tolist() == [[-5, 5, 15, 15]]
    assert len(source.notes) == 1


def test_keypoints_are_no_outline(yolo, tmp_path):
    spec = yolo(f"{YAML}kpt_shape: [3, 2]\n", a="1 0.5 0.25 0.2 0.1 0.4 0.2 0.5 0.2 0 0", b="")
    source = open_source(spec, "train")
    found = by_name(source)["a"]
    np.testing.assert_allclose(found.boxes, [[4, 4, 6, 6]])
    assert found.segmentations == (None,)
    assert source.notes == [f"{tmp_path}/data.yaml: kpt_shape: keypoints were left out"]
    fails(
        yolo(f"{YAML}kpt_shape: [2, 3]\n", a="0 0.5 0.5 1 1"), "a.txt:1: has 5 numbers: a class, a"
    )
    fails(yolo(f"{YAML}kpt_shape: 17\n"), "data.yaml: kpt_shape must be two numbers")


@pytest.mark.parametrize("path", ["", "path: .\n", "path: ''\n"])
@pytest.mark.parametrize(
    "train",
    ["images/train", "[images/train]", "[images/train, list.txt]", "list.txt", "./images/train/"],
)
def test_where_the_images_are(yolo, tmp_path, path, train, monkeypatch):
    yaml = f"{path}train: {train}\nnames: {{1: dog, 0: cat}}\n"
    spec = yolo(yaml, a="1 0.5 0.5 1 1", b="")
    (tmp_path / "list.txt").write_text(f"./images/train/a.png\n\n{tmp_path}/images/train/b.png\n")
    monkeypatch.chdir(tmp_path)
    for place in (spec, "yolo:data.yaml"):
        source = open_source(place, "train")
        assert source.class_names == ("cat", "dog")
        assert {name: len(each) for name, each in by_name(source).items()} == {"a": 1, "b": 0}


def test_files_that_are_no_images_are_counted_but_for_labels(yolo, tmp_path, write_image):
    spec = yolo("train: [images/train, more]\nnames: [cat]\n", a="")
    write_image(tmp_path / "more" / "b.png")
    for name in ("more/b.txt", "more/c.heic", "images/train/d.HEIC", "images/train/e"):
        (tmp_path / name).touch()
    found = open_source(spec, "train")
    assert len(found) == 2
    line = "3 files are not read as images: 2 .heic, 1 no suffix"
    assert folders.left_out([found, open_source(spec, "train")]) == line


def test_labels_lie_where_the_last_images_of_the_path_is_replaced(tmp_path, write_image):
    root = tmp_path / "images" / "set"
    write_image(root / "images" / "train" / "a.b.JPG", size=(10, 20))
    (root / "labels" / "train").mkdir(parents=True)
    (root / "labels" / "train" / "a.b.txt").write_text("0 0.5 0.5 1 1")
    (tmp_path / "data.yaml").write_text("path: images/set\ntrain: images\nnames: [cat]\n")
    source = open_source(f"yolo:{tmp_path}/data.yaml", "train")
    assert len(source.annotation(0)) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 x 0.5 1 1", "labels/train/a.txt:2: '0 x 0.5 1 1' must be numbers"),
        ("2 0.5 0.5 1 1", "a.txt:2: the class 2 is not among the 2 classes, which count from 0"),
        ("-1 0.5 0.5 1 1", "a.txt:2: the class -1 is not among the 2 classes"),
        ("0.5 0.5 0.5 1 1", "a.txt:2: the class 0.5 is not among the 2 classes"),
        ("nan 0.5 0.5 1 1", "a.txt:2: the class nan is not among the 2 classes"),
        ("0 0.5 inf 1 1", "a.txt:2: a coordinate is not finite"),
        ("0", "a.txt:2: has 1 numbers: a class and a box of 4, or a polygon of 3 points or more"),
        ("0 0.5 0.5 1", "a.txt:2: has 4 numbers"),
        ("0 0.5 0.5 1 1 0.9", "a.txt:2: has 6 numbers"),
        ("0 0.5 0.5 1 1 0.9 1 1", "a.txt:2: has 8 numbers"),
    ],
)
def test_wrong_lines(yolo, line, message):
    fails(yolo(a=f"0 0.5 0.5 1 1\n{line}\n"), message)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: [a\nnames: ]", "data.yaml:2: is not yaml (expected ',' or ']', but got ':')"),
        ("- a\n", "data.yaml: must be a yaml of the keys path, train, val, test and names"),
        ("train: images\n", "data.yaml: names must be a list of class names, or {0: a, 1: b}"),
        ("train: images\nnames: {1: a, 2: b}", "the keys of names must be 0, 1, 2, ... without a"),
        ("train: images\nnames: [yes]", "names[0] is True but must be text: put it in quotes"),
        ("train: images\nnames: [a, a]", "names has 'a' twice"),
        ("val: images\nnames: [a]", "split 'train' does not exist: there is val"),
        ("names: [a]", "split 'train' does not exist: there is none"),
        ("train: no_such\nnames: [a]", "data.yaml: train: HERE/no_such is neither a folder nor a"),
        ("train: [no.txt]\nnames: [a]", "HERE/no.txt: cannot be read (No such file or directory)"),
        ("train: [3]\nnames: [a]", "data.yaml: train[0] is 3 but must be text"),
        ("path: 3\nnames: [a]", "data.yaml: path is 3 but must be text"),
        ("train: labels\nnames: [a]", "the split train holds no image"),
        ("a: &a [x, x]\nb: &b [*a, *a]\ntrain: c\nnames: [*b]", "names[0] is [[...], [...]] but"),
        ("train: !!python/name:os.system\nnames: [a]", "data.yaml:1: is not yaml"),
    ],
)
def test_wrong_yaml(yolo, tmp_path, yaml, message):
    fails(yolo(yaml), message.replace("HERE", str(tmp_path)))


def test_missing_files(yolo, tmp_path):
    fails(f"yolo:{tmp_path}/no.yaml", f"{tmp_path}/no.yaml: cannot be read (No such file")
    spec = yolo(a="")
    (tmp_path / "images/train/a.png").write_bytes(b"no image")
    fails(spec, "images/train/a.png: the image cannot be read (cannot identify image file")


def test_a_folder_beside_the_yaml_may_be_written_as_one_above(tmp_path, write_image):
    """As Roboflow writes it, and Ultralytics reads it."""
    write_image(tmp_path / "set" / "train" / "images" / "a.png")
    (tmp_path / "set" / "data.yaml").write_text("train: ../train/images\nnames: [cat]\n")
    source = open_source(f"yolo:{tmp_path}/set/data.yaml", "train")
    assert source.describe(0) == f"{tmp_path}/set/train/images/a.png"
    write_image(tmp_path / "train" / "images" / "b.png")
    assert open_source(f"yolo:{tmp_path}/set/data.yaml", "train").describe(0).endswith("b.png")


@pytest.fixture
def folder(tmp_path, write_image):
    """folder(images, labels, classes) writes two images, of which one has a label, and gives the
    source string."""

    def write(images="images", labels="labels", classes="classes.txt"):
        root = tmp_path / "images" / "set"
        for name in ("a", "b"):
            write_image(root / images / f"{name}.png", size=(10, 20))
        for path, text in (
            (f"{labels}/a.txt", "1 0.5 0.25 0.2 0.1"),
            (classes, "cat\nbig dog \n\n"),
        ):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        return f"yolo:{root}"

    return write


@pytest.mark.parametrize(
    ("images", "labels", "classes", "split"),
    [
        ("images", "labels", "classes.txt", "train"),  # Label Studio
        ("images", "labels", "labels/classes.txt", "train"),  # LabelImg, to another folder
        (".", ".", "classes.txt", "train"),  # LabelImg
        ("images/val", "labels/val", "classes.txt", "val"),
    ],
)
def test_a_folder_without_a_yaml(folder, images, labels, classes, split):
    source = open_source(folder(images, labels, classes), split)
    assert source.class_names == ("cat", "big dog")
    found = by_name(source)
    assert {name: len(each) for name, each in found.items()} == {"a": 1, "b": 0}
    np.testing.assert_allclose(found["a"].boxes, [[4, 4, 6, 6]], atol=1e-12)
    assert found["a"].labels.tolist() == [1]


def test_wrong_folders(folder, tmp_path):
    root = tmp_path / "images" / "set"
    fails(folder(labels="boxes"), f"{root}/images: has no labels: there is no folder {root}/labels")
    fails(folder(), "split 'val' does not exist: there is train; a part of train may", "val")
    for text, message in (
        ("\n", "classes.txt: must name a class in each of its lines"),
        ("a\n\nb", "classes.txt: must name a class in each of its lines"),
        ("a\na", "classes.txt: names has 'a' twice"),
        ("a", "labels/a.txt:1: the class 1 is not among the 1 classes"),
    ):
        (root / "classes.txt").write_text(text)
        fails(f"yolo:{root}", message)
    (root / "classes.txt").unlink()
    fails(f"yolo:{root}", f"{root} has no classes.txt, the names of the classes in the order of")


def test_byte_order_marks_and_other_encodings(yolo, tmp_path):
    spec = yolo("train: list.txt\nnames: [cat]\n", a="\ufeff0 0.5 0.5 1 1")
    (tmp_path / "list.txt").write_text("\ufeffimages/train/a.png\n")
    assert len(open_source(spec, "train").annotation(0)) == 1
    (tmp_path / "labels/train/a.txt").write_bytes(b"0 0.5 0.5 1 1 \xe4")
    fails(spec, "labels/train/a.txt: is not UTF-8 (byte 14): save it as such")
    (tmp_path / "list.txt").write_bytes(b"a\0b.png")
    fails(spec, "b.png: cannot be read (embedded null byte)")


def test_opening_reads_no_image_whole(yolo, monkeypatch):
    spec, read = yolo(a="0 0.5 0.5 1 1"), []

    def watched(path):
        read.append(Path(path).name)
        return folders.read_file(path)

    for module in (annotated, yolo_module):
        monkeypatch.setattr(module, "read_file", watched)
    source = open_source(spec, "train")
    assert (source.annotation(0).width, source.annotation(0).height) == (10, 20)
    assert read == ["data.yaml"]
