"""What a format of published weights is, and a file that is asked which one it has."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from vitlab.errors import InputError
from vitlab.models.vit import VARIANTS
from vitlab.weights.files import Tensor
from vitlab.weights.table import Rule

# Of a model's variables, by name.
Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint whose tensors are not read yet.

    Attributes:
        where: the file or the name on the hub, for errors.
        tensors: by the names that the format's table uses.
        origin: the file's own name of each.
        config: what `config.json` beside it says; {} where there is none.
        preprocessor: the same of `preprocessor_config.json`.
        grid: rows and columns of the position table, where the caller knows better.
        wanted: (height, width) in pixels that the caller wants; None: what the file is for.
        part: of a `.pth` that holds several things, the one that this is, such as "model".
        licence: as the file or its card says; "" where neither does.
    """

    where: str
    tensors: Mapping[str, Tensor]
    origin: Mapping[str, str]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocessor: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    grid: tuple[int, int] | None = None
    wanted: tuple[int, int] | None = None
    part: str = ""
    licence: str = ""

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def replace(self, **changes: Any) -> "Source":
        """The same but for some of its attributes."""
        return dataclasses.replace(self, **changes)

    def shape(self, name: str, axes: int | None = None) -> tuple[int, ...]:
        """Of a tensor that must be there, with so many axes."""
        if name not in self.tensors:
            raise InputError(f"{self.where} has no {name}")
        shape = self.tensors[name].shape
        if axes is not None and len(shape) != axes:
            raise InputError(f"{self.where}: {self.origin[name]} is {shape}, but needs {axes} axes")
        return shape

    def read(self, name: str) -> np.ndarray:
        """A tensor's numbers."""
        self.shape(name)
        return self.tensors[name].read()

    def count(self, template: str) -> int:
        """How many of a name there are, `{i}` counting from 0: `blocks.{i}.norm1.weight`."""
        before, after = template.split("{i}")
        number = 0
        while f"{before}{number}{after}" in self.tensors:
            number += 1
        if number == 0:
            raise InputError(f"{self.where} has no {before}0{after}")
        return number

    def patch_size(self, name: str) -> int:
        """Of a patch embedding's kernel [width, channels, height, width]."""
        *_, height, width = self.shape(name, 4)
        if height != width:
            raise InputError(f"{self.where}: patches of {height} x {width} are not supported")
        return height

    def prefix_positions(self, rows: int, possible: Sequence[int]) -> int:
        """How many rows of a position table belong to no patch, of some possible numbers."""
        for grids in (self._told, self._square):
            for number in possible:
                if grids(rows - number) is not None:
                    return number
        hint = "" if self.grid is None else f", not {self.grid[0]} x {self.grid[1]} patches"
        raise InputError(
            f"{self.where}: the position table has {rows} rows{hint}: give the rows and columns of "
            "its patches, such as grid=(14, 28)"
        )

    def grid_of(self, cells: int) -> tuple[int, int]:
        """Rows and columns of so many patches."""
        grid = self.possible_grid(cells)
        if grid is None:
            raise InputError(f"{self.where}: {cells} patches are no square: give grid=(14, 28)")
        return grid

    def possible_grid(self, cells: int) -> tuple[int, int] | None:
        """The same, or None where it cannot be told."""
        return self._told(cells) or self._square(cells)

    def _told(self, cells: int) -> tuple[int, int] | None:
        """The grid of so many patches that the caller or else config.json speaks of."""
        if self.grid is not None:
            return self.grid if math.prod(self.grid) == cells else None
        for height, width in self.sizes() if cells > 0 else ():
            patch = max(1, math.isqrt(height * width // cells))
            if (height // patch) * (width // patch) == cells:
                return height // patch, width // patch
        return None

    def _square(self, cells: int) -> tuple[int, int] | None:
        side = math.isqrt(max(cells, 0))
        return (side, side) if self.grid is None and side * side == cells > 0 else None

    def sizes(self) -> list[tuple[int, int]]:
        """Heights and widths of images that config.json speaks of."""
        config = self.config.get("vision_config", self.config)
        named = [
            config.get("model_args", {}).get("img_size"),
            config.get("pretrained_cfg", {}).get("input_size", [None])[1:],
            config.get("image_size"),
        ]
        pairs = [(size, size) if isinstance(size, int) else tuple(size or ()) for size in named]
        return [pair for pair in pairs if len(pair) == 2]


@dataclasses.dataclass(frozen=True)
class Format:
    """One way in which somebody publishes weights.

    Attributes:
        name: as the hint `format` takes it.
        title: for people.
        signs: names by which a file of the format is known.
        absent: names that it cannot have.
        accepts: where names do not tell.
        prefixes: what may stand before all names of the model, such as "backbone.".
        aliases: other names that the same tensors go by: (regex, what to put in its place).
        fields: the model's class, and its fields as far as a file and its config.json tell.
        rules: the table of a model.
        unused: names (regexes, matched whole) that are of no use to the model, and why.
        resize: how the source interpolates its position table: keywords of
            `ops.positions.resize_position_embedding`.
        preprocess: a preprocessing string for images of a (height, width), and whether the file
            says so (or its format does in general).
        unpack: for files whose tensors are not one for one those of the table.
        writes: a model, the shapes of its variables and (height, width) of its images -> the
            config.json of its file; an InputError where the format has no way to say what the model
            is. None: it is only read.
        described: that config, a preprocessing string and names of classes -> all json files of
            its folder, by name; none where the format is a file.
        file_name: what stands before a name of the table in a file.
    """

    name: str
    title: str
    signs: tuple[str, ...]
    fields: Callable[[Source], tuple[type[nn.Module], dict[str, Any]]]
    rules: Callable[[nn.Module], list[Rule]]
    preprocess: Callable[[Source, tuple[int, int]], tuple[str, bool]]
    absent: tuple[str, ...] = ()
    accepts: Callable[[Source], bool] = lambda source: True
    prefixes: tuple[str, ...] = ("",)
    aliases: tuple[tuple[str, str], ...] = ()
    unused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    resize: Callable[[Source], dict[str, Any]] = lambda source: {}
    unpack: Callable[[Source], Source] | None = None
    writes: Callable[[nn.Module, Shapes, tuple[int, int]], dict[str, Any]] | None = None
    described: Callable[[dict, str, Sequence[str]], dict[str, Any]] = lambda *_: {}
    file_name: Callable[[nn.Module, str], str] = lambda _, name: name

    def recognise(self, source: Source, named: bool = False) -> Source | None:
        """The source under the names of this format's table, if it has this format; `named` where
        the caller says so."""
        for prefix in self.prefixes:
            origin: dict[str, tuple[str, str]] = {}
            twice = ""
            for name, full in source.origin.items():
                short = name.removeprefix(prefix)
                for pattern, replacement in self.aliases:
                    short = re.sub(pattern, replacement, short)
                if short in origin:
                    twice = f"{full} and {origin[short][1]}"
                origin[short] = name, full
            tensors = {short: source.tensors[name] for short, (name, _) in origin.items()}
            origin = {short: full for short, (_, full) in origin.items()}
            seen = source.replace(tensors=tensors, origin=origin)
            seen = self.unpack(seen) if self.unpack else seen
            known = all(name in seen for name in self.signs)
            known = known and not any(name in seen for name in self.absent)
            if known and (named or self.accepts(seen)):
                if twice:
                    raise InputError(f"{source.where}: {twice} are the same parameter")
                return seen
        return None


def default_heads(width: int, depth: int) -> int | None:
    """Heads of a published size, or else of 64 channels; None where neither can be."""
    for size in VARIANTS.values():
        if size[:2] == (width, depth):
            return size[3]
    return width // 64 if width % 64 == 0 else None
