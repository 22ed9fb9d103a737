import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask

from vitlab.class_colors import class_colors
from vitlab.data.annotated import AnnotatedSource
from vitlab.data.annotations import RLE, Annotation, Annotations, Object, Record
from vitlab.data.pipeline import train_batches
from vitlab.data.preprocess import Preprocess
from vitlab.data.preview import draw_segments
from vitlab.data.segments import Segments, from_instances, from_objects, without_empty
from vitlab.data.sources import open_source
from vitlab.errors import InputError

FIXTURES = Path(__file__).parents[1] / "fixtures"
DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def drawn():
    """Polygons of objects, and the masks that pycocotools makes of them."""
    with np.load(FIXTURES / "segments.npz") as arrays:
        height, width = arrays["size"].tolist()
        polygons = np.split(arrays["points"], arrays["ends"][:-1])
        count = len(arrays["masks"])
        objects = [[] for _ in range(count)]
        for number, polygon in zip(arrays["objects"], polygons, strict=True):
            objects[number].append(polygon)
        bits = np.unpackbits(arrays["masks"], axis=1, count=height * width)
        return [tuple(each) for each in objects], bits.reshape(count, height, width).astype(bool)


def annotation(outlines, size, crowd=None, labels=None):
    """Objects with these outlines in an image of (height, width)."""
    none = np.zeros(len(outlines), bool)
    return Annotation(
        image_id=1,
        width=size[1],
        height=size[0],
        boxes=np.zeros((len(outlines), 4)),
        labels=np.arange(len(outlines), dtype=np.int32) if labels is None else np.array(labels),
        crowd=none if crowd is None else np.array(crowd),
        difficult=none,
        area=np.zeros(len(outlines)),
        segmentations=tuple(outlines),
    )


def test_polygons_cover_the_pixels_that_they_cover_in_pycocotools(drawn):
    outlines, masks = drawn
    seen = 0
    for outline, mask in zip(outlines, masks, strict=True):
        segments = from_objects(annotation([outline], mask.shape), background=1)
        assert segments.map.dtype == segments.labels.dtype == np.int32
        assert segments.crowd.dtype == bool
        assert segments.labels.tolist() == [0, 1][0 if mask.any() else 1 :]
        np.testing.assert_array_equal(segments.map == 0, mask if mask.any() else ~mask)
        seen += mask.any()
    assert 150 < seen < 200


@pytest.mark.parametrize("as_masks", [False, True])
def test_small_objects_lie_on_large_ones_and_crowds_below_all(drawn, as_masks):
    outlines, masks = drawn
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(20):
        chosen = rng.choice(len(masks), 8, replace=False)
        crowd = rng.random(8) < 0.3
        painted, areas = np.full(masks.shape[1:], 8), masks[chosen].sum(axis=(1, 2))
        for place in sorted(range(8), key=lambda i: (not crowd[i], -areas[i])):
            painted[masks[chosen[place]]] = place
        found = [RLE.of(masks[i]) if as_masks else outlines[i] for i in chosen]
        labels = rng.integers(0, 3, 8)
        segments = from_objects(annotation(found, painted.shape, crowd, labels), background=3)
        left = np.unique(painted)
        covered += len(left) < 9
        np.testing.assert_array_equal(left[segments.map], painted)
        np.testing.assert_array_equal(segments.labels, np.append(labels, 3)[left])
        np.testing.assert_array_equal(segments.crowd, np.append(crowd, False)[left])
    assert covered


def test_what_has_the_greater_z_lies_on_top():
    small, large = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    small[1:3, 1:3] = True
    objects = annotation(
        [RLE.of(small), RLE.of(large), RLE.of(small)], (4, 4), [False] * 2 + [True]
    )
    for z, seen in (([0, 0, 9], [0, 1]), ([0, 1, 9], [1]), ([-1, -2, 0], [0, 1])):
        found = from_objects(dataclasses.replace(objects, z=np.array(z)), background=3)
        assert found.labels.tolist() == seen


def test_an_image_without_objects_is_background():
    segments = from_objects(annotation([], (3, 4)), background=7)
    assert segments.map.tolist() == [[0] * 4] * 3
    assert segments.labels.tolist() == [7]


def test_an_object_that_covers_the_image_leaves_no_background():
    full = RLE.of(np.ones((3, 4), bool))
    segments = from_objects(annotation([full], (3, 4)), background=7)
    assert segments.labels.tolist() == [0]


@pytest.mark.parametrize("density", [0, 0.1, 0.5, 1])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (40, 3)])
def test_masks_as_run_lengths_and_back(shape, density):
    mask = np.random.default_rng(0).random(shape) < density
    rle = RLE.of(mask)
    assert rle.size == shape
    assert all(rle.counts[1:])  # Only the first run, of zeros, may be empty.
    np.testing.assert_array_equal(rle.mask(), mask)
    packed = coco_mask.frPyObjects({"size": list(shape), "counts": list(rle.counts)}, *shape)
    assert packed == coco_mask.encode(np.asfortranarray(mask, np.uint8))


def test_segments_of_numbered_objects():
    objects = annotation([None] * 3, (2, 3), labels=[5, 2, 2])
    numbers = np.array([[0, 1, 1], [3, 3, 0]])
    segments = from_instances(numbers, objects, background=9)  # The second is hidden.
    assert segments.map.tolist() == [[2, 0, 0], [1, 1, 2]]
    assert segments.labels.tolist() == [5, 2, 9]
    with pytest.raises(InputError, match="^the mask has an object 4 but the image has 3 objects$"):
        from_instances(numbers + 1, objects, background=9)


