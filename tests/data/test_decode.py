"""Decoding: every format and mode that users have, upright, and one line for what is broken."""

import contextlib
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from vitlab.data import decode as decoding
from vitlab.data import turbojpeg
from vitlab.data.decode import Picture, decode, image_size
from vitlab.errors import InputError


def encode(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def colors():
    """uint8[6, 9, 3] of few colours, so that GIF's palette holds it exactly."""
    rng = np.random.default_rng(0)
    palette = rng.integers(0, 256, (12, 3), dtype=np.uint8)
    return palette[rng.integers(0, 12, (6, 9))]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("GIF", {}),
        ("WEBP", {"lossless": True}),
        ("PPM", {}),
        ("TIFF", {}),
        ("TIFF", {"big_tiff": True}),
        ("TIFF", {"compression": "tiff_lzw", "tiffinfo": {317: 2}}),  # differences of neighbours
        ("TIFF", {"compression": "tiff_deflate"}),
        ("TIFF", {"compression": "packbits"}),
    ],
)
def test_lossless_formats_give_their_pixels(colors, kind, options):
    decoded = decode(encode(Image.fromarray(colors), kind, **options))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, colors)


def test_jpeg_of_a_ramp_is_close():
    ramp = np.broadcast_to(np.arange(0, 256, 4, dtype=np.uint8)[:, None, None], (64, 48, 3))
    decoded = decode(encode(Image.fromarray(ramp), "JPEG", quality=95))
    assert decoded.shape == (64, 48, 3)
    assert np.abs(decoded.astype(int) - ramp).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_of_several_frames_the_first_is_given(colors, kind):
    first = Image.fromarray(colors)
    data = encode(first, kind, save_all=True, append_images=[Image.fromarray(255 - colors)])
    np.testing.assert_array_equal(decode(data), colors)


def test_transparency_is_dropped_and_the_colours_stay(colors):
    alpha = np.linspace(0, 255, 54).astype(np.uint8).reshape(6, 9, 1)
    rgba = Image.fromarray(np.concatenate([colors, alpha], axis=-1))
    np.testing.assert_array_equal(decode(encode(rgba, "PNG")), colors)
    grey_alpha = Image.fromarray(np.concatenate([colors[..., :1], alpha], axis=-1))
    expected = np.repeat(colors[..., :1], 3, axis=-1)
    np.testing.assert_array_equal(decode(encode(grey_alpha, "PNG")), expected)


def test_palette_with_transparency_gives_its_colours_without_a_warning(colors):
    picture = Image.fromarray(colors).quantize(12)
    data = encode(picture, "PNG", transparency=bytes(range(0, 240, 20)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(decode(data), colors)


def test_grey_bilevel_and_cmyk():
    grey = np.arange(54, dtype=np.uint8).reshape(6, 9) * 4
    decoded = decode(encode(Image.fromarray(grey), "PNG"))
    np.testing.assert_array_equal(decoded, np.repeat(grey[..., None], 3, axis=-1))
    decoded = decode(encode(Image.fromarray(grey > 99), "PNG"))
    np.testing.assert_array_equal(decoded[..., 0], np.where(grey > 99, 255, 0))
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for kind in ("JPEG", "TIFF"):
        assert np.abs(decode(encode(red, kind)).astype(int) - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_keep_the_upper_eight(kind):
    deep = np.array([[0, 255, 256, 0x1234], [0x7FFF, 0x8000, 0xFEFF, 0xFFFF]], np.uint16)
    decoded = decode(encode(Image.fromarray(deep), kind), channels=1)
    np.testing.assert_array_equal(decoded[..., 0], [[0, 0, 1, 0x12], [0x7F, 0x80, 0xFE, 0xFF]])


def test_one_channel_is_the_luma_of_itu_r_601(colors):
    decoded = decode(encode(Image.fromarray(colors), "PNG"), channels=1)
    assert decoded.shape == (6, 9, 1)
    luma = colors @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decoded[..., 0] - luma).max() <= 0.51


# EXIF 2.3, tag 274: on which side of the scene the first stored row and the first column lie.
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),  # top, left
        (2, lambda a: a[:, ::-1]),  # top, right
        (3, lambda a: a[::-1, ::-1]),  # bottom, right
        (4, lambda a: a[::-1]),  # bottom, left
        (5, lambda a: a.swapaxes(0, 1)),  # left, top
        (6, lambda a: a.swapaxes(0, 1)[:, ::-1]),  # right, top
        (7, lambda a: a.swapaxes(0, 1)[::-1, ::-1]),  # right, bottom
        (8, lambda a: a.swapaxes(0, 1)[::-1]),  # left, bottom
    ],
)
def test_exif_orientation_is_applied(colors, orientation, upright):
    exif = Image.Exif()
    exif[274] = orientation
    png = encode(Image.fromarray(colors), "PNG", exif=exif)
    tiff = encode(Image.fromarray(colors), "TIFF", tiffinfo={274: orientation})
    for data in (png, tiff):
        whole = upright(colors)
        np.testing.assert_array_equal(decode(data), whole)
        np.testing.assert_array_equal(Picture(data)[1:4, 2:5], whole[1:4, 2:5])
        assert image_size(data, "x") == whole.shape[1::-1]


