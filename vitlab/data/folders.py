"""Sources of image files in folders: with a class a folder, or without labels."""

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
from etils import epath

from vitlab.data.decode import image_size
from vitlab.data.splits import INSTEAD, resolve, split_names
from vitlab.errors import InputError

# Those that ImageFolder of torchvision reads, and .jfif, .gif and .pbm.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
IMAGE_SUFFIXES += (".ppm", ".pgm", ".pbm")
_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
_SHOWN = 6  # Suffixes of other files; the rest are counted.

# Of each folder, how many files below it are not read as images, by suffix.
OtherFiles = dict[str, dict[str, int]]


class FolderSource:
    """Image files in one folder per class; an example's image is the encoded bytes of its file.

    Where every folder in PATH holds images itself, these are the classes and all of them together
    are the split "train"; one alone, or folders with names of splits, may not hold folders of
    images besides, as splits with a stray image do. Otherwise the folders in PATH are the splits
    and the folders in each of them the classes; files may lie deeper, and links to folders are
    followed. Labels are the places of the class names in sorted order, and the class names are
    those of the split "train" where there is one, else those of all splits together, so a label
    means the same in every split: a split may lack a class, but may not have one more. Names that
    begin with "." or "__" are left out.

    The order of the examples is that of a hash of their relative paths: fixed, independent of the
    file system, and mixed, so that `train[:90%]` holds nine tenths of every class.

    `other_files` tells what else lies in the folders, see `OtherFiles`.
    """

    def __init__(self, path: str, split: str):
        root = epath.Path(path).expanduser()
        folders = subfolders(root)
        if not folders:
            raise InputError(f"folder {root} holds no folder of images, one a class is expected")
        hold = {name: holds_images(folder) for name, folder in folders.items()}
        if all(hold.values()):
            _check_classes(folders)
            splits = {"train": folders}
        else:
            splits = {name: subfolders(folder) for name, folder in folders.items()}
        self._root = os.fspath(root)
        wanted = dict.fromkeys(split_names(split))
        for name in wanted:
            if name not in splits:
                if next(image_files(root), None) is None:
                    raise InputError(f"folder {root} {no_image(root)}")
                kind = "has" if splits.keys() == folders.keys() else "holds classes, so has only"
                spare = [each for each in hold if not hold[each]]
                hint = f"; {INSTEAD}" if list(splits) == ["train"] else ""
                if 0 < len(spare) < len(hold):
                    hint = (
                        f"; if its folders are classes, remove those that hold no image themselves "
                        f"or put some there: {', '.join(spare)}"
                    )
                raise InputError(
                    f"folder {root} {kind} the split {', '.join(splits)}: {name!r} does not exist"
                    f"{hint}"
                )
        classes = splits.get("train") or {c: None for each in splits.values() for c in each}
        self.class_names = tuple(sorted(classes))
        self.other_files: OtherFiles = {}
        files = {name: self._files(splits[name], folders, name) for name in wanted}
        sizes = {name: len(found) for name, found in files.items()}
        self.ranges = resolve(split, sizes, f"folder:{root}")
        examples = [x for name, start, stop in self.ranges for x in files[name][start:stop]]
        self._paths = [path for path, _ in examples]
        self._labels = np.array([label for _, label in examples], np.int32)

    def _files(self, classes, folders, split: str) -> list[tuple[str, int]]:
        """The files of one split, as paths from the root, with labels, in order of the hash."""
        keyed = []
        for name, folder in classes.items():
            if name not in self.class_names:
                raise InputError(f"folder {folder}: the split train has no class {name!r}")
            found, self.other_files[os.fspath(folder)] = told_apart(folder)
            if not found:
                raise InputError(f"class folder {folder} {no_image(folder)}: remove it")
            label = self.class_names.index(name)
            place = os.path.relpath(folder, self._root)
            for path in found:
                key = place_in_order(os.path.join(name, path))
                keyed.append((key, os.path.join(place, path), label))
        if not keyed:
            raise InputError(f"split folder {folders[split]} holds no class folder with images")
        return [(path, label) for _, path, label in sorted(keyed)]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": read_file(self.describe(index)), "label": int(self._labels[index])}

    def describe(self, index: int) -> str:
        return os.path.join(self._root, self._paths[index])


class ImagesSource:
    """All image files below a folder, without labels, to pretrain on. In an order as of
    `FolderSource`, and without the names that it leaves out."""

    class_names = ()

    def __init__(self, path: str, split: str):
        root = epath.Path(path).expanduser()
        if not root.is_dir():
            raise InputError(f"images {root} does not exist or is not a folder")
        self._root = os.fspath(root)
        images, others = told_apart(root)
        self.other_files = {self._root: others}
        if not images:
            raise InputError(f"images {root} {no_image(root)}")
        found = sorted(images, key=place_in_order)
        for name in split_names(split):
            if name != "train":
                raise InputError(
                    f"images {root} has only the split train: {name!r} does not exist; {INSTEAD}"
                )
        self.ranges = resolve(split, {"train": len(found)}, f"images:{root}")
        self._paths = [path for _, start, stop in self.ranges for path in found[start:stop]]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": read_file(self.describe(index)), "label": 0}

    def describe(self, index: int) -> str:
        return os.path.join(self._root, self._paths[index])


def _check_classes(folders: dict[str, epath.Path]) -> None:
    """That folders that hold images themselves are no splits with images beside their classes."""
    if len(folders) > 1 and not folders.keys() <= _SPLITS:
        return
    for name, folder in folders.items():
        inner = [each for each, path in subfolders(folder).items() if any(image_files(path))]
        if inner:
            stray = next(path.name for path in _entries(folder) if _is_image(path))
            raise InputError(
                f"folder {folder} holds images, such as {stray}, and folders of images, such as "
                f"{inner[0]}: if these are the classes, remove the images beside them; if {name} "
                f"is a class, put them all in one folder"
            )