def test_void_has_no_label_and_no_place():
    segments = Segments(
        np.array([[0, -1, 2], [2, 3, -1]], np.int32),
        np.array([4, 5, 6, 7], np.int32),
        np.array([False, False, False, True]),
    )
    assert segments.semantic().tolist() == [[4, -1, 6], [6, -1, -1]]
    assert segments.semantic().dtype == np.int16
    assert segments.present().tolist() == [True, False, True, True]
    fewer = without_empty(segments)
    assert fewer.map.tolist() == [[0, -1, 1], [1, 2, -1]]
    assert (fewer.labels.tolist(), fewer.crowd.tolist()) == ([4, 6, 7], [False, False, True])
    nothing = without_empty(Segments(np.full((2, 2), -1), np.zeros(1, np.int32), np.zeros(1, bool)))
    assert len(nothing) == 0
    assert nothing.semantic().tolist() == [[-1, -1]] * 2


def source(*objects, size=(6, 4)):
    record = Record("/set/a.jpg", "a.jpg", 7, size, objects)
    names = ("cat", "dog")
    return AnnotatedSource("set", "train", lambda name: Annotations(names, (3, 9), (record,)))


def test_a_box_is_not_filled_for_want_of_a_mask():
    square = np.array([[1, 1], [3, 1], [3, 3], [1, 3.0]])
    found = source(Object("dog", (1, 1, 3, 3), segmentation=(square,)), Object("cat", (0, 0, 2, 2)))
    with pytest.raises(InputError, match="^/set/a.jpg: object 'cat' has a box but no mask$"):
        found.segments(0)


def test_labels_of_objects_and_of_their_segments_agree():
    square = np.array([[1, 1], [3, 1], [3, 3], [1, 3.0]])
    found = source(Object("dog", (1, 1, 3, 3), segmentation=(square,)))
    assert found.segment_names == ("cat", "dog", "background")
    assert found.things == (True, True, False)
    segments = found.segments(0)
    assert segments.labels.tolist() == [1, 2]
    assert (segments.map == 0).nonzero()[0].tolist() == [1, 1, 2, 2]


@pytest.fixture
def coco128():
    if not (DATA / "coco128").is_dir():
        pytest.skip("needs the first images of COCO in ../shared/data/coco128")
    folder = DATA / "coco128"
    path = folder / "annotations" / "instances_train2017.json"
    return path, f"coco:{path}?images={folder}/train2017"


def test_segments_of_coco128(coco128):
    path, spec = coco128
    some = open_source(spec, "train[:16]")
    raw = {}
    for entry in json.loads(path.read_text())["annotations"]:
        raw.setdefault(entry["image_id"], []).append(entry)
    for index in range(len(some)):
        segments, objects = some.segments(index), some.annotation(index)
        assert segments.map.shape == (objects.height, objects.width)
        covered = np.zeros(segments.map.shape, bool)
        for entry in raw.get(objects.image_id, []):
            packed = coco_mask.frPyObjects(entry["segmentation"], *covered.shape)
            packed = coco_mask.merge(packed) if isinstance(packed, list) else packed
            covered |= coco_mask.decode(packed).astype(bool)
        assert some.segment_names[segments.labels[-1]] == "background"
        np.testing.assert_array_equal(segments.map != len(segments) - 1, covered)


def test_worker_processes_see_the_same_segments(coco128):
    some, ops = open_source(coco128[1], "train[:8]"), "semantic|pad_segments(60)"
    preprocess = Preprocess.parse(
        f"decode|random_scale(64)|segment_crop(64)|{ops}|value_range(0,1)"
    )
    batches = []
    for workers in (0, 1):
        running = train_batches(some, preprocess, batch_size=8, seed=0, workers=workers)
        batches.append(next(running))
        running.close()
    here, there = batches
    assert here.keys() == there.keys()
    for key in here:
        np.testing.assert_array_equal(here[key], there[key])


def test_what_is_drawn():
    places = np.array([[0, 0, 1], [2, -1, 1]], np.int32)
    segments = Segments(places, np.array([0, 1, 2], np.int32), np.array([False, True, False]))
    picture = draw_segments(np.zeros((2, 3, 3), np.uint8), segments, ("cat", "dog", "background"))
    zoom = 426
    pixels = np.asarray(picture)
    assert pixels.shape[0] == 2 * zoom
    assert pixels.shape[1] > 3 * zoom
    centres = pixels[zoom // 2 :: zoom, zoom // 2 : 3 * zoom : zoom].astype(int)
    part = centres[0, [0, 2]] / class_colors(np.arange(2)).clip(min=1)
    filled = class_colors(np.arange(2)) > 0
    assert part[filled].min() > 0.3  # translucent, on black
    np.testing.assert_allclose(part[filled], part[filled][0], atol=0.02)
    assert not part[~filled].any()
    assert not centres[1, :2].any()  # Neither the background nor void is filled.
    assert (pixels[100, 2 * zoom] == 255).all()  # A border,
    assert not (pixels[100, zoom] == 255).all()  # but not within a segment.
