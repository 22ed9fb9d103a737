import io

import numpy as np
import pytest
from PIL import Image

from vitlab.errors import InputError
from vitlab.evaluation import pictures


def read(path):
    return np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))


def test_confusion_matrix_shows_percentages_of_each_row(drawn, tmp_path):
    matrix = np.array([[150, 50, 0], [1, 399, 0], [0, 0, 0]])
    pictures.confusion_matrix(
        matrix, ["c$1$", "b_", "never seen, with a long name"], tmp_path / "m"
    )
    axes = drawn[0].axes[0]
    np.testing.assert_allclose(
        axes.images[0].get_array(), [[0.75, 0.25, 0], [0.0025, 0.9975, 0], [0, 0, 0]]
    )
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "75", (1, 0): "25", (0, 1): "<1", (1, 1): ">99"}
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        "c$1$",
        "b_",
        "never see…ong name",
    ]
    assert axes.get_title("left") == "accuracy 91.50 %"


@pytest.mark.parametrize(("classes", "labels", "numbers"), [(30, 30, 0), (60, 0, 0)])
def test_confusion_matrices_of_many_classes_stay_readable(
    drawn, tmp_path, classes, labels, numbers
):
    names = [f"class {i}" for i in range(classes)]
    pictures.confusion_matrix(np.eye(classes, dtype=int), names, tmp_path / "matrix.png")
    axes = drawn[0].axes[0]
    assert (len(axes.get_xticks()), len(axes.get_yticks())) == (labels, labels)
    assert len(axes.texts) == numbers


def test_a_lone_confusion_among_many_classes_is_visible(tmp_path):
    """Beyond one class a pixel, too."""
    matrix = np.diag(np.full(2000, 9))
    names = [""] * 2000
    pictures.confusion_matrix(matrix, names, tmp_path / "without.png")
    matrix[300, 1700] = 9
    pictures.confusion_matrix(matrix, names, tmp_path / "with.png")
    without, lone = (read(tmp_path / name).astype(int) for name in ("without.png", "with.png"))
    difference = np.abs(lone - without).max(axis=-1)
    title = 60
    assert difference[title:].max() > 50


def test_classes_that_share_rows_are_counted_in_the_labels(drawn, tmp_path):
    names = [f"class {i}" for i in range(300)]
    pictures.confusion_matrix(np.eye(100, dtype=int), names, tmp_path / "matrix.png")
    axes = drawn[0].axes[0]
    assert axes.get_title("left") == ""  # the diagonal has more than what is right
    assert axes.get_xlabel() == "predicted class (0 to 299, left to right)"


@pytest.mark.parametrize(("shape", "classes"), [((3, 3), 2), ((2, 2), 3), ((60, 50), 60)])
def test_confusion_matrix_refuses_names_that_do_not_fit(tmp_path, shape, classes):
    names = ["a"] * classes
    with pytest.raises(InputError, match="class names"):
        pictures.confusion_matrix(np.ones(shape, int), names, tmp_path / "matrix.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_image_grid_enlarges_small_images_without_smoothing(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, channels), dtype=np.uint8)
    pictures.image_grid(images, ["", ""], tmp_path / "grid.png")
    rgb = read(tmp_path / "grid.png")
    colors, counts = np.unique(rgb.reshape(-1, 3), axis=0, return_counts=True)
    big = {tuple(color) for color in colors[counts > 300]} - {(255, 255, 255)}
    assert big == {tuple(pixel) for pixel in images.repeat(3 // channels, -1).reshape(-1, 3)}


def test_image_grid_puts_each_title_over_its_image(drawn, tmp_path):
    images = np.arange(7, dtype=np.uint8)[:, None, None, None].repeat(300, 1).repeat(400, 2)
    titles = [f"true ${i}$\npredicted the name of a dog 0.9{i}" for i in range(7)]
    pictures.image_grid(images, titles, tmp_path / "grid.png")
    shown = [axes for axes in drawn[0].axes if axes.images]
    assert len(shown) == 7
    for i, axes in enumerate(shown):
        assert (axes.images[0].get_array() == i).all()
        assert axes.get_title() == f"true ${i}$\npredicted t…a dog 0.9{i}"


def test_image_grid_without_images_says_so(drawn, tmp_path):
    pictures.image_grid(np.zeros((0, 8, 8, 3), np.uint8), [], tmp_path / "grid.png")
    assert drawn[0].texts[0].get_text() == "no images"


@pytest.mark.parametrize(
    ("images", "titles", "message"),
    [
        (np.zeros((1, 8, 8, 3)), ["a"], "uint8"),
        (np.zeros((8, 8, 3), np.uint8), ["a"] * 8, "height, width"),
        (np.zeros((2, 8, 8, 3), np.uint8), ["a"], "2 images have 1 titles"),
    ],
)
def test_image_grid_refuses_what_it_cannot_draw(tmp_path, images, titles, message):
    with pytest.raises(InputError, match=message):
        pictures.image_grid(images, titles, tmp_path / "grid.png")


def test_reliability_diagram_shows_the_accuracy_and_share_of_each_bin(drawn, tmp_path):
    confidence = np.array([0.5, 0.5, 0.5, 0.95, 0.95, 0.99, 1.0, 1.0])
    correct = np.array([1, 0, 0, 1, 1, 1, 1, 0], bool)
    pictures.reliability_diagram(confidence, correct, tmp_path / "reliability.png")
    top, bottom = drawn[0].axes
    bars = [(round(15 * bar.get_x()), bar.get_height()) for bar in top.patches]
    assert bars == [(7, pytest.approx(1 / 3)), (14, pytest.approx(4 / 5))]
    assert [bar.get_height() for bar in bottom.patches] == pytest.approx([37.5, 62.5])
    error = (3 * abs(1 / 3 - 0.5) + 5 * abs(4 / 5 - 4.89 / 5)) / 8
    assert top.get_title("left") == f"expected calibration error {100 * error:.2f} %"


def test_contact_sheet_puts_each_form_of_an_image_under_its_title(drawn, tmp_path):
    images = np.arange(6, dtype=np.uint8).reshape(3, 2, 1, 1, 1).repeat(4, 2).repeat(8, 3)
    pictures.contact_sheet(images, ["image", "other"], tmp_path / "sheet.png")
    axes = drawn[0].axes[0]
    sheet = np.asarray(axes.images[0].get_array())
    gap = 1
    for row in range(3):
        for column in range(2):
            top, left = row * (4 + gap), column * (8 + gap)
            assert (sheet[top : top + 4, left : left + 8] == images[row, column, 0, 0]).all()
    assert [text.get_text() for text in axes.texts] == ["image", "other"]
    centres = [text.get_position()[0] for text in axes.texts]
    assert centres == [4, 4 + 8 + gap]
    with pytest.raises(InputError, match="2 columns have 1 titles"):
        pictures.contact_sheet(images, ["image"], tmp_path / "sheet.png")
    with pytest.raises(InputError, match="must be uint8"):
        pictures.contact_sheet(images[0], ["image"], tmp_path / "sheet.png")
