"""Files, folders and patterns of a command line."""

import pytest

from vitlab.data.image_paths import ImageFiles, image_paths
from vitlab.errors import InputError


@pytest.fixture
def photos(tmp_path):
    for name in ("b/2.JPG", "b/1.png", "a.jpeg", "b/notes.txt", "c/deep/3.webp", ".hidden/4.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def found(photos, *arguments):
    root = f"{photos}/"
    return [path.removeprefix(root) for path in image_paths([root + a for a in arguments])]


def test_a_folder_means_every_image_below_it_by_name(photos):
    assert found(photos, "") == ["a.jpeg", "b/1.png", "b/2.JPG", "c/deep/3.webp"]


def test_a_file_is_meant_whatever_its_name(photos):
    assert found(photos, "b/notes.txt", "a.jpeg") == ["b/notes.txt", "a.jpeg"]


def test_patterns_mean_files_or_what_is_in_folders(photos):
    assert found(photos, "b/*.png") == ["b/1.png"]
    assert found(photos, "**/*.webp") == ["c/deep/3.webp"]
    assert found(photos, "[bc]") == ["b/1.png", "b/2.JPG", "c/deep/3.webp"]


def test_each_file_once_in_the_order_of_the_arguments(photos):
    assert found(photos, "b/2.JPG", "b", "b/*") == ["b/2.JPG", "b/1.png", "b/notes.txt"]


def test_a_name_with_brackets_that_exists_is_no_pattern(photos):
    (photos / "x[1].jpg").touch()
    assert found(photos, "x[1].jpg") == ["x[1].jpg"]


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("nothing.jpg", "nothing.jpg does not exist"),
        ("*.tiff", "no file fits the pattern .*tiff"),
        ("empty", "folder .*empty holds no image"),
    ],
)
def test_what_means_no_file_is_an_error(photos, argument, line):
    (photos / "empty").mkdir()
    with pytest.raises(InputError, match=line):
        found(photos, argument)


def test_files_are_a_source(photos):
    (photos / "a.jpeg").write_bytes(b"pixels")
    files = ImageFiles([f"{photos}/b/1.png", f"{photos}/a.jpeg", f"{photos}/none.png"])
    assert len(files) == 3
    assert files[1] == {"image": b"pixels", "label": 0}
    assert files.describe(0) == f"{photos}/b/1.png"
    with pytest.raises(InputError, match="none.png: cannot be read"):
        files[2]
