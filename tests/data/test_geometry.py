import dataclasses

import numpy as np
import pytest
from PIL import Image

from vitlab.data.annotations import Annotation
from vitlab.data.pipeline import example_rng
from vitlab.data.preprocess import Preprocess
from vitlab.data.segments import Segments
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
        "flip_ud(1)|resize((80,60))",
        "letterbox((96,64))|flip_ud(1)|flip_lr(1)",
        "scale_jitter(64,0.5,2.0)",
        "flip_lr|scale_jitter((64,96),0.3,0.9)",
        "random_size_crop(20,50,(30,60),p=1)|flip_lr",
        "random_size_crop(20,50,40,p=1)|scale_jitter(64,0.8,1.6)|flip_lr|flip_ud",
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
    ops = "flip_lr(1)|random_size_crop(30,50,50,p=1)|scale_jitter(64,0.5,0.9)|flip_ud|pad_boxes(2)"
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
    example = run("letterbox((100,60))|flip_ud(1)|pad_boxes(1)", scene(BOXES))
    assert example["content"].tolist() == [40, 60]
    np.testing.assert_allclose(example["boxes"][0], [10, 14, 30, 32])
    assert bounds(example["image"]) == [10, 14, 30, 32]


def test_an_image_is_mirrored_one_way_whether_or_not_the_other():
    """Of flips both ways, as of images without an upright, each of the four is as likely."""
    seen = [bounds(run("flip_lr|flip_ud", scene(BOXES), draw)["image"]) for draw in range(400)]
    corners, counts = np.unique([box[:2] for box in seen], axis=0, return_counts=True)
    assert corners.tolist() == [[10, 8], [10, 14], [30, 8], [30, 14]]
    np.testing.assert_allclose(counts / 400, 1 / 4, atol=0.09)  # four standard errors


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


@pytest.mark.parametrize("ops", ["", "flip_ud(0)|", "flip_lr(1)|flip_lr(1)|", "letterbox(60)|"])
def test_targets_do_not_reach_outside_whatever_moves_them(ops):
    boxes = [(-9, -9, -2, -2), (-5, 30, 8, 44), (50, 35, 70, 50), (60, 0, 75, 9)]
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    example = run(f"{ops}pad_boxes(3)", {"image": image, "objects": annotation(boxes)})
    assert example["box_mask"].tolist() == [True, True, False]
    assert example["box_label"].tolist() == [1, 2, 0]
    assert example["boxes"].tolist() == [[0, 30, 8, 40], [50, 35, 60, 40], [0] * 4]


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


def cells(labels=(4, 0, 2, 3, 1, 5), void=0, crowd=()):
    """An image of cells, whose grey levels say to which segment a pixel belongs: 20 for the first,
    40 for the second and so on, 0 for void."""
    rng = np.random.default_rng(len(labels))
    points = rng.uniform(0, [HEIGHT, WIDTH], (len(labels) + void, 2))
    pixels = np.stack(np.mgrid[:HEIGHT, :WIDTH], axis=-1) + 0.5
    places = np.linalg.norm(pixels[:, :, None] - points, axis=-1).argmin(axis=-1)
    places[places >= len(labels)] = -1
    segments = Segments(
        places.astype(np.int32),
        np.array(labels, np.int32),
        np.isin(np.arange(len(labels)), crowd),
    )
    image = np.repeat(levels(places)[..., None], 3, axis=2)
    return {"image": image, "segments": lambda: segments}


def levels(places):
    return (20 * (places + 1)).astype(np.uint8)


def inner(places, margin):
    """The pixels that lie so far from the border of their segment, and of the image."""
    same = np.zeros(places.shape, bool)
    same[margin:-margin, margin:-margin] = True
    height, width = places.shape
    for y in range(-margin, margin + 1):
        for x in range(-margin, margin + 1):
            rows = slice(max(0, y), height + min(0, y)), slice(max(0, -y), height + min(0, -y))
            columns = slice(max(0, x), width + min(0, x)), slice(max(0, -x), width + min(0, -x))
            same[rows[0], columns[0]] &= places[rows[0], columns[0]] == places[rows[1], columns[1]]
    return same


