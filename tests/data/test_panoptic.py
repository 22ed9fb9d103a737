import copy
import json

import numpy as np
import pytest
from PIL import Image

from tests.data.refusals import refused
from vitlab.data.pipeline import train_batches
from vitlab.data.preprocess import Preprocess
from vitlab.data.sources import open_source
from vitlab.data.targets import check_room
from vitlab.errors import InputError

# 70000 has all three colours: 112 + 17 * 256 + 1 * 65536.
IDS = np.array([[70000, 70000, 3], [0, 500, 3]])
CONTENT = {
    "images": [{"id": 9, "file_name": "a.jpg", "width": 3, "height": 2}],
    "categories": [
        {"id": 200, "name": "rug", "isthing": 0, "supercategory": "floor"},
        {"id": 1, "name": "person", "isthing": 1},
        {"id": 17, "name": "cat", "isthing": 1},
    ],
    "annotations": [
        {
            "image_id": 9,
            "file_name": "a.png",
            "segments_info": [
                {"id": 70000, "category_id": 17, "bbox": [0, 0, 2, 1], "area": 2, "iscrowd": 0},
                {"id": 3, "category_id": 200, "bbox": [2, 0, 1, 2], "area": 2, "iscrowd": 0},
                {"id": 500, "category_id": 1, "bbox": [1, 1, 1, 1], "area": 1, "iscrowd": 1},
            ],
        }
    ],
}


@pytest.fixture
def write(tmp_path):
    """write(change, ids) writes a json, changed by a function, its image and its PNG."""

    def write(change=lambda content: None, ids=IDS, name="train"):
        content = copy.deepcopy(CONTENT)
        change(content)
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        Image.new("RGB", (3, 2)).save(tmp_path / "a.jpg")
        (tmp_path / name).mkdir(exist_ok=True)
        colors = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
        Image.fromarray(colors).save(tmp_path / name / "a.png")
        return f"panoptic:{tmp_path}/{name}.json"

    return write


def test_segments(write):
    source = open_source(write(), "train")
    assert source.segment_names == source.class_names == ("person", "cat", "rug")
    assert source.things == (True, True, False)
    assert source.category_ids == (1, 17, 200)
    segments = source.segments(0)
    # In order of their ids: 3, 500, 70000.
    assert segments.map.tolist() == [[2, 2, 0], [-1, 1, 0]]
    assert segments.map.dtype == segments.labels.dtype == np.int32
    assert segments.labels.tolist() == [2, 0, 1]
    assert segments.crowd.tolist() == [False, True, False]
    assert segments.semantic().tolist() == [[1, 1, 2], [-1, -1, 2]]
    example = source[0]
    assert example.keys() == {"image", "objects", "segments"}
    np.testing.assert_array_equal(example["segments"]().map, segments.map)


def test_room_for_segments_is_checked_against_the_json(write):
    source = open_source(write(), "train")
    check_room(Preprocess.parse("decode|pad_segments(2)|value_range(0,1)").ops, source)
    with pytest.raises(InputError, match=r"pad_segments\(1\), but an image has up to 2 of"):
        check_room(Preprocess.parse("decode|pad_segments(1)|value_range(0,1)").ops, source)


def test_things_are_objects(write):
    source = open_source(write(), "train")
    found = source.annotation(0)
    assert (found.image_id, found.width, found.height) == (9, 3, 2)
    assert found.labels.tolist() == [0, 1]
    assert found.boxes.tolist() == [[1, 1, 2, 2], [0, 0, 2, 1]]
    assert found.crowd.tolist() == [True, False]
    assert found.area.tolist() == [1, 2]
    masks = [each.mask().tolist() for each in found.segmentations]
    assert masks == [
        [[False, False, False], [False, True, False]],
        [[True, True, False], [False, False, False]],
    ]
    bare = source[0]["objects"]
    assert bare.boxes.tolist() == found.boxes.tolist()
    assert bare.segmentations == ()


def test_where_images_and_masks_are(write, tmp_path, monkeypatch):
    for name in ("train", "val"):
        write(name=name)
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "a.jpg").rename(tmp_path / "images" / name / "a.jpg")
    monkeypatch.setenv("HOME", str(tmp_path))
    source = open_source("panoptic:~/{split}.json?images=~/images/{split}", "train+val")
    places = [source.describe(i).removeprefix(f"{tmp_path}/images/") for i in range(2)]
    assert sorted(places) == ["train/a.jpg", "val/a.jpg"]
    assert [len(source.segments(i)) for i in range(2)] == [3, 3]
    (tmp_path / "train").rename(tmp_path / "ids")
    spec = f"panoptic:{tmp_path}/train.json"
    refused(f"{tmp_path}/train/a.png: cannot be read (No such file", spec)
    assert len(open_source(f"{spec}?masks={tmp_path}/ids", "train").segments(0)) == 3
    refused("the only split is train: 'val' does not exist", spec, "val")


