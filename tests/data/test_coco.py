import copy
import json
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

from tests.data.refusals import fails
from vitlab.data.annotations import RLE
from vitlab.data.sources import open_source
from vitlab.errors import InputError
from vitlab.evaluation.boxes import Detections
from vitlab.evaluation.detection import coco_evaluation, coco_metrics
from vitlab.evaluation.masks import encode_masks

IMAGES = [
    {"id": 0, "file_name": "a.jpg", "width": 8, "height": 6},
    {"id": 50, "file_name": "deep/b.jpg", "width": 4, "height": 4},
]
CONTENT = {
    "images": IMAGES,
    "categories": [{"id": 7, "name": "dog"}, {"id": 0, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 0, "category_id": 7, "bbox": [1, 2, 3.5, 4], "area": 9, "iscrowd": 0},
        {"id": 2, "image_id": 0, "category_id": 0, "bbox": [0, 0, 8, 6], "iscrowd": 1},
    ],
}


@pytest.fixture
def write(tmp_path):
    """write(content, name) writes a json, and gives the source string."""

    def write(content, name="train.json"):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text)
        return f"coco:{tmp_path / name}"

    return write


def by_name(source):
    return {Path(source.describe(i)).name: source.annotation(i) for i in range(len(source))}


def test_coco128(coco128):
    spec = f"coco:{coco128}/annotations/instances_{{split}}2017.json?images={coco128}/{{split}}2017"
    source = open_source(spec, "train")
    assert len(source) == 128
    assert len(source.class_names) == 80
    assert source.class_names[:2] + source.class_names[-1:] == ("person", "bicycle", "toothbrush")
    assert source.category_ids[10:12] == (11, 13)  # The first gap: there is no 12, a street sign.
    assert source.category_ids[-1] == 90
    assert source.notes == []
    found = [source.annotation(i) for i in range(128)]
    assert sum(map(len, found)) == 939
    assert sum(each.crowd.sum() for each in found) == 10
    assert sum(len(each) == 0 for each in found) == 2
    for i in range(128):
        assert source[i]["image"].startswith(b"\xff\xd8")
        for crowd, segmentation in zip(found[i].crowd, found[i].segmentations, strict=True):
            assert isinstance(segmentation, RLE) == crowd
    assert len(open_source(spec, "train[:50%]")) == 64


def test_masks_and_areas_of_coco128(coco128):
    path = coco128 / "annotations" / "instances_train2017.json"
    source = open_source(f"coco:{path}?images={coco128}/train2017", "train")
    raw = {}
    for entry in json.loads(path.read_text())["annotations"]:
        raw.setdefault(entry["image_id"], []).append(entry)
    for i in range(len(source)):
        found = source.annotation(i)
        for j, entry in enumerate(raw.get(found.image_id, [])):
            x, y, width, height = entry["bbox"]
            np.testing.assert_allclose(found.boxes[j], [x, y, x + width, y + height], atol=1)
            assert source.category_ids[found.labels[j]] == entry["category_id"]
            assert found.area[j] == entry["area"]
            segmentation = found.segmentations[j]
            if isinstance(segmentation, RLE):
                packed = coco_mask.frPyObjects(entry["segmentation"], *segmentation.size)
                np.testing.assert_array_equal(segmentation.mask(), coco_mask.decode(packed))
            else:
                flat = [polygon.ravel().tolist() for polygon in segmentation]
                assert flat == entry["segmentation"]


def test_what_may_be_absent(write):
    content = copy.deepcopy(CONTENT)
    content["images"][1].pop("width")
    content["annotations"][0] |= {"area": None, "segmentation": []}
    source = open_source(write(CONTENT), "train")
    assert source.class_names == ("cat", "dog")
    assert source.category_ids == (0, 7)
    found = by_name(source)
    assert found["a.jpg"].boxes.tolist() == [[1, 2, 4.5, 6], [0, 0, 8, 6]]
    assert found["a.jpg"].labels.tolist() == [1, 0]
    assert found["a.jpg"].area.tolist() == [9, 48]
    assert found["a.jpg"].crowd.tolist() == [False, True]
    assert (found["a.jpg"].image_id, found["b.jpg"].image_id) == (0, 50)
    assert len(found["b.jpg"]) == 0
    with pytest.raises(InputError, match="deep/b.jpg: cannot be read"):  # For its size.
        open_source(write(content), "train")


