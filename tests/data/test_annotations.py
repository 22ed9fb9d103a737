import pickle

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask

from vitlab.class_colors import class_colors
from vitlab.data.annotated import AnnotatedSource
from vitlab.data.annotations import (
    RLE,
    Annotations,
    Object,
    Record,
    brief,
    duplicates,
)
from vitlab.data.preprocess import Preprocess
from vitlab.data.preview import draw_classes, draw_objects
from vitlab.data.targets import check_room
from vitlab.errors import InputError
from vitlab.evaluation.boxes import Detections, check


def source(*objects, size=(20, 10), split="train"):
    """One image of 20 x 10 pixels with these objects."""
    record = Record("/set/a.jpg", "a.jpg", 7, size, objects)
    return AnnotatedSource(
        "set", split, lambda name: Annotations(("cat", "dog"), (3, 9), (record,))
    )


def test_objects_become_arrays():
    polygon = np.array([[1, 2], [3, 4], [5, 2.0]])
    found = source(
        Object("dog", (1, 2, 5, 4), crowd=True, segmentation=(polygon,)),
        Object("cat", (0.5, 0, 20, 10), difficult=True, area=12.5),
    )
    assert (found.class_names, found.category_ids, found.notes) == (("cat", "dog"), (3, 9), [])
    each = found.annotation(0)
    assert (len(each), each.image_id, each.width, each.height) == (2, 7, 20, 10)
    assert each.boxes.tolist() == [[1, 2, 5, 4], [0.5, 0, 20, 10]]
    assert each.boxes.dtype == np.float64
    assert each.labels.tolist() == [1, 0]
    assert each.labels.dtype == np.int32
    assert each.crowd.tolist() == [True, False]
    assert each.difficult.tolist() == [False, True]
    assert each.area.tolist() == [4, 12.5]  # of the triangle, and as it was said
    (outline,), none = each.segmentations
    assert outline.tolist() == polygon.tolist()
    assert none is None
    assert pickle.loads(pickle.dumps(found)).annotation(0).area.tolist() == [4, 12.5]


def test_an_image_may_have_no_object():
    each = source().annotation(0)
    assert len(each) == 0
    assert each.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("box", "inside", "area", "note"),
    [
        ((-0.9, 0, 20.9, 10), [0, 0, 20, 10], 218, None),  # A pixel of rounding is ordinary.
        (
            (-3, 1, 5, 12),
            [0, 1, 5, 10],
            88,
            "box (-3, 1, 5, 12) of 'cat' reaches outside of the 20 x 10 image: training clips it",
        ),
        ((5, 1, 5, 9), [5, 1, 5, 9], 0, "a box of 'cat' has no area: training leaves it out"),
        ((8, 1, 5, 9), [8, 1, 8, 9], 0, "a box of 'cat' has no area"),
        ((8, 9, 5, 1), [8, 9, 8, 9], 0, "a box of 'cat' has no area"),
        ((25, 1, 30, 9), [20, 1, 20, 9], 40, "lies outside of the 20 x 10 image: training leaves"),
    ],
)
def test_boxes_stay_as_annotated_and_what_is_odd_is_noted(box, inside, area, note):
    found = source(Object("cat", box))
    x0, y0, x1, y1 = box
    assert found.annotation(0).boxes.tolist() == [[x0, y0, max(x0, x1), max(y0, y1)]]
    assert found.annotation(0).inside().tolist() == [inside]
    assert found.annotation(0).area.tolist() == pytest.approx([area])
    check([found.annotation(0)], [Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))], 2)
    if note is None:
        assert found.notes == []
    else:
        assert len(found.notes) == 1
        assert found.notes[0].startswith("/set/a.jpg: ")
        assert note in found.notes[0]
        assert not any("\n" in line for line in found.notes)


def test_a_size_that_is_not_annotated_comes_from_the_image(tmp_path, write_image):
    path = str(write_image(tmp_path / "a.png", size=(6, 4)))
    record = Record(path, "a.png", 1, None, (Object("cat", (0, 0, 9, 9)),))
    found = AnnotatedSource("set", "train", lambda name: Annotations(("cat",), (1,), (record,)))
    assert found.annotation(0).inside().tolist() == [[0, 0, 6, 4]]
    assert found[0]["image"].startswith(b"\x89PNG")
    assert found[0]["objects"].boxes is found.annotation(0).boxes
    assert found.describe(0) == path
    with pytest.raises(InputError, match=r"^/set/a.jpg: cannot be read"):
        source(size=None)


def test_splits_are_put_together_and_must_have_the_same_classes():
    def read(name):
        names = ("cat", "dog") if name == "other" else ("cat",)
        many = 0 if name == "empty" else 3
        records = (Record(f"/{name}/{i}", f"{i}", i, (1, 1), ()) for i in range(many))
        return Annotations(names, (1, 2)[: len(names)], tuple(records), (f"{name} is odd",))

    both = AnnotatedSource("set", "train[1:]+val", read)
    assert len(both) == 5
    assert both.notes == ["train is odd", "val is odd"]
    with pytest.raises(InputError, match="^set: the split other has the classes cat, dog but"):
        AnnotatedSource("set", "train+other", read)
    with pytest.raises(InputError, match="^set: the split empty holds no image"):
        AnnotatedSource("set", "empty", read)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7), (40, 3)])
