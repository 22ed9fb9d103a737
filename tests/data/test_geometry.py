import numpy as np
import pytest

from vitlab.data.annotations import Annotation
from vitlab.data.pipeline import example_rng
from vitlab.data.preprocess import Preprocess
from vitlab.errors import InputError

HEIGHT, WIDTH = 40, 60


def annotation(boxes, crowd=None, size=(WIDTH, HEIGHT)):
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    none = np.zeros(len(boxes), bool)
    return Annotation(
        image_id=7,
        width=size[0],
        height=size[1],
        boxes=boxes,
        labels=np.arange(len(boxes), dtype=np.int32),
        crowd=none if crowd is None else np.array(crowd),
        difficult=none,
        area=np.ones(len(boxes)),
    )


def scene(boxes):
    """White rectangles on black, and their boxes."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for x0, y0, x1, y1 in boxes:
        image[y0:y1, x0:x1] = 255
    return {"image": image, "objects": annotation(boxes)}


def run(ops, example, draw=0):
    return Preprocess.parse(f"{ops}|value_range(0,1)")(example, example_rng(0, 0, draw))


def bounds(image):
    rows, columns = np.nonzero(image[..., 0] > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


BOXES = [(10, 8, 30, 26)]


@pytest.mark.parametrize(
    "ops",
    [
        "resize((80,120))",
        "resize((20,90))",
        "letterbox(64)",
        "letterbox((48,120))",
        "letterbox(64)|flip_lr(1)",
        "flip_lr(1)|resize((80,60))",
        "scale_jitter(64,0.5,2.0)",
        "flip_lr|scale_jitter((64,96),0.3,0.9)",
        "random_size_crop(20,50,(30,60),p=1)|flip_lr",
        "random_size_crop(20,50,40,p=1)|scale_jitter(64,0.8,1.6)|flip_lr",
    ],
)
def test_boxes_are_where_their_objects_are(ops):
    seen = 0
    for draw in range(20):
        example = run(f"{ops}|pad_boxes(3)", scene(BOXES), draw)
        assert example["box_mask"].tolist()[1:] == [False, False]
        if example["box_mask"][0] and (example["boxes"][0, 2:] - example["boxes"][0, :2] > 3).all():
            seen += 1
            # A resized edge is soft: half of its brightness is within a pixel of the edge.
            np.testing.assert_allclose(example["boxes"][0], bounds(example["image"]), atol=1.01)
    assert seen > 5


def test_the_affine_map_leads_back_to_the_original_image():
    ops = "flip_lr(1)|random_size_crop(30,50,50,p=1)|scale_jitter(64,0.5,0.9)|pad_boxes(2)"
    for draw in range(10):
        example = run(ops, scene([(28, 18, 32, 22)]), draw)
        if not example["box_mask"][0]:
            continue
        scale, offset = np.split(np.tile(example["affine"].reshape(2, 2), 2).reshape(2, 4), 2)
        back = ((example["boxes"][0] - offset[0]) / scale[0]).reshape(2, 2)
        back = np.sort(back, axis=0).ravel()
        inside = (example["boxes"][0] > 0).all() and (
            example["boxes"][0].reshape(2, 2) < example["content"][::-1]
        ).all()
        if inside:
            np.testing.assert_allclose(back, [28, 18, 32, 22], atol=1e-4)


def test_letterbox_pads_below_and_on_the_right():
    example = run("letterbox(90)|pad_boxes(1)", scene(BOXES))
    assert example["content"].tolist() == [60, 90]
    assert not example["image"][60:].any()
    np.testing.assert_allclose(example["boxes"][0], np.array(BOXES[0]) * 1.5)
    plain = run("letterbox(90)", {"image": scene(BOXES)["image"], "label": 1})
    assert plain.keys() == {"image", "label"}
    np.testing.assert_array_equal(plain["image"], example["image"])


def test_mirroring_a_padded_image_leaves_the_padding_where_it_is():
    example = run("letterbox((40,100))|flip_lr(1)|pad_boxes(1)", scene(BOXES))
    assert example["content"].tolist() == [40, 60]
    np.testing.assert_allclose(example["boxes"][0], [30, 8, 50, 26])
    assert bounds(example["image"]) == [30, 8, 50, 26]


def test_crowds_and_boxes_without_area_are_left_out():
    objects = annotation([(1, 1, 5, 5), (2, 2, 2, 9), (0, 0, 9, 9)], crowd=[False, False, True])
    example = run(
        "pad_boxes(4)", {"image": np.zeros((HEIGHT, WIDTH, 3), np.uint8), "objects": objects}
    )
    assert example["box_mask"].tolist() == [True, False, False, False]
    assert example["boxes"].dtype == np.float32
    assert example["boxes"].tolist() == [[1, 1, 5, 5], [0] * 4, [0] * 4, [0] * 4]
    assert example["box_label"].tolist() == [0, 0, 0, 0]
    assert "content" not in example


def test_an_image_without_objects_is_an_ordinary_one():
    example = run("flip_lr(1)|scale_jitter(64)|pad_boxes(2)", scene([]))
    assert not example["box_mask"].any()


def test_annotations_are_dropped_where_no_boxes_are_wanted():
    example = run("random_crop(16)|rotate(20)", scene(BOXES))
    assert example.keys() == {"image"}


@pytest.mark.parametrize(
    ("ops", "fault"),
    [
        ("central_crop(9)|pad_boxes(3)", "column 1: central_crop cannot move boxes: beside "),
        ("flip_lr|randaug|pad_boxes(3)", "column 9: randaug cannot move boxes"),
        ("pad_boxes(3)|flip_lr", "column 14: flip_lr cannot come after pad_boxes"),
        ("letterbox(9)|resize(5)|pad_boxes(3)", "column 14: resize cannot come after letterbox"),
        ("scale_jitter(9)|letterbox(5)", "column 17: letterbox cannot come after scale_jitter"),
        ("pad_boxes(0)", "max_boxes must be a whole number from 1 to"),
    ],
)
def test_a_string_that_would_misplace_boxes_is_refused(ops, fault):
    with pytest.raises(InputError, match=fault.replace("(", r"\(")):
        Preprocess.parse(f"{ops}|value_range(0,1)")


def test_more_objects_than_places_are_refused():
    with pytest.raises(InputError, match=r"^pad_boxes\(1\): the image has 2 objects: make room"):
        run("pad_boxes(1)", scene([(1, 1, 5, 5), (7, 7, 9, 9)]))


def test_a_source_without_boxes_is_refused():
    with pytest.raises(InputError, match="^pad_boxes: the source has no boxes$"):
        run("pad_boxes(1)", {"image": np.zeros((9, 9, 3), np.uint8), "label": 0})


def test_an_image_of_another_size_than_annotated_is_refused():
    example = {"image": np.zeros((9, 8, 3), np.uint8), "objects": annotation([])}
    with pytest.raises(InputError, match="has 8 x 9 pixels but its annotation says 60 x 40"):
        run("pad_boxes(1)", example)
