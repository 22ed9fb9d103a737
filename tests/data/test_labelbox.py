import json
from pathlib import Path

import pytest

from tests.data.refusals import fails
from vitlab.data.sources import open_source

POINTS = [{"x": 1.5, "y": 2}, {"x": 3, "y": 4}, {"x": 1, "y": 8}]
MASK = {"name": "dog", "annotation_kind": "ImageSegmentationMask", "mask": {"url": "https://x"}}


@pytest.fixture
def formats() -> Path:
    path = Path(__file__).parents[3] / "shared" / "data" / "formats" / "labelbox"
    if not path.is_dir():
        pytest.skip("needs Labelbox's export in ../shared/data/formats/labelbox")
    return path


def box(name="cat", **sides):
    sides = {"left": 1, "top": 2, "width": 3.5, "height": 4} | sides
    return {"name": name, "annotation_kind": "ImageBoundingBox", "bounding_box": sides}


def polygon(points=POINTS, name="dog"):
    return {"name": name, "annotation_kind": "ImagePolygon", "polygon": points}


def label(*objects, **more):
    return {"annotations": {"objects": list(objects), "classifications": []}, **more}


def row(*labels, name="a.png", **more):
    return {
        "data_row": {"id": "c1", "external_id": name, "global_key": f"key/{name}"},
        "media_attributes": {"width": 10, "height": 20},
        "projects": {"p1": {"name": "first project", "labels": list(labels)}},
    } | more


@pytest.fixture
def labelbox(tmp_path):
    """labelbox(*rows, name) writes an export, and gives the source string."""

    def write(*rows, name="train.ndjson"):
        lines = [each if isinstance(each, str) else json.dumps(each) for each in rows]
        (tmp_path / name).write_text("\n".join(lines))
        return f"labelbox:{tmp_path / name}"

    return write


def by_name(source):
    return {Path(source.describe(i)).name: source.annotation(i) for i in range(len(source))}


def test_an_export(formats):
    source = open_source(f"labelbox:{formats}/export-result.ndjson?images=photos", "train")
    names = ("bench", "bicycle with space", "dog", "person", "snowboard")
    assert source.class_names == names
    assert source.notes == []
    found = by_name(source)
    first = found["a-weird Filename.asdf.jpg"]
    assert (first.image_id, first.width, first.height) == (1, 640, 416)
    assert first.boxes[0].tolist() == [540, 295, 563, 313]
    assert [names[each] for each in first.labels[:2]] == ["dog", "person"]
    assert sum(map(len, found.values())) == 16
    assert source.describe(0).startswith("photos/a")


def test_boxes_and_polygons(labelbox, tmp_path):
    rows = row(label(box(), polygon())), "", row(label(), name="b.png")
    source = open_source(labelbox(*rows), "train")
    assert source.class_names == ("cat", "dog")
    assert source.category_ids == (1, 2)
    assert source.notes == []
    found = by_name(source)
    assert found["a.png"].boxes.tolist() == [[1, 2, 4.5, 6], [1, 2, 3, 8]]
    assert found["a.png"].labels.tolist() == [0, 1]
    plain, (outline,) = found["a.png"].segmentations
    assert plain is None
    assert outline.tolist() == [[1.5, 2], [3, 4], [1, 8]]
    assert len(found["b.png"]) == 0
    assert [found[name].image_id for name in ("a.png", "b.png")] == [1, 3]
    assert {Path(source.describe(i)).parent for i in range(2)} == {tmp_path}


def test_segments(labelbox):
    corners = [{"x": x, "y": y} for x, y in ((2, 4), (8, 4), (8, 12), (2, 12))]
    source = open_source(labelbox(row(label(polygon(corners)))), "train")
    assert source.segment_names == ("dog", "background")
    assert (source.segments(0).semantic() == 0).sum() == 48


def test_files_are_named_by_the_external_id_else_the_global_key(labelbox):
    for external in ({}, {"external_id": None}, {"external_id": ""}):
        source = open_source(
            labelbox(row(label(box()), data_row={"global_key": "deep/b.png"} | external)), "train"
        )
        assert source.describe(0).endswith("/deep/b.png")


def test_what_is_left_out_is_noted(labelbox, tmp_path):
    point = {"name": "eye", "annotation_kind": "ImagePoint", "point": {"x": 1, "y": 2}}
    spec = labelbox(
        row(label(MASK, box(), MASK)),
        row(label(point, polygon(POINTS[:2])), name="b.png"),
        row(name="c.png"),
        row(label(box(), performance_details={"skipped": True}), name="d.png"),
    )
    source = open_source(spec, "train")
    assert source.class_names == ("cat",)
    assert {name: len(each) for name, each in by_name(source).items()} == {"a.png": 1, "b.png": 0}
    at = f"{tmp_path}/train.ndjson"
    assert source.notes == [
        f"{at}:1: objects[0]: an object of the kind ImageSegmentationMask, which is a link that "
        "expires, was left out, and 1 more like it",
        f"{at}:2: objects[0]: an object of the kind ImagePoint was left out",
        f"{at}:2: objects[1]: a polygon of fewer than three points was left out",
        f"{at}:3: an image that nobody has labelled was left out, and 1 more like it",
    ]
    only = labelbox(row(label(MASK)))
    fails(only, "train.ndjson: has no object that is read; ")
    fails(only, "objects[0]: an object of the kind ImageSegmentationMask, which is a link")