MOVES = [
    "resize((80,120){})",
    "resize((23,90){})",
    "resize(17{})",
    "resize_small(31{})",
    "flip_lr(1)|resize((80,60){})",
    "letterbox(64{})|flip_lr",
    "flip_ud(1)|letterbox((90,50){})",
    "letterbox((90,50){})|flip_ud(1)",
    "scale_jitter(64,0.5,2.0{})|flip_lr",
    "random_size_crop(20,50,(30,60),1{})|flip_lr",
    "random_scale(40{})|flip_lr",
    "random_scale(40,0.3,1.5{})|segment_crop((32,48))|flip_lr",
    "segment_crop(64)|flip_ud",
    "segment_crop(16,1)",
    "random_size_crop(20,50,40,1{})|scale_jitter(64,0.8,1.6{})|flip_lr",
]


@pytest.mark.parametrize("ops", MOVES)
@pytest.mark.parametrize("void", [0, 2])
def test_segments_are_where_their_pixels_are(ops, void):
    words = ',method="nearest"'
    ops = ops.replace("{}", words)
    for draw in range(8):
        example = run(f"{ops}|pad_segments(9)", cells(void=void), draw)
        kept = example["segment_mask"].sum()
        assert np.unique(example["segments"][example["segments"] >= 0]).tolist() == [*range(kept)]
        labels = np.append(example["segment_label"], -1)[example["segments"]]
        # Labels are named in another order than places.
        place = np.array([1, 4, 2, 3, 0, 5, -1])[labels]
        np.testing.assert_array_equal(example["image"][..., 1], levels(place))


@pytest.mark.parametrize("ops", MOVES)
@pytest.mark.parametrize("method", ["bilinear", "area"])
def test_segments_are_where_their_pixels_are_when_those_are_interpolated(ops, method):
    seen = 0
    words = f',method="{method}"'
    ops = ops.replace("{}", words)
    for draw in range(4):
        example = run(f"{ops}|semantic", cells((0, 1, 2, 3)), draw)
        labels, content = example["semantic"], example.get("content", example["image"].shape)
        assert (labels[content[0] :] == -1).all()
        assert (labels[:, content[1] :] == -1).all()
        far = inner(labels[: content[0], : content[1]], margin=3)
        seen += far.sum()
        image = example["image"][: content[0], : content[1], 0]
        expected = levels(labels[: content[0], : content[1]])
        np.testing.assert_array_equal(image[far], expected[far])
    assert seen > 50


@pytest.mark.parametrize("size", [(40, 60), (80, 120), (20, 30), (13, 100), (97, 31), (1, 1)])
def test_maps_are_sampled_at_the_centres_of_pixels_as_pillow_does(size):
    example = cells()
    places = run(f"resize({size})|pad_segments(6)", example)
    labels = np.append(places["segment_label"], -1)[places["segments"]]
    original = Image.fromarray(example["segments"]().semantic().astype(np.uint8))
    expected = original.resize(size[::-1], Image.Resampling.NEAREST)
    # Pillow rounds the places of pixels that lie on a border.
    assert (labels == np.asarray(expected)).mean() > 0.97


def test_boxes_and_segments_move_together():
    boxes = [(10, 8, 30, 26), (35, 5, 52, 38)]
    objects = annotation(boxes)
    places = np.full((HEIGHT, WIDTH), 2, np.int32)
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        places[y0:y1, x0:x1] = i
    segments = Segments(places, np.array([0, 1, 7], np.int32), np.zeros(3, bool))
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    example = {"image": image, "objects": objects, "segments": lambda: segments}
    ops = "random_size_crop(40,50,60,p=1)|scale_jitter(64,0.5,1.6)|flip_lr"
    for draw in range(20):
        found = run(f"{ops}|pad_boxes(2)|semantic|pad_segments(3)", example, draw)
        assert found["affine"].dtype == np.float32
        assert found["content"].dtype == np.int32
        for box, label in zip(found["boxes"], found["box_label"], strict=True):
            if (box[2:] - box[:2] < 2).any():
                continue
            here = found["semantic"] == label
            # The map is rounded to whole pixels twice, and then enlarged by up to 2.6.
            np.testing.assert_allclose(box, bounds(here[..., None] * 255), atol=1.8)
            (place,) = np.unique(found["segments"][here])
            assert found["segment_label"][place] == label


