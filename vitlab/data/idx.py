"""The idx files of the MNIST family as a source."""

import gzip
import math
import os
import zlib
from typing import Any

import numpy as np
from etils import epath

from vitlab.data.folders import read_lines
from vitlab.data.splits import resolve, split_names
from vitlab.errors import InputError


class IdxSource:
    """The MNIST family's idx files (http://yann.lecun.com/exdb/mnist); images uint8[height, width].

    `PATH` holds train-images-idx3-ubyte, train-labels-idx1-ubyte and the same with t10k for the
    split "test", each plain or with .gz. Class names come from `?classes=a,b,c`, else from the
    lines of a classes.txt or labels.txt beside the files, else they are "0" to "9".
    """

    _PREFIXES = {"train": "train", "test": "t10k"}

    def __init__(self, path: str, split: str, classes: str | None):
        self._root, self._split = epath.Path(path).expanduser(), split
        if not self._root.is_dir():
            raise InputError(f"idx folder {self._root} does not exist or is not a folder")
        self.class_names = self._read_class_names(classes)
        self._load()
        largest = int(self._labels.max())
        if largest >= len(self.class_names):
            raise InputError(
                f"idx folder {self._root} has the label {largest} but {len(self.class_names)} "
                "class names: name them all with ?classes=a,b,c or one a line in classes.txt"
            )

    def _read_class_names(self, classes: str | None) -> tuple[str, ...]:
        if classes is not None:
            names = classes.split(",")
        else:
            listed = [self._root / name for name in ("classes.txt", "labels.txt")]
            listed = [path for path in listed if path.exists()]
            names = read_lines(os.fspath(listed[0])) if listed else "0123456789"
        return tuple(name.strip() for name in names if name.strip())

    def _load(self) -> None:
        splits = {}
        for name in dict.fromkeys(split_names(self._split)):
            if name not in self._PREFIXES:
                raise InputError(
                    f"idx folder {self._root} has the splits test, train: {name!r} does not exist"
                )
            prefix = self._PREFIXES[name]
            images = _read_idx(self._root, f"{prefix}-images", dimensions=3)
            labels = _read_idx(self._root, f"{prefix}-labels", dimensions=1)
            if len(images) != len(labels):
                raise InputError(
                    f"idx folder {self._root}: {len(images)} images but {len(labels)} labels "
                    f"in the split {name}"
                )
            splits[name] = images, labels
        sizes = {name: len(labels) for name, (_, labels) in splits.items()}
        self.ranges = ranges = resolve(self._split, sizes, f"idx:{self._root}")
        self._images, self._labels = (
            np.concatenate([splits[name][part][start:stop] for name, start, stop in ranges])
            for part in (0, 1)
        )

    def __getstate__(self) -> dict[str, Any]:
        # A worker reads the files itself: cheaper than sending the images through a pipe.
        return {k: v for k, v in self.__dict__.items() if k not in ("_images", "_labels")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._images[index], "label": int(self._labels[index])}

    def describe(self, index: int) -> str:
        return f"idx:{self._root} {self._split}[{index}]"


def _read_idx(root: epath.Path, stem: str, dimensions: int) -> np.ndarray:
    """Reads uint8[count, ...] from the idx file `stem`: a magic number, the sizes, the bytes."""
    names = [f"{stem}{dot}idx{dimensions}-ubyte{gz}" for dot in "-." for gz in ("", ".gz")]
    paths = [root / name for name in names if (root / name).exists()]
    if not paths:
        raise InputError(f"idx folder {root} has no {names[0]} (nor with .gz)")
    path = paths[0]
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    # The magic number: two zeros, 8 for unsigned bytes, the number of dimensions.
    if content[:4] != bytes([0, 0, 8, dimensions]):
        raise InputError(f"{path} is no idx file of {dimensions}-dimensional bytes (magic number)")
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:start].ljust(start - 4, b"\0"), ">u4").tolist()
    if len(content) != start + math.prod(shape):
        raise InputError(
            f"{path} is truncated or damaged: {start + math.prod(shape)} bytes expected for "
            f"{' x '.join(map(str, shape))}, {len(content)} found"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
