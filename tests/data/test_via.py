import json
from pathlib import Path

import numpy as np
import pytest

from tests.data.refusals import fails
from vitlab.data.sources import open_source

RECT = {"name": "rect", "x": 1, "y": 2, "width": 3.5, "height": 1}
POLYGON = {"name": "polygon", "all_points_x": [1.5, 3, 1], "all_points_y": [0, 2, 4]}


@pytest.fixture
def formats() -> Path:
    path = Path(__file__).parents[3] / "shared" / "data" / "formats" / "via1"
    if not path.is_dir():
        pytest.skip("needs VIA's annotations in ../shared/data/formats/via1")
    return path


def region(shape=RECT, **attributes):
    return {"shape_attributes": shape, "region_attributes": attributes or {"label": "cat"}}


def image(*regions, filename="a.png"):
    return {"filename": filename, "size": -1, "regions": list(regions), "file_attributes": {}}


@pytest.fixture
def via(tmp_path, write_image):
    """via(*images) writes annotations, images of 6 x 4 pixels, and gives the source string."""

    def write(*images, name="train.json", content=None):
        for each in images:
            write_image(tmp_path / each["filename"])
        found = {f"{each['filename']}-1": each for each in images} if content is None else content
        text = found if isinstance(found, str) else json.dumps(found)
        (tmp_path / name).write_text(text)
        return f"via:{tmp_path / name}"

    return write


def by_name(source):
    return {Path(source.describe(i)).name: source.annotation(i) for i in range(len(source))}


def test_annotations_of_via_1(formats):
    source = open_source(f"via:{formats}/via_region_data.json", "train")
    assert source.class_names == ("claw", "connection")
    assert source.notes == []
    found = source.annotation(0)
    assert (found.image_id, found.width, found.height) == (1, 640, 360)
    assert found.labels.tolist() == [0, 0, 1]
    assert found.boxes[2].tolist() == [326, 154, 344, 174]
    assert [len(polygon) for (polygon,) in found.segmentations] == [25, 15, 7]
    assert set(np.unique(source.segments(0).semantic())) == {0, 1, 2}


@pytest.mark.parametrize("numbered", [False, True])
@pytest.mark.parametrize("project", [False, True])
def test_every_shape(via, numbered, project):
    shapes = [
        RECT,
        POLYGON,
        {"name": "circle", "cx": 3, "cy": 2, "r": 1.5},
        {"name": "ellipse", "cx": 3, "cy": 2, "rx": 2, "ry": 1},
        {"name": "ellipse", "cx": 3, "cy": 2, "rx": 2, "ry": 1, "theta": np.pi / 2},
    ]
    first = image(*(region(shape, label="dog") for shape in shapes))
    if numbered:  # As VIA 1 does.
        first["regions"] = {str(i): each for i, each in enumerate(first["regions"])}
    second = image(region(), filename="b.png")
    spec = via(first, second)
    if project:
        content = {"a.png-1": first, "b.png-1": second}
        spec = via(content={"_via_settings": {}, "_via_img_metadata": content})
    source = open_source(spec, "train")
    assert source.class_names == ("cat", "dog")
    assert source.notes == []
    found = by_name(source)
    assert [found[name].image_id for name in ("a.png", "b.png")] == [1, 2]
    found = found["a.png"]
    assert (found.width, found.height) == (6, 4)
    assert found.labels.tolist() == [1] * 5
    np.testing.assert_allclose(
        found.boxes,
        [[1, 2, 4.5, 3], [1, 0, 3, 4], [1.5, 0.5, 4.5, 3.5], [1, 1, 5, 3], [2, 0, 4, 4]],
        atol=1e-12,
    )
    plain, (polygon,), (circle,), *_ = found.segmentations
    assert plain is None
    assert polygon.tolist() == [[1.5, 0], [3, 2], [1, 4]]
    np.testing.assert_allclose(np.linalg.norm(circle - [3, 2], axis=1), 1.5)
    np.testing.assert_allclose(found.area[2:], np.pi * np.array([1.5**2, 2, 2]), rtol=2e-3)


def test_ellipses_turn_clockwise(via):
    shape = {"name": "ellipse", "cx": 3, "cy": 2, "rx": 2, "ry": 0.1, "theta": np.pi / 6}
    ((polygon,),) = open_source(via(image(region(shape))), "train").annotation(0).segmentations
    assert polygon[0].tolist() == pytest.approx([3 + 3**0.5, 2 + 1])


