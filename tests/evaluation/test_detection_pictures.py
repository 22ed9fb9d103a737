import types

import numpy as np
import pytest
from matplotlib.colors import same_color

from vitlab.errors import InputError
from vitlab.evaluation import detection_pictures as pictures
from vitlab.evaluation.detection import Detections
from vitlab.evaluation.pictures import COLORS, confusion_matrix

BLUE, VERMILION, GREY = COLORS[5], COLORS[1], "#B0B0B0"
NAMES = ["c$1$", "a_b"]


def objects(boxes, labels, crowd=None, difficult=None):
    none = np.zeros(len(labels), bool)
    return types.SimpleNamespace(
        image_id=0,
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        labels=np.array(labels, np.int32),
        crowd=none if crowd is None else np.array(crowd),
        difficult=none if difficult is None else np.array(difficult),
        area=np.ones(len(labels)),
    )


def seen(boxes, scores, labels):
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(labels, np.int32),
    )


def colors(axes):
    """The colour of each box by its name."""
    return {
        text.get_text(): next(
            name
            for name, color in (("blue", BLUE), ("vermilion", VERMILION), ("grey", GREY))
            if same_color(box.get_edgecolor(), color)
        )
        for text, box in zip(axes.texts, axes.patches, strict=True)
    }


def test_boxes_have_the_colour_of_what_became_of_them(drawn, tmp_path):
    truth = objects(
        [(0, 0, 10, 10), (20, 0, 30, 10), (0, 20, 10, 30), (20, 20, 40, 40)],
        [0, 1, 0, 0],
        crowd=[False, False, False, True],
        difficult=[False, False, True, False],
    )
    found = seen(
        [
            (0, 0, 10, 9),  # a second one, which overlaps less
            (0, 0, 10, 10.5),  # right
            (20, 0, 30, 10),  # of the other class
            (0, 20, 10, 30),  # on a difficult object
            (25, 25, 30, 30),  # in a crowd
            (0, 0, 10, 10),  # below the threshold
        ],
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.2],
        [0, 0, 0, 0, 1, 0],
    )
    image = np.zeros((48, 64, 3), np.uint8)
    path = tmp_path / "report" / "boxes.png"
    pictures.boxes_beside_truth([image], [truth], [found], NAMES, path)
    assert path.stat().st_size > 1000
    left, right = drawn[0].axes
    assert left.get_title("left") == "truth: 4 objects, 1 missed"
    assert right.get_title("left") == "found: 5 above 0.3, 2 wrong"
    assert colors(right) == {
        "c$1$ 0.90": "vermilion",
        "c$1$ 0.80": "blue",
        "c$1$ 0.70": "vermilion",
        "c$1$ 0.60": "grey",
        "a_b 0.50": "grey",
    }
    edges = [box.get_edgecolor() for box in left.patches]
    for edge, color in zip(edges, (BLUE, VERMILION, GREY, GREY), strict=True):
        assert same_color(edge, color)
    assert [box.get_linestyle() == "-" for box in left.patches] == [True, True, True, False]
    box = left.patches[1]
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == (20, 0, 10, 10)
    # Continuous coordinates, with the first row above.
    assert (left.get_xlim(), left.get_ylim()) == ((0, 64), (48, 0))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_images_of_several_sizes_are_beside_themselves(drawn, tmp_path, number):
    sizes = [(30, 40, 1), (900, 300, 3), (5, 7, 3)][:number]
    images = [np.full(size, 50 * i, np.uint8) for i, size in enumerate(sizes)]
    truth = [objects([], []) for _ in images]
    found = [seen([], [], []) for _ in images]
    pictures.boxes_beside_truth(images, truth, found, NAMES, tmp_path / "boxes.png")
    shown = [axes for axes in drawn[0].axes if axes.images]
    assert len(shown) == 2 * number
    for i, axes in enumerate(shown):
        pixels = axes.images[0].get_array()
        assert pixels.shape == (*sizes[i // 2][:2], 3)
        assert (pixels == 50 * (i // 2)).all()
        large = sizes[i // 2][0] == 900
        assert axes.images[0].get_interpolation() == ("antialiased" if large else "nearest")


def test_what_cannot_be_drawn_is_refused_or_said(drawn, tmp_path):
    path = tmp_path / "boxes.png"
    pictures.boxes_beside_truth([], [], [], NAMES, path)
    assert drawn[0].texts[0].get_text() == "no images"
    image, truth, found = np.zeros((8, 8, 3), np.uint8), objects([], []), seen([], [], [])
    with pytest.raises(InputError, match="must be uint8"):
        pictures.boxes_beside_truth([image / 255], [truth], [found], NAMES, path)
    with pytest.raises(InputError, match="2 images have 1 truths"):
        pictures.boxes_beside_truth([image] * 2, [truth], [found], NAMES, path)
    bad = seen([(0, 0, np.nan, 1)], [1], [0])
    with pytest.raises(InputError, match="not finite"):
        pictures.boxes_beside_truth([image], [truth], [bad], NAMES, path)


def test_precision_recall_curves_show_the_classes_and_their_mean(drawn, tmp_path):
    recall = np.linspace(0, 1, 101)
    precision = {"c$1$": 1 - recall, "b": np.ones(101)}
    pictures.precision_recall_curves(recall, precision, tmp_path / "curves.png")
    (axes,) = drawn[0].axes
    assert axes.get_title("left") == "precision at IoU 0.5: AP50 0.750"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["c$1$  0.500", "b  1.000", "mean of 2 classes  0.750"]
    np.testing.assert_allclose(axes.lines[-1].get_ydata(), 1 - recall / 2)


def test_precision_recall_curves_of_many_classes_name_only_the_mean(drawn, tmp_path):
    recall = np.linspace(0, 1, 101)
    precision = {f"class {i}": np.full(101, i / 80) for i in range(80)}
    pictures.precision_recall_curves(recall, precision, tmp_path / "curves.png")
    (axes,) = drawn[0].axes
    assert len(axes.lines) == 81
    assert len(axes.get_legend().get_texts()) == 1
    pictures.precision_recall_curves(recall, {}, tmp_path / "curves.png")
    assert drawn[1].texts[0].get_text() == "no class has an object"


def test_class_bars_are_in_the_order_of_their_ap(drawn, tmp_path):
    pictures.class_bars({"a_b": 0.25, "c$1$": 0.5, "d": 0.0}, tmp_path / "bars.png")
    (axes,) = drawn[0].axes
    assert axes.get_title("left") == "AP of 3 classes, mean 0.250"
    assert [bar.get_width() for bar in axes.patches] == [0.5, 0.25, 0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["c$1$", "a_b", "d"]
    assert [text.get_text() for text in axes.texts] == ["0.500", "0.250", "0.000"]


def test_class_bars_of_a_thousand_classes_show_both_ends(drawn, tmp_path):
    pictures.class_bars({f"class {i}": i / 1000 for i in range(1000)}, tmp_path / "bars.png")
    (axes,) = drawn[0].axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert (len(names), names[0], names[-1]) == (80, "class 999", "class 0")
    assert "the 40 highest and lowest" in axes.get_title("left")
    pictures.class_bars({}, tmp_path / "bars.png")
    assert drawn[1].texts[0].get_text() == "AP of 0 classes"


def test_class_bars_name_their_metric(drawn, tmp_path):
    pictures.class_bars({"a": 0.25}, tmp_path / "bars.png", what="IoU")
    assert drawn[0].axes[0].get_title("left") == "IoU of 1 class, mean 0.250"


def test_confusions_with_the_background_have_their_own_title(drawn, tmp_path):
    matrix = np.array([[8, 0, 2], [1, 4, 0], [3, 0, 0]])
    names = [*NAMES, "background"]
    confusion_matrix(matrix, names, tmp_path / "matrix.png", title="boxes above 0.3")
    assert drawn[0].axes[0].get_title("left") == "boxes above 0.3"