def test_damaged_exif_does_not_cost_the_image():
    data = encode(Image.new("RGB", (8, 8), (9, 9, 9)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff")
    assert decode(data).shape == (8, 8, 3)


def test_an_array_passes_through():
    array = np.zeros((2, 3, 5), np.uint8)
    assert decode(array) is array


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff\xd8\xff\xe0", b"IIx\0" + bytes(40)])
def test_what_is_no_image_is_refused(data):
    with pytest.raises(InputError) as error:
        decode(data)
    assert str(error.value) == (
        f"the image ({len(data)} bytes) is not a JPEG, PNG, WebP, BMP, GIF, TIFF or PPM"
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "PPM"])
def test_a_file_cut_short_is_refused(kind):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), kind)
    half = data[: len(data) // 2]
    with pytest.raises(InputError) as error:
        decode(half)
    message = str(error.value)
    assert message.startswith(f"the image ({len(half)} bytes) is damaged or cut short: ")
    assert "\n" not in message


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("PNG", {}),
        ("GIF", {}),
        ("WEBP", {}),
        ("BMP", {}),
        ("PPM", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
    ],
)
def test_any_damage_gives_pixels_or_an_input_error(colors, kind, options):
    data = encode(Image.fromarray(colors), kind, **options)
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] = rng.integers(256)
        # Anything else that is raised fails the test.
        with contextlib.suppress(InputError):
            assert decode(bytes(damaged), max_pixels=10_000).dtype == np.uint8


def test_a_huge_image_is_refused_before_it_is_decoded():
    def chunk(name, body):
        check = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 10_000, 9_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError) as error:
            decode(data)
    assert str(error.value) == (
        "the PNG image has 10000 x 9000 pixels, which is more than max_pixels=89478485"
    )


def test_max_pixels_is_the_most_that_passes():
    data = encode(Image.new("RGB", (10, 10)), "PNG")
    assert decode(data, max_pixels=100).shape == (10, 10, 3)
    with pytest.raises(InputError, match="more than max_pixels=99"):
        decode(data, max_pixels=99)


PIECES = [(0, 40, 0, 60), (3, 17, 20, 41), (0, 1, 59, 60), (150, 200, 100, 310), (199, 200, 0, 310)]


@pytest.fixture(scope="module")
def scene():
    """uint8[200, 310, 3], smooth with fine texture, as photographs are."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 18, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((310, 200), Image.Resampling.BICUBIC)).astype(int)
    return (smooth + rng.integers(-20, 21, smooth.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(params=["Pillow", "libturbojpeg"])
def decoder(request, monkeypatch):
    """What decodes a JPEG; libturbojpeg is there in conda's environments, say."""
    if request.param == "Pillow":
        monkeypatch.setattr(decoding, "decode_piece", lambda *_: None)
    elif turbojpeg._library() is None:
        pytest.skip("no libturbojpeg 3 here")