def first(content):
    return content["annotations"][0]["segments_info"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.pop("categories"),
            "has no list 'categories': COCO's panoptic json has images",
        ),
        (lambda c: c["categories"][1].pop("isthing"), "categories[1] has no 'isthing'"),
        (
            lambda c: c["categories"][1].update(isthing=2),
            "categories[1].isthing is 2 but must be 0 or 1",
        ),
        (lambda c: c["categories"][1].update(id=17), "categories has the id 17 twice"),
        (lambda c: c["categories"][1].update(name="cat"), "categories has the name 'cat' twice"),
        (
            lambda c: c["annotations"][0].update(image_id=8),
            "annotations[0].image_id is 8, which is not among the images",
        ),
        (
            lambda c: c["annotations"].append(c["annotations"][0]),
            "annotations[1].image_id is 9 for the second time",
        ),
        (lambda c: c["annotations"].clear(), "images[0] (id 9) has no annotation"),
        (lambda c: c["annotations"][0].pop("file_name"), "annotations[0] has no 'file_name'"),
        (lambda c: c["annotations"][0].pop("segments_info"), "has no 'segments_info'"),
        (
            lambda c: c["annotations"][0].update(segments_info={}),
            "annotations[0].segments_info is {} but must be a list",
        ),
        (
            lambda c: c["annotations"][0].update(segments_info=[7]),
            "annotations[0].segments_info[0] must be an object {...}",
        ),
        (lambda c: first(c).update(id=3), "annotations[0].segments_info has the id 3 twice"),
        (
            lambda c: first(c).update(id=0),
            "segments_info[0].id is 0 but must be from 1 to 16777215",
        ),
        (lambda c: first(c).update(id=1 << 24), "id is 16777216 but must be from 1 to 16777215"),
        (
            lambda c: first(c).update(category_id=2),
            "segments_info[0].category_id is 2, which is not among the categories",
        ),
        (lambda c: first(c).update(iscrowd=2), "segments_info[0].iscrowd is 2 but must be 0 or 1"),
        (lambda c: first(c).update(area="x"), "segments_info[0].area is 'x' but must be a finite"),
        (lambda c: first(c).pop("bbox"), "segments_info[0].bbox must be four finite numbers"),
        (
            lambda c: first(c).update(id=4),
            "a.png: has the segment 70000 (2 pixels), which the json",
        ),
        (
            lambda c: c["annotations"][0]["segments_info"].append({"id": 4, "category_id": 200}),
            "a.png: has no pixel of the segment 4 of the json",
        ),
        (
            lambda c: (
                c["images"].append({"id": 10, "file_name": "a.jpg"})
                or c["annotations"].append({**c["annotations"][0], "image_id": 10})
            ),
            "/a.jpg twice",
        ),
    ],
)
def test_what_is_wrong(write, change, message):
    refused(message, write(change))


def test_wrong_masks(write, tmp_path):
    spec = write(ids=IDS[:1])
    refused(f"{tmp_path}/train/a.png: is 3 x 1 but its image {tmp_path}/a.jpg is 3 x 2", spec)
    path = tmp_path / "train" / "a.png"
    Image.new("L", (3, 2)).save(path)
    refused(f"{path}: is grey or has a palette, but ids are in red, green and blue", spec)
    path.write_bytes(b"x")
    refused(f"{path}: the image (1 bytes) is not a PNG or TIFF", spec)


def test_stuff_needs_no_box_and_void_may_be_all(write):
    def change(content):
        content["annotations"][0]["segments_info"] = [{"id": 3, "category_id": 200}]

    source = open_source(write(change, np.array([[3, 3, 0], [0, 0, 0]])), "train")
    assert len(source.annotation(0)) == 0
    assert source.segments(0).map.tolist() == [[0, 0, -1], [-1] * 3]
    empty = write(lambda c: c["annotations"][0].update(segments_info=[]), IDS * 0)
    assert len(open_source(empty, "train").segments(0)) == 0


def test_worker_processes_see_the_same_segments(write):
    source = open_source(write(), "train")
    ops = Preprocess.parse("decode|flip_lr|pad_boxes(3)|semantic|pad_segments(3)|value_range(0,1)")
    batches = []
    for workers in (0, 1):
        running = train_batches(source, ops, batch_size=4, seed=0, workers=workers)
        batches.append(next(running))
        running.close()
    assert batches[0].keys() == batches[1].keys()
    for key, value in batches[0].items():
        np.testing.assert_array_equal(value, batches[1][key])
    assert batches[0]["segment_label"][0].tolist() == [2, 1, 0]
