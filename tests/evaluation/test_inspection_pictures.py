import io

import numpy as np
import pytest
from PIL import Image

from vitlab.evaluation import inspection_pictures as draw
from vitlab.evaluation import tile_sheets
from vitlab.evaluation.inspection_pictures import Seen, attention_overlay


@pytest.fixture
def sheets(monkeypatch):
    """The rows and titles of the sheets that are written."""
    found, write = [], tile_sheets.tile_sheet

    def sheet(rows, path, title=""):
        found.append((rows, title))
        write(rows, path, title)

    monkeypatch.setattr(draw, "tile_sheet", sheet)
    return found


def brightness(picture):
    return picture.astype(int).sum(axis=-1)


def test_the_overlay_is_brightest_on_the_patch_that_is_attended_to_most():
    weights = np.array([[0.1, 0.0, 0.2], [0.05, 0.4, 0.0]])
    image = np.full((8, 12, 3), 90, np.uint8)
    picture = brightness(attention_overlay(image, weights, 4))
    patches = picture.reshape(2, 4, 3, 4).transpose(0, 2, 1, 3).reshape(6, 16)
    assert (patches == patches[:, :1]).all()
    np.testing.assert_array_equal(
        np.argsort(patches[:, 0], kind="stable"), np.argsort(weights.ravel(), kind="stable")
    )
    # By how much is relative: half the attention everywhere makes the same picture.
    np.testing.assert_array_equal(
        attention_overlay(image, weights / 2, 4), attention_overlay(image, weights, 4)
    )
    assert np.isfinite(attention_overlay(image, 0 * weights, 4)).all()


def test_the_image_shines_through():
    image = np.zeros((8, 8, 1), np.uint8)
    image[2, 3] = 255
    picture = brightness(attention_overlay(image, np.full((2, 2), 0.25), 4))
    assert (picture < picture[2, 3]).sum() == 63


def test_heads_of_each_block_are_in_rows_with_what_they_sum_to(sheets, tmp_path):
    rng = np.random.default_rng(0)
    weights = rng.uniform(0, 0.2, (2, 3, 2, 2))
    weights[1, 2] = [[0.5, 0.25], [0.002, 0.004]]
    seen = Seen(np.zeros((8, 8, 1), np.uint8), "cat.jpg")
    draw.attention_heads(seen, weights, ["block 0", "block 5"], 4, "title", tmp_path / "a.png")
    ((rows, title),) = sheets
    assert title == "title"
    captions = [[tile.caption for tile in row] for row in rows]
    assert [row[0] for row in captions] == ["cat.jpg"] * 2
    assert captions[1][1].startswith("block 5, mean of heads\n")
    assert captions[1][4] == "block 5, head 2\nsum 76 %, max 50 %"
    expected = attention_overlay(seen.image, weights[1, 2], 4)
    np.testing.assert_array_equal(rows[1][4].image, expected)
    assert Image.open(io.BytesIO((tmp_path / "a.png").read_bytes())).width > 5 * 224


def test_padding_is_striped_and_nothing_else(sheets, tmp_path):
    image = np.random.default_rng(0).integers(0, 200, (8, 12, 3), dtype=np.uint8)
    seen = Seen(image, "a", np.array([8, 7]))
    colours = np.full((1, 2, 3, 3), 77, np.uint8)
    draw.colours_beside([seen], colours, 4, "", tmp_path / "a.png")
    draw.attention_beside(seen, np.eye(2, 3), "b", 4, "", tmp_path / "b.png")
    for (rows, _), inside in zip(sheets, (np.full((8, 7, 3), 77), None), strict=True):
        shown, beside = rows[0]
        np.testing.assert_array_equal(shown.image[:, :7], image[:, :7])
        for tile in (shown, beside):
            assert set(np.unique(tile.image[:, 7:])) == {214, 232}
        if inside is not None:
            np.testing.assert_array_equal(beside.image[:, :7], inside)


def test_neighbours_stand_in_the_row_of_their_image(sheets, tmp_path):
    rows = [[Seen(np.full((4, 4, 1), i, np.uint8), str(i)) for i in range(n)] for n in (3, 2)]
    draw.neighbours_beside(rows, "alike", tmp_path / "a.png")
    ((tiles, title),) = sheets
    assert title == "alike"
    assert [[tile.caption for tile in row] for row in tiles] == [["0", "1", "2"], ["0", "1"]]
