import json
from pathlib import Path

import numpy as np
import pytest

from tests.data.refusals import fails
from vitlab.data.sources import open_source

TRIANGLE = [[1.5, 0], [3, 2], [1, 4]]


def shape(kind="polygon", points=TRIANGLE, label="cat", group=None):
    return {"label": label, "points": points, "group_id": group, "shape_type": kind, "flags": {}}


@pytest.fixture
def labelme(tmp_path, write_image):
    """labelme(*shapes) writes the json of an image of 6 x 4 pixels, and gives the source string."""

    def write(*shapes, name="a", folder=".", **changes):
        path = tmp_path / folder / f"{name}.json"
        write_image(path.with_suffix(".png"))
        content = {
            "version": "5.5.0",
            "flags": {},
            "shapes": list(shapes),
            "imagePath": f"{name}.png",
            "imageData": "bm8gaW1hZ2U=",
            "imageHeight": 4,
            "imageWidth": 6,
        }
        path.write_text(json.dumps(content | changes))
        return f"labelme:{tmp_path}"

    return write


def by_name(source):
    return {Path(source.describe(i)).name: source.annotation(i) for i in range(len(source))}


def test_every_shape(labelme):
    spec = labelme(
        shape("rectangle", [[5, 3.5], [1, 2]]),
        shape(),
        shape("circle", [[3, 2], [3, 3.5]], label="dog"),
        {"label": "cat", "points": TRIANGLE, "line_color": None},  # As LabelMe 2 writes it.
    )
    labelme(name="b")
    source = open_source(spec, "train")
    assert (source.class_names, source.category_ids) == (("cat", "dog"), (1, 2))
    assert source.notes == []
    found = by_name(source)
    assert [found[name].image_id for name in ("a.png", "b.png")] == [1, 2]
    assert len(found["b.png"]) == 0
    found = found["a.png"]
    assert (found.width, found.height) == (6, 4)
    assert found.labels.tolist() == [0, 0, 1, 0]
    np.testing.assert_allclose(
        found.boxes, [[1, 2, 5, 3.5], [1, 0, 3, 4], [1.5, 0.5, 4.5, 3.5], [1, 0, 3, 4]]
    )
    plain, (polygon,), (circle,), (old,) = found.segmentations
    assert plain is None
    assert polygon.tolist() == old.tolist() == TRIANGLE
    np.testing.assert_allclose(np.linalg.norm(circle - [3, 2], axis=1), 1.5)
    assert source[0]["image"].startswith(b"\x89PNG")  # Not the copy in the json.


def test_a_group_of_one_label_is_one_object(labelme):
    spec = labelme(
        shape("rectangle", [[0, 0], [1, 1]], group=1),
        shape(group=2),
        shape(label="dog", group=2),
        shape("rectangle", [[3, 2], [5, 4]], group=2),
        shape("rectangle", [[3, 2], [6, 4]], group=1),
        shape(),
    )
    found = open_source(spec, "train").annotation(0)
    assert found.boxes.tolist() == [[0, 0, 6, 4], [1, 0, 5, 4], [1, 0, 3, 4], [1, 0, 3, 4]]
    assert found.labels.tolist() == [0, 0, 1, 0]
    boxes, (first, second), *_ = found.segmentations
    assert boxes is None
    assert first.tolist() == TRIANGLE
    assert second.tolist() == [[3, 2], [5, 2], [5, 4], [3, 4]]


@pytest.mark.parametrize(("order", "seen"), [((0, 1), "cat"), ((1, 0), "dog")])
def test_the_later_object_lies_on_top(labelme, order, seen):
    large, small = [[0, 0], [6, 0], [6, 4], [0, 4]], [[1, 1], [3, 1], [3, 3], [1, 3]]
    shapes = [shape(points=large, label="dog"), shape(points=small, label="cat")]
    source = open_source(labelme(*(shapes[i] for i in order)) + "?classes=cat,dog", "train")
    segments = source.segments(0)
    assert source.segment_names[segments.labels[segments.map[2, 2]]] == seen