def test_where_the_images_are(write, tmp_path, monkeypatch):
    beside = open_source(write(CONTENT), "train")
    assert {Path(beside.describe(i)).parent for i in range(2)} == {tmp_path, tmp_path / "deep"}
    write(CONTENT, "val.json")
    monkeypatch.setenv("HOME", str(tmp_path))
    named = open_source("coco:~/{split}.json?images=~/images/{split}", "train[:1]+val[1:]")
    places = [Path(named.describe(i)).relative_to(tmp_path).parts[:2] for i in range(2)]
    assert places == [("images", "train"), ("images", "val")]


def test_odd_boxes_are_kept_and_noted(write):
    content = copy.deepcopy(CONTENT)
    content["annotations"][0] |= {"bbox": [4, 2, -3, 0], "area": None}
    content["annotations"][1]["segmentation"] = [[1, 2, 3, 4], [0, 0, 8, 0, 8, 6]]
    source = open_source(write(content), "train")
    found = by_name(source)["a.jpg"]
    assert found.boxes[0].tolist() == [4, 2, 4, 2]
    assert [polygon.tolist() for polygon in found.segmentations[1]] == [[[0, 0], [8, 0], [8, 6]]]
    assert any("a box of 'dog' has no area" in note for note in source.notes)
    assert any("annotations[1].segmentation (id 2): polygon 0" in note for note in source.notes)


def test_compressed_masks_are_those_of_coco(write):
    rng = np.random.default_rng(0)
    shapes = [(6, 8), (300, 400)]
    for (height, width), density in zip(shapes * 3, (0, 1, 0.5, 0.02, 0.98, 0.2), strict=True):
        pixels = np.asfortranarray(rng.random((height, width)) < density, np.uint8)
        packed = coco_mask.encode(pixels)
        content = copy.deepcopy(CONTENT)
        content["images"][0] |= {"width": width, "height": height}
        content["annotations"][0]["segmentation"] = {
            "size": [height, width],
            "counts": packed["counts"].decode(),
        }
        mask = by_name(open_source(write(content), "train"))["a.jpg"].segmentations[0].mask()
        np.testing.assert_array_equal(mask, pixels)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("images", None, "has no list 'images': COCO's instances json has images, annotations"),
        ("annotations", {}, "has no list 'annotations'"),
        ("categories", [3], "categories[0] must be an object {...}"),
        ("images", IMAGES[:1] * 2, "images has the id 0 twice"),
        ("images", [{"id": 1}], "images[0] has no 'file_name'"),
        ("images", [{"id": "x"}], "images[0].id is 'x' but must be a whole number"),
        ("images", [{**IMAGES[0], "width": 0}], "images[0] has a width and height of 0 x 6"),
        ("images", [{**IMAGES[0], "width": "8"}], "images[0].width is '8' but must be a whole"),
        ("categories", [{"id": 1, "name": "a"}] * 2, "categories has the id 1 twice"),
    ],
)
def test_wrong_tables(write, key, change, message):
    content = {**CONTENT, "annotations": [], key: change}
    if change is None:
        del content[key]
    fails(write(content), message)