def test_masks_are_those_of_coco(height, width):
    rng = np.random.default_rng(0)
    for density in (0, 0.1, 0.5, 1):
        pixels = rng.random((height, width)) < density
        ends = np.flatnonzero(np.diff(pixels.T.ravel(), prepend=False, append=~pixels[-1, -1]))
        counts = np.diff(ends, prepend=0).tolist()
        rle = RLE((height, width), tuple(counts))
        packed = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        np.testing.assert_array_equal(rle.mask(), pixels)
        np.testing.assert_array_equal(rle.mask(), coco_mask.decode(packed) > 0)


def test_duplicates():
    assert duplicates([3, 1, 3, 2, 1, 3]) == [3, 1]
    assert duplicates([]) == []


def test_what_is_drawn_has_the_colours_of_the_classes():
    polygon = np.array([[4, 4], [8, 4], [8, 8], [4, 8.0]])
    mask = RLE((10, 20), (150, 50))  # The last five columns.
    found = source(
        Object("cat", (2, 3, 9, 9), segmentation=(polygon,)),
        Object("dog", (15, 0, 20, 10), crowd=True, difficult=True, segmentation=mask),
        Object("dog", (12, 8, 12, 8)),  # Has no area, and is seen nevertheless.
        Object("cat", (-4, 2, 1, 8)),  # Is drawn with a border at the image's edge.
    )
    picture = draw_objects(np.zeros((10, 20, 3), np.uint8), found.annotation(0), ("cat", "dog"))
    zoom = 64
    assert picture.size == (20 * zoom, 10 * zoom)
    pixels = np.asarray(picture)
    cat, dog = class_colors(np.arange(2))
    np.testing.assert_array_equal(pixels[9 * zoom - 1, 3 * zoom], cat)
    np.testing.assert_array_equal(pixels[8 * zoom + 4, 12 * zoom + 2], dog)
    np.testing.assert_array_equal(pixels[5 * zoom, 0], cat)
    inside, masked, outside = (pixels[y * zoom, x * zoom] for y, x in ((7, 5), (5, 17), (7, 11)))
    np.testing.assert_allclose(inside, cat * 0.392, atol=2)  # translucent, on black
    np.testing.assert_allclose(masked, dog * 0.392, atol=2)
    assert outside.max() == 0
    small = draw_objects(np.zeros((10, 3000, 3), np.uint8), source().annotation(0), ())
    assert small.size == (3000, 10)


@pytest.mark.parametrize("names", ["äöüßéñøłş", "αβγδω", "бвгдж"])
def test_letters_of_many_languages_are_told_apart(names):
    """What a font lacks it draws as one and the same box."""
    dark = np.zeros((60, 80, 3), np.uint8)
    pictures = {draw_classes(dark, [(name, 0.5)]).tobytes() for name in (*names, "\uffff")}
    assert len(pictures) == len(names) + 1


def test_room_for_boxes_is_checked_against_the_annotations():
    objects = [Object("cat", (i, 1, i + 2, 4)) for i in range(4)]
    found = source(
        *objects,
        Object("cat", (3, 3, 3, 5)),
        Object("cat", (0, 0, 9, 9), crowd=True),
        Object("cat", (20, 0, 30, 9)),
    )
    assert found.most_objects() == 4
    ops = Preprocess.parse("decode|pad_boxes(4)|value_range(-1,1)").ops
    check_room(ops, found)
    ops = Preprocess.parse("decode|pad_boxes(3)|value_range(-1,1)").ops
    said = r"pad_boxes\(3\), but an image has up to 4 of them: pad_boxes\(4\) has room for all$"
    with pytest.raises(InputError, match=said):
        check_room(ops, found)


def test_room_for_segments_is_for_all_objects_and_the_background():
    square = (np.array([[1, 1], [3, 1], [3, 3], [1, 3.0]]),)
    objects = [Object("cat", (1, 1, 3, 3), crowd=i == 0, segmentation=square) for i in range(5)]
    found = source(*objects)
    assert found.most_segments() == 5
    check_room(Preprocess.parse("decode|pad_segments(5)|value_range(-1,1)").ops, found)
    with pytest.raises(InputError, match=r"pad_segments\(4\), but an image has up to 5 of them"):
        check_room(Preprocess.parse("decode|pad_segments(4)|value_range(-1,1)").ops, found)


def test_values_in_errors_are_short():
    assert brief([1, "a"]) == "[1, 'a']"
    nested = ["x"]
    for _ in range(60):  # Written out, more than there are atoms on Earth.
        nested = [nested] * 10
    assert len(brief(nested)) < 200
    assert len(brief("x" * 10**6)) < 100