def test_what_is_left_out_is_noted(labelme, tmp_path, write_image):
    write_image(tmp_path / "c.png")
    spec = labelme(
        shape("point", [[1, 2]]),
        shape("linestrip"),
        shape("point", [[1, 2]]),
        shape(points=TRIANGLE[:2]),
        shape(label="__ignore__"),
        shape(),
    )
    source = open_source(spec, "train")
    assert source.class_names == ("cat",)
    assert len(source.annotation(0)) == 1
    assert source.notes == [
        f"{tmp_path}/a.json: shapes[0]: a point was left out, and 1 more like it",
        f"{tmp_path}/a.json: shapes[1]: a linestrip was left out",
        f"{tmp_path}/a.json: shapes[3]: a polygon of fewer than 3 points was left out",
        f"{tmp_path}/a.json: shapes[4]: a shape to __ignore__ was left out",
        f"{tmp_path}/c.png: an image without a json was left out",
    ]


@pytest.mark.parametrize("path", ["..\\photos\\a.png", "/home/me/a.png", "renamed.png"])
def test_where_the_image_is(labelme, tmp_path, path, write_image):
    spec = labelme(shape(), imagePath=path, imageWidth=None)
    source = open_source(spec, "train")
    assert source.describe(0) == f"{tmp_path}/a.png"
    assert (source.annotation(0).width, source.annotation(0).height) == (6, 4)  # As its file says.
    write_image(tmp_path / "photos" / "a.jpg")
    (tmp_path / "a.png").unlink()
    assert open_source(f"{spec}?images={tmp_path}/photos", "train").describe(0).endswith("a.jpg")


def test_splits(labelme, tmp_path):
    labelme(shape(label="dog"), shape(), folder="train")
    labelme(shape(label="dog"), folder="val", name="b")
    spec = f"labelme:{tmp_path}/{{split}}"
    assert open_source(spec, "val").class_names == ("cat", "dog")
    assert sorted(by_name(open_source(spec, "train+val"))) == ["a.png", "b.png"]
    fails(spec, f"folder {tmp_path}/test cannot be read", "test")
    fails(f"labelme:{tmp_path}", "holds no json; where each split has a folder, write {split}")
    fails(f"labelme:{tmp_path}/train", "the only split is train: 'val' does not exist", "val")


@pytest.mark.parametrize(
    ("shapes", "changes", "message"),
    [
        ([3], {}, "a.json: shapes[0] must be an object {...}"),
        ([], {"shapes": {}}, "a.json.shapes is {} but must be a list"),
        ([], {}, "has no object that is read"),
        ([{"label": 3}], {}, "a.json: shapes[0].label is 3 but must be text"),
        ([{"label": "cat"}], {}, "a.json: shapes[0] has no 'points'"),
        ([shape(points=[[1, 2], [3, 4], [5]])], {}, "points must be pairs of finite numbers"),
        ([shape(points=[1, 2, 3])], {}, "shapes[0]: points must be pairs of finite numbers"),
        ([shape(points=[[1, 2], [3, 4], ["5", 6]])], {}, "points must be pairs of finite numbers"),
        ([shape(group="1")], {}, "shapes[0].group_id is '1' but must be a whole number"),
        ([shape()], {"imagePath": None}, "a.json.imagePath is None but must be text"),
        ([shape()], {"imageWidth": "6"}, "a.json: image.width is '6' but must be a whole number"),
        ([shape(label="emu")], {}, "a.png: the class 'emu' is not among the classes cat"),
    ],
)
def test_wrong_annotations(labelme, shapes, changes, message):
    query = "?classes=cat" if "emu" in message else ""
    fails(labelme(*shapes, **changes) + query, message)


def test_two_files_of_an_image(labelme, tmp_path):
    labelme(shape())
    spec = labelme(shape(), name="b", imagePath="a.png")
    fails(spec, f"{tmp_path}: has the image {tmp_path}/a.png twice")


def test_another_json(labelme, tmp_path):
    spec = labelme(shape())
    (tmp_path / "all.json").write_text('{"images": []}')
    fails(spec, f"{tmp_path}/all.json has no 'shapes'")
    (tmp_path / "all.json").write_text("[]")
    fails(spec, f"{tmp_path}/all.json must be an object {{...}}")