def test_of_categories_with_one_name_the_one_with_annotations_is_kept(write, tmp_path):
    """Roboflow writes the project's name as a category 0 of nothing."""

    def named(*ids, annotations=CONTENT["annotations"][:1]):
        categories = [{"id": i, "name": "dog"} for i in ids] + [{"id": 2, "name": "cat"}]
        return write({**CONTENT, "categories": categories, "annotations": annotations})

    source = open_source(named(0, 7), "train")
    assert (source.class_names, source.category_ids) == (("cat", "dog"), (2, 7))
    assert by_name(source)["a.jpg"].labels.tolist() == [1]
    assert source.notes == [
        f"{tmp_path}/train.json: the category 0, without annotations, was left out: 7 is called "
        "'dog' too"
    ]
    assert open_source(named(9, 7), "train").category_ids == (2, 7)
    assert open_source(named(0, 7, annotations=[]), "train").category_ids == (2, 7)
    both = [{**CONTENT["annotations"][0], "id": i, "category_id": i} for i in (0, 7)]
    fails(named(0, 7, annotations=both), "train.json: categories has the name 'dog' twice")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2, 3]}, "annotations[1].bbox must be four finite numbers"),
        ({"bbox": None}, "annotations[1].bbox must be four finite numbers"),
        ({"bbox": [1, 2, 3, "4"]}, "annotations[1].bbox must be four finite numbers"),
        ({"bbox": [1, 2, 3, float("nan")]}, "annotations[1].bbox must be four finite numbers"),
        ({"bbox": [1, 2, 3, 10**400]}, "annotations[1].bbox must be four finite numbers"),
        ({"image_id": 1}, "annotations[1].image_id is 1, which is not among the images"),
        ({"category_id": 1}, "annotations[1].category_id is 1, which is not among the categories"),
        ({"category_id": list(range(999))}, "is [0, 1, 2, 3, 4, 5, ...] but must be a whole"),
        ({"category_id": None}, "annotations[1].category_id is None but must be a whole number"),
        ({"id": 1}, "annotations has the id 1 twice"),
        ({"iscrowd": 2}, "annotations[1].iscrowd is 2 but must be 0 or 1"),
        ({"area": "big"}, "annotations[1].area is 'big' but must be a finite number"),
        ({"segmentation": "x"}, "annotations[1].segmentation (id 2) must be a list of polygons"),
        ({"segmentation": [[1, 2, 3]]}, "(id 2) polygon 0 must be finite numbers x, y, x, y, ..."),
        ({"segmentation": {"counts": [48]}}, "(id 2) size must be two numbers: height, width"),
        (
            {"segmentation": {"size": [8, 6], "counts": [48]}},
            "(id 2) size is [8, 6] but the image has height 6 and width 8",
        ),
        (
            {"segmentation": {"size": [6, 8], "counts": [40, 7]}},
            "annotations[1].segmentation (id 2) counts sum to 47 but a mask of 6 x 8 has 48 pixels",
        ),
        ({"segmentation": {"size": [6, 8], "counts": [50, -2]}}, "counts must be lengths of runs"),
        ({"segmentation": {"size": [6, 8], "counts": "0o"}}, "counts must be lengths of runs"),
        ({"segmentation": {"size": [6, 8], "counts": "!"}}, "counts must be lengths of runs"),
        ({"segmentation": {"size": [6, 8], "counts": "1"}}, "counts sum to 1 but"),
    ],
)
def test_wrong_annotations(write, change, message):
    content = copy.deepcopy(CONTENT)
    content["annotations"][1] |= change
    fails(write(content), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [\n  1,, 2]}', "is not json (Expecting value at line 2 column 5)"),
        ("", "is not json (Expecting value at line 1 column 1)"),
        ("[" * 100_000, "is not json (maximum recursion depth exceeded"),
        ("[]", "has no list 'images'"),
    ],
)
def test_not_json(write, text, message):
    fails(write(text), message)


def test_not_text(write, tmp_path):
    spec = write("")
    (tmp_path / "train.json").write_bytes(b'{"\xff\xfe')
    fails(spec, "is not json ('utf-8' codec can't decode byte 0xff")


def test_missing_files_and_splits(write, tmp_path):
    fails(f"coco:{tmp_path}/no.json", f"{tmp_path}/no.json: cannot be read (No such file or")
    with pytest.raises(InputError, match="^(?!.*is not json)"):
        open_source(f"coco:{tmp_path}/no.json", "train")
    message = "without {split} in the path of the json the only split is train: 'val' does not"
    fails(write(CONTENT), message, "val")
    fails(f"coco:{tmp_path}/{{split}}.json", f"{tmp_path}/val.json: cannot be read", "val")