def by_pillow(data, channels=3, **options):
    """`decode` as it is without libturbojpeg."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "decode_piece", lambda *_: None)
        return decode(data, channels, **options)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"subsampling": "4:2:0"}),
        ("JPEG", {"subsampling": "4:2:2"}),
        ("JPEG", {"subsampling": "4:4:4", "optimize": True}),
        ("JPEG", {"restart_marker_rows": 1}),
        ("JPEG", {"keep_rgb": True}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_piece_has_the_pixels_of_the_whole(scene, kind, options, mode):
    if mode == "CMYK" and kind != "JPEG":
        return  # They have no such mode.
    data = encode(Image.fromarray(scene).convert(mode), kind, **options)
    for channels in (1, 3):
        whole = by_pillow(data, channels)
        assert Picture(data, channels).shape == whole.shape
        np.testing.assert_array_equal(Picture(data, channels), whole)
        np.testing.assert_array_equal(decode(data, channels), whole)
        for top, bottom, left, right in PIECES:
            piece = Picture(data, channels)[top:bottom, left:right]
            np.testing.assert_array_equal(piece, whole[top:bottom, left:right])


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_piece_is_of_the_upright_image(scene, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    data = encode(Image.fromarray(scene), "JPEG", exif=exif)
    whole = by_pillow(data)
    assert Picture(data).shape == whole.shape
    for piece in (np.s_[3:17, 20:41], np.s_[:, 100:], np.s_[150:, :9]):
        np.testing.assert_array_equal(Picture(data)[piece], whole[piece])


@pytest.mark.usefixtures("decoder")
def test_pieces_of_photographs_have_the_pixels_of_the_whole(coco128):
    rng = np.random.default_rng(0)
    for path in sorted(coco128.glob("train2017/*.jpg")):
        data = path.read_bytes()
        whole = by_pillow(data)
        (top, bottom), (left, right) = (np.sort(rng.integers(0, n + 1, 2)) for n in whole.shape[:2])
        piece = np.s_[top : bottom + 1, left : right + 1]
        np.testing.assert_array_equal(Picture(data)[piece], whole[piece])


@pytest.mark.usefixtures("decoder")
def test_a_piece_of_a_damaged_file_is_no_other_than_of_the_whole(scene):
    def outcome(function):
        try:
            return function().tobytes()
        except InputError as error:
            return str(error)

    data = encode(Image.fromarray(scene), "JPEG")
    rng = np.random.default_rng(0)
    for i in range(200):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] = rng.integers(256)
        damaged = bytes(damaged[: rng.integers(len(data))] if i % 4 == 0 else damaged)
        size = {"max_pixels": 100_000}
        whole = outcome(lambda: by_pillow(damaged, **size)[10:50, 20:70])  # noqa: B023
        assert outcome(lambda: decode(damaged, **size)[10:50, 20:70]) == whole  # noqa: B023
        assert outcome(lambda: Picture(damaged, **size)[10:50, 20:70]) == whole  # noqa: B023


@pytest.mark.usefixtures("decoder")
def test_a_shrunken_piece_is_the_least_fraction_that_is_large_enough(scene):
    large = Image.fromarray(scene).resize((1240, 800), Image.Resampling.BICUBIC)
    data = encode(large, "JPEG", quality=95)
    pixels = decode(data).astype(float)
    for least, factor in (((90, 140), 4), ((101, 10), 2), ((401, 401), 1), ((1, 1), 8)):
        piece = Picture(data, least=least)[200:600, 8:1208]
        assert piece.shape == (400 // factor, 1200 // factor, 3)
        blocks = pixels[200:600, 8:1208].reshape(400 // factor, factor, 1200 // factor, factor, 3)
        assert np.abs(piece - blocks.mean((1, 3))).mean() < 1.5
    png = encode(large, "PNG")
    assert Picture(png, least=(1, 1))[200:600, 8:1208].shape == (400, 1200, 3)


def test_both_decoders_give_the_same_bits_at_every_size(coco128, monkeypatch):
    if turbojpeg._library() is None:
        pytest.skip("no libturbojpeg 3 here")
    rng = np.random.default_rng(0)
    for path in sorted(coco128.glob("train2017/*.jpg"))[:64]:
        data = path.read_bytes()
        height, width = Picture(data).shape[:2]
        for factor in (1, 2, 4, 8):
            top, left = rng.integers(height // 2), rng.integers(width // 2)
            box = left, top, rng.integers(left + 32, width + 1), rng.integers(top + 32, height + 1)
            left, top, right, bottom = (int(edge) for edge in box)
            least = (bottom - top) // factor, (right - left) // factor
            piece = np.s_[top:bottom, left:right]
            fast = Picture(data, least=least)[piece]
            with monkeypatch.context() as patch:
                patch.setattr(decoding, "decode_piece", lambda *_: None)
                np.testing.assert_array_equal(fast, Picture(data, least=least)[piece])


@pytest.mark.usefixtures("decoder")
def test_a_piece_without_pixels_is_as_empty_as_an_array_s(scene):
    picture = Picture(encode(Image.fromarray(scene), "JPEG"))
    for piece in (np.s_[50:50, :], np.s_[:, 60:60], np.s_[400:, :]):
        assert picture[piece].size == 0
    for piece in (np.s_[50:46, :], np.s_[:, 52:46], np.s_[50:20, 10:20]):
        with pytest.raises(ValueError):  # Pillow's
            picture[piece]


def test_libturbojpeg_leaves_what_is_not_in_the_image_to_others(scene):
    data = encode(Image.fromarray(scene), "JPEG")
    height, width = scene.shape[:2]
    for box in (
        (0, 0, width + 1, 5), (0, 0, 5, height + 1), (-1, 0, 5, 5), (0, -1, 5, 5),
        (5, 5, 5, 9), (5, 5, 9, 5), (9, 5, 5, 9), (5, 9, 9, 5), (0, 0, 0, 0),
    ):  # fmt: skip
        assert turbojpeg.decode_piece(data, box) is None


def test_libturbojpeg_before_version_3_is_not_used(monkeypatch):
    """It has nothing that begins with tj3."""
    monkeypatch.setattr(turbojpeg.ctypes, "CDLL", lambda name: object())
    turbojpeg._library.cache_clear()
    try:
        assert turbojpeg._library() is None
        assert turbojpeg.decode_piece(b"", (0, 0, 1, 1)) is None
    finally:
        turbojpeg._library.cache_clear()


class Counted(io.BytesIO):
    """A file that knows how much of it was read."""

    count = 0

    def read(self, size=-1):
        found = super().read(size)
        self.count += len(found)
        return found


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_size_of_a_file_is_read_from_its_header(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for options, size in (({}, (400, 300)), ({"exif": exif}, (300, 400))):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind, **options)
        assert image_size(file.getvalue(), "a") == size
        counted = Counted(file.getvalue())
        assert image_size(counted, "a") == size
        # Pillow decodes a PNG with EXIF.
        assert counted.count < len(file.getvalue()) / 20 or (kind == "PNG" and options)


def test_exif_behind_the_pixels_of_a_png_turns_it():
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(file, "PNG", exif=exif)
    data = file.getvalue()
    start = data.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(data[start : start + 4], "big")
    end = data.index(b"IEND") - 4
    moved = data[:start] + data[stop:end] + data[start:stop] + data[end:]
    assert image_size(moved, "a") == image_size(data, "a") == (4, 6) == decode(moved).shape[1::-1]
