"""Presized sources: the same images, smaller, whether they are stored or not."""

import io
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from vitlab.data import presized
from vitlab.data.decode import decode
from vitlab.data.presized import Presized
from vitlab.data.resize import resize_small
from vitlab.data.sources import open_source
from vitlab.errors import InputError


def _jpeg():
    file = io.BytesIO()
    Image.new("RGB", (64, 48)).save(file, "JPEG")
    return file.getvalue()


IMAGE = _jpeg()


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """A folder of eleven images in two classes: upright and turned, large and small, one broken."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(presized, "_SHARD", 4)
    rng = np.random.default_rng(0)
    for i in range(11):
        path = tmp_path / "photographs" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (2, 3, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[274] = 6 if i == 3 else 1
        size = (16, 12) if i == 5 else (64, 48)
        coarse.resize(size, Image.Resampling.BICUBIC).save(path, "JPEG", exif=exif, quality=95)
    (tmp_path / "photographs" / "a" / "8.jpg").write_bytes(b"no image")
    return lambda: open_source(f"folder:{tmp_path / 'photographs'}", "train")


def examples(source):
    return [source[i] for i in range(len(source))]


def test_images_are_reduced_upright_and_labels_stay(photographs):
    original, source = photographs(), Presized(photographs(), 24)
    source.store(lambda line: None)
    assert source.class_names == ("a", "b")
    assert source.ranges == original.ranges
    for index in range(11):
        before, after = original[index], source[index]
        assert source.describe(index) == original.describe(index)
        assert after["label"] == before["label"]
        if original.describe(index).endswith(("5.jpg", "8.jpg")):
            assert after["image"] == before["image"]  # Never enlarged; and broken as it was.
            continue
        image = decode(after["image"])
        expected = resize_small(decode(before["image"]), 24, "bicubic", antialias=True)
        assert image.shape == expected.shape
        assert min(image.shape[:2]) == 24
        assert np.abs(image.astype(int) - expected).mean() < 3


def test_it_gives_the_same_bytes_before_and_after_they_are_stored(photographs):
    lines = []
    source = Presized(photographs(), 24)
    before = examples(source)
    source.store(lines.append)
    assert lines[0] == f"presize: storing images of 24 pixels in {source.folder}"
    assert lines[-1].startswith("presize: 11 images in ")
    assert examples(source) == before
    assert examples(pickle.loads(pickle.dumps(source))) == before


def test_what_was_killed_goes_on_and_what_is_finished_is_found_again(photographs):
    source = Presized(photographs(), 24)
    whole = examples(source)
    for done, _ in enumerate(source._write(0)):
        if done == 1:
            break
    assert not source._path(0).exists()
    list(source._write(1))
    written = source._path(1).stat()
    again = Presized(photographs(), 24)
    again.store(lambda line: None)
    assert again.folder == source.folder
    assert again._path(1).stat() == written
    assert sorted(p.name for p in again.folder.glob("0*")) == [
        f"0000{n}.array_record" for n in range(3)
    ]
    assert examples(again) == whole
    again.store(pytest.fail)  # There is nothing to say.


def test_other_sizes_and_other_images_are_kept_apart(photographs, tmp_path):
    folder = Presized(photographs(), 24).folder
    assert Presized(photographs(), 25).folder != folder
    path = tmp_path / "photographs" / "a" / "0.jpg"
    Image.new("RGB", (64, 48)).save(path)
    changed = Presized(photographs(), 24).folder
    assert changed != folder
    path.rename(path.with_name("10000.jpg"))
    assert Presized(photographs(), 24).folder not in (folder, changed)


def test_arrays_stay_as_they_are(numbered):
    source = numbered(3)
    source.ranges = ()
    for index in range(3):
        np.testing.assert_array_equal(Presized(source, 1)[index]["image"], source[index]["image"])


def test_a_folder_that_cannot_be_written_is_named_in_one_line(photographs, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    source = Presized(photographs(), 24)
    with pytest.raises(InputError) as error:
        source.store(lambda line: None)
    assert str(error.value) == (
        f"presize: {source.folder} cannot be written (Not a directory): set XDG_CACHE_HOME to a "
        "folder that can"
    )


def test_a_damaged_file_is_named_in_one_line(photographs):
    source = Presized(photographs(), 24)
    source.store(lambda line: None)
    path = source._path(0)
    data = bytearray(path.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    path.write_bytes(bytes(data))
    with pytest.raises(InputError) as error:
        examples(Presized(photographs(), 24))
    assert str(error.value).startswith(f"{path} is damaged (")
    assert str(error.value).endswith("): remove it")


def test_a_label_of_minus_one_stays(photographs, monkeypatch):
    original = photographs()
    monkeypatch.setattr(
        type(original), "__getitem__", lambda self, i: {"image": IMAGE, "label": -1}
    )
    source = Presized(original, 24)
    source.store(lambda line: None)
    assert source[0]["label"] == -1
    assert source[0]["image"] != IMAGE


def test_a_file_that_another_process_renames_meanwhile_is_no_error(photographs):
    source = Presized(photographs(), 24)
    source.folder.mkdir(parents=True)
    # As it is listed, and then no more there.
    os.symlink("nowhere", source.folder / ".00000.array_record.other.1")
    source.store(lambda line: None)
    assert all(source._path(n).exists() for n in range(3))


def test_two_processes_may_write_the_same_file(photographs, monkeypatch):
    source, other = Presized(photographs(), 24), Presized(photographs(), 24)
    writing = source._write(0)
    next(writing)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        list(other._write(0))
    whole = source._path(0).read_bytes()
    list(writing)
    assert source._path(0).read_bytes() == whole
    assert [path.name for path in source.folder.iterdir()] == ["00000.array_record"]