def test_random_scale_keeps_the_aspect_ratio():
    sizes = [run("random_scale(80,0.5,2)", cells(), draw)["image"].shape for draw in range(50)]
    shorter = np.array([height for height, _, _ in sizes])
    assert 40 <= shorter.min() < 55
    assert 145 < shorter.max() <= 160
    assert all(abs(width - 1.5 * height) <= 1 for height, width, _ in sizes)


def test_a_piece_of_more_than_one_class_is_sought():
    # The right fifth of the image is of another class.
    places = np.zeros((HEIGHT, WIDTH), np.int32)
    places[:, 48:] = 1
    segments = Segments(places, np.array([3, 5], np.int32), np.zeros(2, bool))
    example = {"image": np.zeros((HEIGHT, WIDTH, 3), np.uint8), "segments": lambda: segments}

    def mixed(most):
        pieces = [run(f"segment_crop(16,{most})|semantic", example, d) for d in range(100)]
        assert all(piece["image"].shape == (16, 16, 3) for piece in pieces)
        shares = np.array([(piece["semantic"] == 3).mean() for piece in pieces])
        return (np.maximum(shares, 1 - shares) < 0.75).mean()

    # 7 of 45 columns are good; of eleven draws one is then found with 1 - (38 / 45) ** 11 = 0.84.
    assert mixed(1) == pytest.approx(7 / 45, abs=0.12)
    assert mixed(0.75) == pytest.approx(0.84, abs=0.12)


def test_void_and_crowds_do_not_count_for_the_greatest_class():
    places = np.full((HEIGHT, WIDTH), -1, np.int32)
    places[:, :20], places[:10, :20], places[:, 40:] = 0, 1, 2
    segments = Segments(places, np.array([3, 5, 6], np.int32), np.array([False, False, True]))
    example = {"image": np.zeros((HEIGHT, WIDTH, 3), np.uint8), "segments": lambda: segments}
    for draw in range(30):
        found = run("segment_crop((40,30),0.76)|semantic", example, draw)["semantic"]
        shares = np.bincount(found[found >= 0], minlength=6)
        assert shares[3] == 3 * shares[5]


def test_a_crop_without_segments_is_the_first():
    example = cells()
    for draw in range(5):
        first = run("segment_crop(16,1)|semantic", example, draw)
        alone = run("segment_crop(16)", {"image": example["image"]}, draw)
        np.testing.assert_array_equal(alone["image"], first["image"])
        assert alone.keys() == {"image"}


def test_crowds_are_void_and_segments_without_a_pixel_are_left_out():
    example = cells(void=1, crowd=(1,))
    whole = run("pad_segments(8)", example)
    assert whole["segment_label"].tolist() == [4, 2, 3, 1, 5, 0, 0, 0]
    assert whole["segment_label"].dtype == np.int32
    assert whole["segment_mask"].tolist() == [True] * 5 + [False] * 3
    assert whole["segments"].dtype == np.int16
    segments = example["segments"]()
    void = (segments.map == -1) | (segments.map == 1)
    np.testing.assert_array_equal(whole["segments"] == -1, void)
    assert "content" not in whole
    assert whole["affine"].tolist() == [1, 1, 0, 0]
    labels = run("semantic", example)["semantic"]
    assert labels.dtype == np.int16
    np.testing.assert_array_equal(labels == -1, void)
    # Six segments, but no more than two in a piece.
    piece = run("segment_crop(4,1)|pad_segments(2)", cells(), draw=3)
    assert piece["segment_mask"].any()


