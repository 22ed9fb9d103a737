"""Files that a command writes for a person, who may have files of the same names."""

import json
import os
import pathlib
from collections.abc import Iterable

from etils import epath

from vitlab.errors import InputError


class OwnFiles:
    """The files of a folder that a command wrote, now or earlier: it replaces no others.

    Their names are in `.vitlab-COMMAND` there, a JSON string a line.

    Args:
        folder: which need not exist yet.
        command: such as "predict".
    """

    def __init__(self, folder: os.PathLike | str, command: str):
        self.folder = epath.Path(folder)
        self._list = self.folder / f".vitlab-{command}"
        self._names = _names(self._list)

    def check(self, names: Iterable[str]) -> None:
        """Looks before anything is written whether these files may be.

        Args:
            names: relative to the folder, such as "pictures/a.jpg".

        Raises:
            InputError: one is there and not the command's own.
        """
        for name in names:
            if name not in self._names and (self.folder / name).exists():
                raise InputError(
                    f"{self.folder / name} is there and this command did not write it: "
                    "take another --out"
                )

    def path(self, name: str) -> epath.Path:
        """Where to write a file, which from now on is the command's own; makes its folder.

        Raises:
            InputError: as `check`.
        """
        self.check([name])
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name not in self._names:
            with self._list.open("a") as file:
                file.write(json.dumps(name) + "\n")
            self._names.add(name)
        return path

    def delete_all_but(self, names: Iterable[str]) -> None:
        """Deletes the command's own files, but for these."""
        others = self._names.difference(names)
        for path in (self.folder / name for name in others):
            if path.is_file():
                path.unlink()
        if others:
            self._names -= others
            self._list.write_text("".join(json.dumps(name) + "\n" for name in sorted(self._names)))


def _names(path: epath.Path) -> set[str]:
    """The names in a list that are of its folder; of none that can be read, none."""
    try:
        names = [json.loads(line) for line in path.read_text().splitlines()]
        parts = {name: pathlib.PurePath(name).parts for name in names}
    except (OSError, ValueError, TypeError):
        return set()
    return {name for name in names if not {"..", "/"} & set(parts[name])}