def place_in_order(path: str) -> bytes:
    """A hash of a relative path, by which files are sorted."""
    return hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def read_file(path: str) -> bytes:
    """The bytes of a file; an InputError names it where it cannot be read."""
    with _opened(path) as file:
        return file.read()


def can_be_called(name: str) -> bool:
    """Whether a file can have this name: not with a NUL, nor with half a pair of surrogates."""
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def read_lines(path: str) -> list[str]:
    """The lines of a file in UTF-8, whether or not it begins with a byte order mark.

    Raises:
        InputError: it cannot be read, or is in another encoding.
    """
    try:
        return read_file(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 (byte {error.start}): save it as such") from None


def read_size(path: str) -> tuple[int, int]:
    """Width and height of an image file, of which little more than the header is read.

    Raises:
        InputError: see `image_size`, or it cannot be read.
    """
    with _opened(path) as file:
        return image_size(file, path)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    try:
        with epath.Path(path).open("rb") as file:
            yield file
    except InputError:
        raise
    except (OSError, ValueError) as error:  # The latter where the name has a NUL.
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason})") from error


def _entries(folder: epath.Path) -> list[epath.Path]:
    """What lies in a folder, sorted, without hidden names."""
    try:
        found = sorted(folder.iterdir())
    except FileNotFoundError:
        raise InputError(f"folder {folder} does not exist") from None
    except NotADirectoryError:
        raise InputError(f"{folder} is a file: a folder of images is expected") from None
    except OSError as error:
        raise InputError(f"folder {folder} cannot be read ({error.strerror})") from error
    return [path for path in found if not path.name.startswith((".", "__"))]


def subfolders(folder: epath.Path) -> dict[str, epath.Path]:
    """The folders in a folder by their names, sorted, without hidden ones."""
    return {path.name: path for path in _entries(folder) if path.is_dir()}


def holds_images(folder: epath.Path) -> bool:
    """Whether an image file lies in the folder itself; an InputError if it cannot be read."""
    return any(map(_is_image, _entries(folder)))


def _is_image(path: epath.Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def names_in(folder: epath.Path, suffixes: tuple[str, ...]) -> list[str]:
    """The files in a folder with one of the suffixes, without hidden ones."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise InputError(f"folder {folder} cannot be read ({error.strerror})") from None
    return [n for n in names if n.lower().endswith(suffixes) and not n.startswith(".")]


def image_files(folder: epath.Path) -> Iterator[str]:
    """Every image file below `folder`, as a path from there, without those in hidden folders.

    Links to folders are followed, and a folder that several lead to is read once: they may form
    cycles. What is reached without a link is read first, so that a link more renames nothing.
    """
    return (name for name in _files(folder) if name.lower().endswith(IMAGE_SUFFIXES))


def no_image(folder: epath.Path) -> str:
    """That there is none in a folder, for an error, and what there is instead."""
    others = _counted(told_apart(folder)[1])
    kinds = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
    return f"holds no image ({kinds})" + (f" but {others}" if others else "")


def left_out(sources: Iterable[Any]) -> str:
    """A line on the files that sources of folders do not read as images; "" if they do all."""
    found: OtherFiles = {}
    for source in sources:
        found |= getattr(source, "other_files", {})
    counts = suffixes(found)
    total = sum(counts.values())
    what = "file is" if total == 1 else "files are"
    return f"{total:,} {what} not read as images: {_counted(counts)}" if total else ""


def suffixes(found: OtherFiles) -> dict[str, int]:
    """How many files there are of each suffix, of all folders together."""
    counts = sum(map(Counter, found.values()), Counter())
    return dict(sorted(counts.items()))


def _counted(found: dict[str, int]) -> str:
    """Such as `3 .heic, 1 .txt`, the most first."""
    most = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    more = [f"{sum(n for _, n in most[_SHOWN:])} of others"] if len(most) > _SHOWN else []
    return ", ".join([f"{n} {suffix}" for suffix, n in most[:_SHOWN]] + more)


def told_apart(folder: epath.Path) -> tuple[list[str], dict[str, int]]:
    """`image_files`, and how many others there are of each suffix."""
    images, others = [], Counter()
    for name in _files(folder):
        if name.lower().endswith(IMAGE_SUFFIXES):
            images.append(name)
        else:
            others[os.path.splitext(name)[1].lower() or "no suffix"] += 1
    return images, dict(others)


def _files(folder: epath.Path) -> Iterator[str]:
    """See `image_files`, of every suffix."""

    def stop(error: OSError):
        raise InputError(f"folder {error.filename} cannot be read ({error.strerror})") from error

    def walk(start: str):
        # From Python 3.12 on, pathlib counts links to folders among the files.
        local = os.path.isdir(start)
        return os.walk(start, onerror=stop) if local else epath.Path(start).walk(on_error=stop)

    top = os.fspath(folder)
    waiting, seen = [top], set()
    while waiting:
        start = waiting.pop(0)
        real = os.path.realpath(start)
        for where, folders, names in walk(start):
            where = os.fspath(where)
            place = real + where[len(start) :]
            if place in seen:
                folders.clear()
                continue
            seen.add(place)
            folders[:] = sorted(each for each in folders if not each.startswith((".", "__")))
            paths = (os.path.join(where, each) for each in folders)
            waiting += (path for path in paths if os.path.islink(path))
            below = where[len(top) :].lstrip("/")
            yield from (os.path.join(below, name) for name in names if not name.startswith("."))