def test_more_segments_than_places_are_refused():
    with pytest.raises(
        InputError, match=r"^pad_segments\(5\): the image has 6 segments: make room"
    ):
        run("pad_segments(5)", cells())
    assert run("pad_segments(5)", cells(crowd=(2,)))["segment_mask"].all()


def test_evaluation_keeps_the_place_alone_and_finds_broken_masks():
    def broken():
        raise InputError("the mask is broken")

    preprocess = Preprocess.parse("letterbox(64)|semantic|pad_segments(1)|value_range(0,1)")
    preprocess = dataclasses.replace(preprocess, evaluation=True)
    found = preprocess(cells(), example_rng(0, 0, 0))
    assert found.keys() == {"image", "affine", "content"}
    assert found["content"].tolist() == [43, 64]
    assert (found["affine"].dtype, found["content"].dtype) == (np.float32, np.int32)
    np.testing.assert_allclose(found["affine"], [64 / 60, 43 / 40, 0, 0])
    with pytest.raises(InputError, match="the mask is broken"):
        preprocess({**cells(), "segments": broken}, example_rng(0, 0, 0))
    assert run("letterbox(64)", {**cells(), "segments": broken}).keys() == {"image"}


def test_pad_leaves_every_pixel_where_it_is():
    found = run("pad((50,70))|semantic", cells())
    plain = run("semantic", cells())
    np.testing.assert_array_equal(found["image"][:40, :60], plain["image"])
    np.testing.assert_array_equal(found["semantic"][:40, :60], plain["semantic"])
    assert (found["semantic"][40:] == -1).all()
    assert found["content"].tolist() == [40, 60]
    np.testing.assert_array_equal(found["affine"], [1, 1, 0, 0])
    with pytest.raises(InputError, match="pad: the image has 60 x 40 pixels, more than 50 x 50"):
        run("pad(50)|semantic", cells())


def test_a_source_without_segments_is_refused():
    for ops in ("semantic", "pad_segments(3)"):
        name = ops.partition("(")[0]
        with pytest.raises(InputError, match=f"^{name}: the source has no segments$"):
            run(ops, scene(BOXES))


def test_segments_of_another_size_than_the_image_are_refused():
    example = {**cells(), "image": np.zeros((9, 8, 3), np.uint8)}
    with pytest.raises(InputError, match="image has 8 x 9 pixels but its segments have 60 x 40"):
        run("semantic", example)


@pytest.mark.parametrize(
    ("ops", "fault"),
    [
        ("rotate(9)|semantic", "column 1: rotate cannot move segments: beside semantic use "),
        ("semantic|flip_lr", "column 10: flip_lr cannot come after semantic"),
        ("pad_segments(3)|semantic", "column 17: semantic cannot come after pad_segments"),
        ("semantic|semantic", "column 10: semantic cannot come after semantic"),
        ("semantic|randaug", "column 10: randaug cannot move segments"),
        ("segment_crop(9)|resize(5)|semantic", "column 17: resize cannot come after segment_crop"),
        ("segment_crop(9)|letterbox(5)", "column 17: letterbox cannot come after segment_crop"),
        ("random_scale(9,2,1)", "column 1: random_scale: needs low <= high, not 2 and 1"),
        ("segment_crop(9,0)", "most must be a number from 0.01 to 1"),
        ("pad_segments(0)", "max_segments must be a whole number from 1 to"),
    ],
)
def test_a_string_that_would_misplace_segments_is_refused(ops, fault):
    with pytest.raises(InputError, match=fault):
        Preprocess.parse(f"{ops}|value_range(0,1)")


def test_what_a_string_is_for():
    wanted = {"pad_boxes(3)": (True, False), "semantic": (False, True), "flip_lr": (False, False)}
    wanted["pad_boxes(3)|pad_segments(3)"] = (True, True)
    for ops, (boxes, segments) in wanted.items():
        preprocess = Preprocess.parse(f"{ops}|value_range(0,1)")
        assert (preprocess.boxes, preprocess.segments) == (boxes, segments)
