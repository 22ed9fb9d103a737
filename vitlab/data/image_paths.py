"""Image files that a command line means: which they are, and a source of them."""

import glob
import os
from collections.abc import Sequence
from typing import Any

from etils import epath

from vitlab.data.folders import image_files, no_image, read_file
from vitlab.errors import InputError


def image_paths(arguments: Sequence[str]) -> list[str]:
    """The image files that are meant, each once, in the order of the arguments.

    Args:
        arguments: a file, whatever its name; a folder, of which every image below it is meant, by
            name; or a pattern such as `photos/**/*.jpg`, of the files, or if it fits folders
            alone of what is in them.

    Raises:
        InputError: there is no such file, a pattern fits none, or a folder holds no image.
    """
    found: dict[str, None] = {}
    for argument in arguments:
        path = os.path.expanduser(argument)
        if os.path.exists(path) or not glob.has_magic(path):
            found |= dict.fromkeys(_meant(path))
            continue
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            raise InputError(f"no file fits the pattern {argument}")
        files = [match for match in matches if not os.path.isdir(match)]
        # A pattern that fits files means these; one that fits folders alone, what is in them.
        found |= dict.fromkeys(files or [file for match in matches for file in _meant(match)])
    return list(found)


def _meant(path: str) -> list[str]:
    if os.path.isdir(path):
        found = sorted(os.path.join(path, name) for name in image_files(epath.Path(path)))
        if not found:
            raise InputError(f"folder {path} {no_image(epath.Path(path))}")
        return found
    if not os.path.exists(path):
        raise InputError(f"{path} does not exist")
    return [path]


class ImageFiles:
    """Image files as a `vitlab.data.sources.Source`, without labels and in the order given."""

    class_names = ()
    ranges = ()

    def __init__(self, paths: Sequence[str]):
        self._paths = list(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": read_file(self.describe(index)), "label": 0}

    def describe(self, index: int) -> str:
        return self._paths[index]
