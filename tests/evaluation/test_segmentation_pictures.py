import types

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from vitlab.class_colors import class_colors
from vitlab.errors import InputError
from vitlab.evaluation import segmentation_pictures as pictures
from vitlab.evaluation.pictures import COLORS, FAINT
from vitlab.evaluation.segments import FoundSegments

NAMES = ["c$1$", "a_b", "never"]
RIGHT, WRONG = ([round(255 * part) for part in to_rgb(color)] for color in (FAINT, COLORS[1]))


def true(places, labels, crowd=()):
    labels = np.array(labels, np.int32)
    return types.SimpleNamespace(
        map=np.array(places, np.int32), labels=labels, crowd=np.isin(np.arange(len(labels)), crowd)
    )


def found(places, labels):
    return FoundSegments(np.array(places, np.int32), np.array(labels, np.int32))


def painted(axes, expected):
    """Whether each pixel has its colour, or, where that is None, is hatched."""
    panel = np.asarray(axes.images[0].get_array())
    height, width = panel.shape[0] // len(expected), panel.shape[1] // len(expected[0])
    for y, row in enumerate(expected):
        for x, color in enumerate(row):
            # Without the outermost dots, where pixels meet.
            dots = panel[y * height + 3 : (y + 1) * height - 3, x * width + 3 : (x + 1) * width - 3]
            values = np.unique(dots.reshape(-1, 3), axis=0).tolist()
            if values != ([color] if color is not None else [[176] * 3, [255] * 3]):
                return False
    return True


def test_panels_have_the_colours_of_the_classes_and_of_the_errors(drawn, tmp_path):
    image = np.full((2, 4, 3), 77, np.uint8)
    truth = true([[0, 0, 1, -1], [0, 2, 1, 3]], [0, 0, 1, 0], crowd=[3])
    prediction = found([[0, 0, 0, 0], [0, 1, -1, 1]], [0, 1])
    path = tmp_path / "report" / "segments.png"
    pictures.segmentation_beside_truth([image], [truth], [prediction], NAMES, path)
    assert path.stat().st_size > 1000
    shown, left, right, errors, legend = drawn[0].axes
    titles = [
        "image",
        "truth: 4 segments",
        "prediction: 2 segments",
        "errors: 16.7 % of the pixels",
    ]
    assert [axes.get_title("left") for axes in (shown, left, right, errors)] == titles
    assert np.unique(shown.images[0].get_array()).tolist() == [77]
    a, b = class_colors(np.arange(2)).tolist()
    assert painted(left, [[a, a, a, None], [a, b, a, a]])
    assert painted(right, [[a, a, a, a], [a, b, None, b]])
    # The third pixel below has a class that nothing was found of; void and crowd count neither way.
    assert painted(errors, [[RIGHT, RIGHT, RIGHT, None], [RIGHT, RIGHT, WRONG, None]])
    assert [text.get_text() for text in legend.texts] == ["c$1$", "a_b", "void", "right", "wrong"]


def test_a_thin_line_parts_segments_of_one_class(drawn, tmp_path):
    image = np.zeros((2, 4, 1), np.uint8)
    two, one = [[0, 0, 1, 1], [0, 0, 1, 1]], [[0] * 4] * 2
    pictures.segmentation_beside_truth(
        [image], [true(two, [0, 0])], [found(one, [0])], NAMES, tmp_path / "segments.png"
    )
    _, left, right, *_ = drawn[0].axes
    panel = np.asarray(left.images[0].get_array())
    white = (panel == 255).all(axis=-1)
    assert white.any(axis=0).nonzero()[0].tolist() == [panel.shape[1] // 2 - 1]
    assert white.sum() == panel.shape[0]
    assert not (np.asarray(right.images[0].get_array()) == 255).all(axis=-1).any()


def test_a_panel_is_placed_dot_by_dot(drawn, tmp_path):
    """Its axes have as many dots as it has, and a small image is enlarged without new colours."""
    sizes = [(30, 40, 1), (900, 300, 3), (5, 7, 3)]
    images = [np.full(size, 50 * i, np.uint8) for i, size in enumerate(sizes)]
    images[2][2, 3] = 255
    truth = [true(np.full(size[:2], -1), []) for size in sizes]
    prediction = [found(np.full(size[:2], -1), []) for size in sizes]
    pictures.segmentation_beside_truth(images, truth, prediction, NAMES, tmp_path / "segments.png")
    *panels, _ = drawn[0].axes
    assert len(panels) == 12
    dots = drawn[0].get_size_inches() * pictures.DPI
    for number, axes in enumerate(panels):
        height, width = axes.images[0].get_array().shape[:2]
        np.testing.assert_allclose(axes.get_position().size * dots, [width, height])
        assert height / width == pytest.approx(
            sizes[number // 4][0] / sizes[number // 4][1], rel=0.01
        )
    assert np.unique(panels[8].images[0].get_array()).tolist() == [100, 255]
    titles = [axes.get_title("left") for axes in panels[:4]]
    assert titles[1:] == [
        "truth: 0 segments",
        "prediction: 0 segments",
        "errors: 0.0 % of the pixels",
    ]


def test_of_many_images_the_first_eight_are_drawn(drawn, tmp_path):
    images = [np.zeros((4, 4, 3), np.uint8)] * 9
    truth, prediction = true(np.zeros((4, 4)), [1]), found(np.zeros((4, 4)), [1])
    pictures.segmentation_beside_truth(
        images, [truth] * 9, [prediction] * 9, NAMES, tmp_path / "segments.png"
    )
    assert len(drawn[0].axes) == 8 * 4 + 1


def test_what_cannot_be_drawn_is_refused_or_said(drawn, tmp_path):
    path = tmp_path / "segments.png"

    def draw(images, truth, prediction):
        pictures.segmentation_beside_truth(images, truth, prediction, NAMES, path)

    draw([], [], [])
    assert drawn[0].texts[0].get_text() == "no images"
    image, truth = np.zeros((2, 2, 3), np.uint8), true([[0, 0]] * 2, [0])
    prediction = found([[0, 0]] * 2, [0])
    with pytest.raises(InputError, match="must be uint8"):
        draw([image / 255], [truth], [prediction])
    with pytest.raises(InputError, match="2 images have 1 truths and 1 predictions"):
        draw([image] * 2, [truth], [prediction])
    with pytest.raises(InputError, match=r"prediction of image 0: map \(1, 2\) must be as large"):
        draw([image], [truth], [found([[0, 0]], [0])])
    with pytest.raises(InputError, match=r"truth of image 0: labels must be in \[0, 3\)"):
        draw([image], [true([[0, 0]] * 2, [3])], [prediction])