@pytest.mark.parametrize("size", [[40, 60], [10, 10]])
def test_a_mask_of_another_size_than_its_image_is_refused_without_the_size_in_the_json(
    tmp_path, size
):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    mask = {"size": size, "counts": [0, size[0] * size[1]]}
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "segmentation": mask}
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    said = f"a.png: the mask of 'cat' is {size[1]} x {size[0]} but the image 30 x 20"
    with pytest.raises(InputError, match=said):
        open_source(f"coco:{tmp_path / 'a.json'}", "train")


def test_the_area_is_that_of_the_outline_where_the_json_says_none(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    shapes = [
        [[0, 0, 10, 0, 0, 10]],  # half of its box
        {"size": [20, 30], "counts": [0, 7, 593]},
        None,
    ]
    rows = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "segmentation": shape}
        for i, shape in enumerate(shapes)
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": rows,
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    source = open_source(f"coco:{tmp_path / 'a.json'}", "train")
    assert source.annotation(0).area.tolist() == [50, 7, 100]


def test_an_object_of_whose_outline_nothing_is_left_keeps_its_box_alone(write):
    content = copy.deepcopy(CONTENT)
    first, second = content["annotations"]
    first["segmentation"] = [[1, 2, 3, 4]]
    second |= {"segmentation": [[0, 0, 8, 0, 8, 6]], "iscrowd": 0}
    source = open_source(write(content), "train")
    index = [source.describe(i).endswith("a.jpg") for i in range(2)].index(True)
    truth, segments = source.annotation(index), source.segments(index)
    assert truth.labels.tolist() == [1, 0]
    assert segments.labels.tolist() == [0, 2]  # A cat and the background, but no dog.
    assert any(
        "(id 1): nothing is left: the object has a box, but no pixel" in n for n in source.notes
    )
    # A detector of the cat alone has found all that can be found.
    masks = encode_masks((segments.map == 0)[None])
    found = Detections(truth.boxes[1:], np.ones(1), np.array([0]), masks)
    evaluation = coco_evaluation([truth], [found], source.class_names, of="masks")
    assert coco_metrics(evaluation)["AP"] == pytest.approx(1)


def test_ap_is_pycocotools_where_boxes_reach_outside_of_their_image(write):
    """Two that reach outside, one that lies outside, one within, one that reaches outside."""
    boxes = np.float64(
        [
            [-30, 50, 130, 100],
            [560, 400, 200, 120],  # Large: only its part in the image is of medium size.
            [-50, -50, 20, 20],
            [100, 100, 50, 50],
            [600, 20, 90, 80],
        ]
    )
    shifts = [[0, 0, 0, 0], [-4, 6, 10, -8], [1, 0, 2, 1], [3, -2, 5, 4], [-6, 3, 12, 0]]
    images, labels = np.array([9, 3, 9, 3, 9]), np.array([0, 0, 0, 1, 1])
    rows = zip(images.tolist(), labels.tolist(), boxes.tolist(), strict=True)
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in (3, 9)],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
        "annotations": [
            {"id": number, "image_id": image, "category_id": label, "bbox": box}
            for number, (image, label, box) in enumerate(rows, start=1)
        ],
    }
    source = open_source(write(content), "train")
    scores, found = np.float32([0.9, 0.8, 0.7, 0.6, 0.5]), boxes + shifts
    found[:, 2:] += found[:, :2]
    truth = [source.annotation(i) for i in range(2)]
    mine = [images == each.image_id for each in truth]
    detections = [Detections(found[rows], scores[rows], labels[rows]) for rows in mine]
    stats = coco_evaluation(truth, detections, source.class_names).stats
    # pycocotools 2.0.11 of the same json, where the areas are width times height.
    expected = [0.71262376, 1, 1, 0.6, 0.62524752, 0.90099010, 0.625, 0.725, 0.725, 0.6, 0.65, 0.9]
    np.testing.assert_allclose(stats, expected, atol=1e-8)


@pytest.mark.parametrize("name", ["a\0b.png", "\ud800.png"])
def test_names_that_no_file_can_have(write, name):
    content = copy.deepcopy(CONTENT)
    content["images"][0]["file_name"] = name
    fails(write(content), f"images[0].file_name is {name!r}, which no file can be called")
