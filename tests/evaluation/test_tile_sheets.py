import io
import warnings

import numpy as np
import pytest
from PIL import Image

from vitlab.errors import InputError
from vitlab.evaluation.tile_sheets import Tile, enlarged, in_rows, tile_sheet


def read(path):
    return np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))


def place(sheet, pixels):
    """The upper left corner of some pixels, which are on the sheet as they are."""
    height, width = pixels.shape[:2]
    for y, x in np.argwhere((sheet == pixels[0, 0]).all(axis=-1)):
        piece = sheet[y : y + height, x : x + width]
        if piece.shape == pixels.shape and (piece == pixels).all():
            return y, x
    raise AssertionError("not there")


def test_tiles_are_drawn_pixel_by_pixel_in_rows(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (3, 250, 280, 3), dtype=np.uint8)
    rows = [[Tile(images[0], "one"), Tile(images[1], "two\nlines")], [Tile(images[2])]]
    tile_sheet(rows, tmp_path / "deep" / "sheet.png", "of three")
    sheet = read(tmp_path / "deep" / "sheet.png")
    (y0, x0), (y1, x1), (y2, x2) = (place(sheet, image) for image in images)
    assert y0 == y1
    assert x0 == x2
    assert x1 >= x0 + 280
    assert y2 >= y0 + 250


def test_small_tiles_are_enlarged_without_smoothing_and_large_ones_made_smaller(tmp_path):
    small = np.random.default_rng(0).integers(0, 255, (8, 6, 1), dtype=np.uint8)
    tile_sheet([[Tile(small)]], tmp_path / "small.png")
    large = small.repeat(38, axis=0).repeat(38, axis=1).repeat(3, axis=2)
    place(read(tmp_path / "small.png"), large)
    tile_sheet([[Tile(small[:, :1].repeat(150, axis=1))]], tmp_path / "middle.png")
    assert Image.open(tmp_path / "middle.png").width == 300 + 20
    tile_sheet([[Tile(np.zeros((900, 600, 3), np.uint8))]], tmp_path / "large.png")
    dark = (read(tmp_path / "large.png") == 0).all(axis=-1)
    assert dark.sum() == 448 * 299


def test_captions_stand_over_their_tiles_and_are_cut_to_their_width(drawn, tmp_path):
    image = np.zeros((224, 224, 3), np.uint8)
    names = ["$a_$", "a name that is far too long for its tile.jpg", "W" * 40, "i" * 40]
    tile_sheet([[Tile(image, name) for name in names]], tmp_path / "sheet.png")
    texts = drawn[0].axes[0].texts
    short, long, *_ = shown = [text.get_text() for text in texts]
    assert short == "$a_$"
    assert long.startswith("a name that")
    assert long.endswith("tile.jpg")
    assert len(shown[2]) < len(long) < len(shown[3])
    boxes = [text.get_window_extent() for text in texts]
    assert all(170 < box.width < 225 for box in boxes[1:])


def test_no_tiles_say_so_and_two_sizes_are_refused(drawn, tmp_path):
    tile_sheet([], tmp_path / "sheet.png")
    assert drawn[0].texts[0].get_text() == "no images"
    tiles = [Tile(np.zeros((8, side, 3), np.uint8)) for side in (8, 9)]
    with pytest.raises(InputError, match="of several sizes"):
        tile_sheet([tiles], tmp_path / "sheet.png")


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (7, 7), (8, 4), (14, 7), (18, 6)])
def test_rows_leave_few_places_empty(count, columns):
    rows = in_rows([Tile(np.zeros((1, 1, 3)))] * count)
    assert len(rows[0]) == columns
    assert sum(map(len, rows)) == count


def test_pairs_stay_together():
    for count in range(2, 30, 2):
        rows = in_rows([Tile(np.zeros((1, 1, 3)))] * count, multiple=2)
        assert all(len(row) % 2 == 0 for row in rows)
        assert sum(map(len, rows)) == count


def test_cells_cover_their_own_pixels():
    cells = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(enlarged(cells, 4, (8, 12)), np.kron(cells, np.ones((4, 4))))
    # A last cell may reach beyond the image, or the image beyond the last cell.
    np.testing.assert_array_equal(
        enlarged(cells, 4, (6, 11)), np.kron(cells, np.ones((4, 4)))[:6, :11]
    )
    assert (enlarged(cells, 4, (10, 14))[8:, 12:] == 5).all()


def test_letters_that_the_font_lacks_are_drawn_without_a_warning(tmp_path):
    """Which would stand in the middle of a run's log."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tile = Tile(np.zeros((8, 8, 3), np.uint8), "猫")
        tile_sheet([[tile]], tmp_path / "sheet.png", "日本")
    assert (tmp_path / "sheet.png").exists()
