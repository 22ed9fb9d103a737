"""TIFF files that Pillow reads wrongly or at any price, and masks in TIFF."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from vitlab.data.decode import decode, decode_mask
from vitlab.errors import InputError


def tiff(data, width, height, bits=(8,), **tags):
    """A file by TIFF 6.0: little-endian, uncompressed, in one strip unless the tags say more."""
    values = {
        256: [width], 257: [height], 258: list(bits), 259: [1], 262: [1], 273: [8],
        277: [len(bits)], 278: [height], 279: [len(data)],
    }  # fmt: skip
    values |= {int(tag[1:]): value for tag, value in tags.items()}
    at, entries, far = 8 + len(data), b"", b""
    for tag, numbers in sorted(values.items()):
        packed = struct.pack(f"<{len(numbers)}I", *numbers)
        place = packed
        if len(numbers) > 1:
            place = struct.pack("<I", at + len(far))
            far += packed
        entries += struct.pack("<HHI", tag, 4, len(numbers)) + place
    start = struct.pack("<4sI", b"II*\0", at + len(far))
    return start + data + far + struct.pack("<H", len(values)) + entries + bytes(4)


def refused(data, message, function=decode):
    with pytest.raises(InputError) as error:
        function(data)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_files_that_are_made_here_are_read():
    assert decode(tiff(bytes(range(6)), 3, 2), channels=1)[..., 0].tolist() == [
        [0, 1, 2],
        [3, 4, 5],
    ]
    planes = tiff(bytes(range(12)), 2, 2, (8, 8, 8), t262=[2], t284=[2], t273=[8, 12, 16],
                  t279=[4, 4, 4])  # fmt: skip
    assert decode(planes).tolist() == [[[0, 4, 8], [1, 5, 9]], [[2, 6, 10], [3, 7, 11]]]


def test_what_would_come_out_wrong_is_refused():
    apart = {"t262": [2], "t284": [2], "t273": [8, 16, 24], "t279": [8, 8, 8]}
    refused(
        tiff(bytes(24), 2, 2, (16, 16, 16), **apart),
        "the TIFF image has 16 bits with each channel apart, which is not read",
    )
    refused(tiff(bytes(6), 2, 2, (12,)), "the TIFF image has 12 bits, which is not read")
    # EuroSAT's thirteen bands.
    refused(
        tiff(bytes(104), 2, 2, (16,) * 13, t338=[0] * 12),
        "of a kind that is not read: grey, palette, RGB and CMYK of 8 or 16 bits are",
    )


def test_what_would_fill_the_memory_is_refused():
    refused(tiff(b"", 10**5, 10**5), "the TIFF image has 100000 x 100000 pixels, which is more")
    refused(
        tiff(b"", 10, 10, t322=[10**5], t323=[10**5], t324=[8], t325=[0]),
        "the TIFF image is of tiles of 100000 x 100000 pixels, which is more than 89478485",
    )


def test_more_pixels_than_pillow_allows_where_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    monkeypatch.setattr("vitlab.data.decode.MAX_PIXELS", 1)
    data = tiff(bytes(range(6)), 3, 2)
    assert decode(data, max_pixels=6).shape == (2, 3, 3)
    refused(data, "more than max_pixels=5", lambda data: decode(data, max_pixels=5))
    assert Image.MAX_IMAGE_PIXELS == 1


def test_masks_are_the_numbers_that_are_stored():
    ids = np.array([[0, 1, 2], [2, 255, 1]], np.uint8)
    stored = ids.tobytes()
    assert decode_mask(tiff(stored, 3, 2)).tolist() == ids.tolist()
    assert decode_mask(tiff(stored, 3, 2, t262=[0])).tolist() == ids.tolist()  # White is zero.
    assert decode_mask(tiff(b"\x1b\xe4", 4, 2, (2,))).tolist() == [[0, 1, 2, 3], [3, 2, 1, 0]]
    deep = ids.astype("<u2") * 257
    assert decode_mask(tiff(deep.tobytes(), 3, 2, (16,))).tolist() == deep.tolist()
    palette = [0] * 768
    assert decode_mask(tiff(stored, 3, 2, t262=[3], t320=palette)).tolist() == ids.tolist()
    colours = io.BytesIO()
    Image.fromarray(np.stack([ids] * 3, axis=-1)).save(colours, "TIFF", compression="tiff_lzw")
    assert decode_mask(colours.getvalue()).shape == (2, 3, 3)


def test_masks_of_no_ids_are_refused():
    for dtype, message in (("<f4", "is F: no ids"), ("<i4", "levels from 0 to 70000: a mask has")):
        numbers = np.array([[0, 70_000]], dtype)
        kind = {"<f4": [3], "<i4": [2]}[dtype]
        refused(tiff(numbers.tobytes(), 2, 1, (32,), t339=kind), message, decode_mask)