def test_which_of_several_labels(labelbox):
    two = label(box(left=1)), label(box(left=2), performance_details={"skipped": False})
    spec = labelbox(row(*two))
    message = ":1: has 2 labels, in the project p1: choose with ?label=first or last, and ?project"
    fails(spec, message)
    for which, left in (("first", 1), ("last", 2)):
        source = open_source(f"{spec}?label={which}", "train")
        assert source.annotation(0).boxes[0, 0] == left
    fails(f"{spec}?label=2", "label is '2' but must be first or last")
    projects = {f"p{i}": {"name": f"project {i}", "labels": [two[i]]} for i in range(2)}
    spec = labelbox(row(projects=projects))
    fails(spec, ":1: has 2 labels, in the project p0, p1: choose")
    for project in ("p1", "project 1"):
        source = open_source(f"{spec}?project={project}", "train")
        assert source.annotation(0).boxes[0, 0] == 2
    fails(f"{spec}?project=p2", "the split train holds no image")


def test_splits_and_classes(labelbox, tmp_path):
    labelbox(row(label(box("dog"), box("cat"))))
    labelbox(row(label(box("dog"))), name="val.ndjson")
    labelbox(row(label(box("emu"))), name="test.ndjson")
    spec = f"labelbox:{tmp_path}/{{split}}.ndjson?images=photos/{{split}}"
    source = open_source(spec, "val")
    assert source.class_names == ("cat", "dog")  # Those of train.
    assert source.annotation(0).labels.tolist() == [1]
    assert source.describe(0) == "photos/val/a.png"
    assert len(open_source(spec, "train+val")) == 2
    fails(spec, "test.ndjson: a.png: the class 'emu' is not among the classes cat, dog: na", "test")
    assert open_source(f"{spec}&classes=emu,cat", "test").class_names == ("emu", "cat")
    (tmp_path / "train.ndjson").unlink()
    assert open_source(spec, "test").class_names == ("emu",)
    fails(f"{spec}&classes=,", "classes must be names, each once", "test")
    fails(spec, "train.ndjson: cannot be read (No such file or directory)")
    only = labelbox(row(label(box())))
    fails(only, "the only split is train: 'val' does not exist", "val")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":2: is not json (Expecting property name enclosed in double quotes"),
        ("[]", "train.ndjson:2 must be an object {...}"),
        ({}, ":2 has no 'data_row'"),
        (row(data_row=[]), ":2.data_row is [] but must be an object {...}"),
        (row(data_row={}), ":2: data_row has no 'global_key'"),
        (row(data_row={"external_id": 3}), ":2: data_row.external_id is 3 but must be text"),
        (row(label(box()), name="../b.png"), ":2: '../b.png' is not the name of a file in"),
        (row(label(box()), name="/b.png"), ":2: '/b.png' is not the name of a file in"),
        (row(label(box()), name="a\0.png"), "is not the name of a file in"),
        (row(label(box()), name="\ud800.png"), "is not the name of a file in"),
        (row(label(box())), "has the image HERE/a.png twice"),
        (row(projects=3), ":2.projects is 3 but must be an object {...}"),
        (row(projects={"p": 3}), ":2: projects.p must be an object {...}"),
        (row(projects={"p": {}}), ":2: projects.p has no 'labels'"),
        (row(3), ":2: projects.p1.labels must be an object {...}"),
        (row({}), ":2: projects.p1.labels has no 'annotations'"),
        (row({"annotations": {}}), ":2 has no 'objects'"),
        (row(label(box()), media_attributes=3), ":2.media_attributes is 3 but must be"),
        (
            row(label(box()), media_attributes={"width": 0, "height": 3}),
            ":2: media_attributes has a width and height of 0 x 3",
        ),
        (row(label(3)), ":2: objects[0] must be an object {...}"),
        (row(label({"name": "a"})), ":2: objects[0] has no 'annotation_kind'"),
        (row(label(box(3))), ":2: objects[0].name is 3 but must be text"),
        (row(label(box(), box(left=None))), ":2: objects[1].bounding_box must have finite left"),
        (row(label(box(top=float("nan")))), "objects[0].bounding_box must have finite left, top"),
        (row(label(polygon(3))), ":2: objects[0].polygon is 3 but must be a list"),
        (row(label(polygon([*POINTS, 3]))), "objects[0].polygon must be points of finite x and y"),
        (row(label(polygon([*POINTS, {"x": 1}]))), "polygon must be points of finite x and y"),
    ],
)
def test_wrong_lines(labelbox, tmp_path, line, message):
    fails(labelbox(row(label(box())), line), message.replace("HERE", str(tmp_path)))