def test_what_is_left_out_is_noted(via, tmp_path):
    spec = via(
        image(
            region({"name": "point", "cx": 1, "cy": 2}),
            region(),
            region({**POLYGON, "all_points_x": [1, 2], "all_points_y": [1, 2]}),
            region(RECT, label=" "),
        ),
        image(region(RECT, other=""), filename="b.png"),
    )
    source = open_source(f"{spec}?label=label", "train")
    assert {name: len(each) for name, each in by_name(source).items()} == {"a.png": 1, "b.png": 0}
    assert source.notes == [
        f"{tmp_path}/train.json: a.png: regions[0]: a point was left out",
        f"{tmp_path}/train.json: a.png: regions[2]: a polygon of fewer than three points was left "
        "out",
        f"{tmp_path}/train.json: a.png: regions[3]: a region without a label was left out, and 1 "
        "more like it",
    ]


def test_which_attribute_is_the_class(via):
    ticks = {"young": True, "old": False}
    spec = via(image(region(RECT, kind="cat", age=ticks)))
    fails(spec, "train.json: regions have the attributes age, kind: choose with ?label=NAME")
    assert open_source(f"{spec}?label=kind", "train").class_names == ("cat",)
    assert open_source(f"{spec}?label=age", "train").class_names == ("young",)
    fails(f"{spec}?label=size", "no region has the attribute 'size': there is age, kind")
    assert open_source(f"{spec}?label=kind&classes=dog,cat", "train").category_ids == (1, 2)
    fails(f"{spec}?label=kind&classes=dog", "a.png: the class 'cat' is not among the classes dog")
    both = region(RECT, age={"young": True, "old": True})
    fails(via(image(both)), "has no object that is read; ")
    without = {"shape_attributes": RECT, "region_attributes": {}}
    assert open_source(via(image(without)), "train").class_names == ("object",)


def test_splits(via, tmp_path):
    via(image(region(RECT, label="dog"), region()), name="train.json")
    via(image(region(RECT, label="dog"), filename="photos/a.png"), name="val.json")
    spec = f"via:{tmp_path}/{{split}}.json?images={tmp_path}"
    assert open_source(spec, "val").class_names == ("cat", "dog")
    assert len(open_source(spec, "train+val")) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "train.json: is not json (Expecting property name"),
        ([], "must be a project of VIA 1 or 2, or its annotations as json"),
        ({"_via_img_metadata": 3}, "must be a project of VIA 1 or 2"),
        ({"project": {"pid": 3}}, "train.json: project has no 'filename'"),
        ({"a": 3}, "train.json: a must be an object {...}"),
        ({"a": image(filename=3)}, "a.filename is 3 but must be text"),
        ({"a": {"filename": "a.png"}}, "train.json: a has no list 'regions'"),
        ({"a": image(3)}, "train.json: a: regions[0] must be an object {...}"),
        ({"a": image({})}, "a: regions[0] has no 'shape_attributes'"),
        ({"a": image({"shape_attributes": {}})}, "a: regions[0] has no 'region_attributes'"),
        ({"a": image(region({}))}, "a.png: regions[0].shape_attributes has no 'name'"),
        ({"a": image(region({"name": "rect", "x": 1}))}, "a rect must have finite x, y, width, he"),
        ({"a": image(region({**RECT, "x": "1"}))}, "a rect must have finite x, y, width, height"),
        ({"a": image(region({"name": "circle"}))}, "a circle must have finite cx, cy, r"),
        ({"a": image(region({"name": "polygon"}))}, "all_points_x and _y must be as many finite"),
        (
            {"a": image(region({**POLYGON, "all_points_x": [1, 2]}))},
            "a.png: regions[0]: all_points_x and _y must be as many finite numbers",
        ),
        ({"a": image(region(), filename="../a.png")}, "'../a.png' is not the name of a file in"),
        ({"a": image(region(), filename="/a.png")}, "'/a.png' is not the name of a file in"),
        ({"a": image(region()), "b": image()}, "has the image HERE/a.png twice"),
        ({}, "the split train holds no image"),
        ({"a": image(region(), filename="no.png")}, "HERE/no.png: cannot be read (No such file"),
    ],
)
def test_wrong_annotations(via, tmp_path, content, message):
    fails(via(content=content), message.replace("HERE", str(tmp_path)))
