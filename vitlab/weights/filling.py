"""A model's variables out of a file by its format's table, every key accounted for."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from vitlab.errors import InputError
from vitlab.models.mae import MAE
from vitlab.ops.positions import resize_position_embedding
from vitlab.weights.formats import Format, Source
from vitlab.weights.table import Match

TABLE = "position_embedding/table"


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of every key of a file.

    Attributes:
        used: keys whose numbers the model has.
        resized: position tables among them, interpolated to another grid as their source would.
        unused: keys that are of no use to the model: why.
        missing: parameters of the model that the file lacks, freshly initialised: a head for
            other classes.
        part: of a `.pth` that holds several things, the one that they are of.
    """

    used: tuple[str, ...]
    resized: tuple[str, ...]
    unused: Mapping[str, str]
    missing: tuple[str, ...]
    part: str = ""

    def __str__(self) -> str:
        lines = [f"{len(self.used)} keys used" + f" of the part {self.part}" * bool(self.part)]
        if self.resized:
            lines.append(f"{len(self.resized)} resized: {', '.join(self.resized)}")
        reasons: dict[str, list[str]] = {}
        for name, why in self.unused.items():
            reasons.setdefault(why, []).append(name)
        for why, names in reasons.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"{len(names)} unused, {why}: {', '.join(names[:3])}{more}")
        if self.missing:
            lines.append(f"{len(self.missing)} missing, new: {', '.join(self.missing)}")
        return "\n".join(lines)


def fill(
    form: Format,
    source: Source,
    matches: Sequence[Match],
    grid: tuple[int, int] | None,
    stored: nn.Module,
    module: nn.Module,
    size: tuple[int, int],
) -> tuple[dict[str, np.ndarray], LoadReport]:
    """The variables of `module` by name, out of a file that holds `stored`."""
    channels = _channels(source, matches)
    try:
        expected = shapes_of(module, size, channels)
    except InputError as e:
        raise InputError(f"{source.where}: {e}") from e
    other_classes = []
    if module is not stored:
        other_classes = _differing(expected, shapes_of(stored, size, channels))
    flat: dict[str, np.ndarray] = {}
    used, resized, problems = [], [], []
    left = dict.fromkeys(source.tensors)
    unused = {}
    for each in matches:
        names = [source.origin[name] for name in each.theirs]
        for name in each.theirs:
            del left[name]
        if all(name in other_classes for name in each.ours):
            unused |= dict.fromkeys(names, "of other classes")
            continue
        vit = getattr(module, "backbone", module)
        if each.ours[-1].endswith(TABLE) and vit.pos_embed.startswith("sincos"):
            unused |= dict.fromkeys(names, "fixed sines and cosines")
            continue
        for name, full in zip(each.theirs, names, strict=True):
            dtype = source.tensors[name].dtype
            if "float" not in dtype:
                raise InputError(f"{source.where}: {full} is {dtype}, and weights are floats")
        arrays = [source.read(name) for name in each.theirs]
        try:
            loaded = each.rule.load(arrays, grid)
        except ValueError as e:
            shapes = ", ".join(str(array.shape) for array in arrays)
            raise InputError(f"{source.where}: {', '.join(names)} of {shapes}: {e}") from e
        for name, array in zip(each.ours, loaded, strict=True):
            want = expected[name].shape if name in expected else None
            if name.endswith(TABLE) and want is not None and array.shape[:2] != want[:2]:
                array = _resized(array, want[:2], form.resize(source))
                resized += names
            if want is None:
                problems.append(f"{names[0]} has no place in {type(module).__name__}")
            elif array.shape != want:
                problems.append(f"{names[0]} is {array.shape}, and {name} needs {want}")
            if name in flat:
                problems.append(f"{names[0]} is there under another name too")
            flat[name] = np.asarray(array, np.float32)
        used += names
    for name in left:
        why = [why for pattern, why in form.unused.items() if re.fullmatch(pattern, name)]
        if why:
            unused[source.origin[name]] = why[0]
        else:
            problems.append(f"{source.origin[name]} is not known in the format {form.name}")
    missing = tuple(name for name in expected if name not in flat)
    problems += [f"there is nothing for {n}" for n in missing if n not in other_classes]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(f"{source.where}: {'; '.join(problems[:3])}{more}")
    for name in missing:
        flat[name] = np.zeros(expected[name].shape, np.float32)
    flat = {name: flat[name] for name in expected}
    unique = tuple(dict.fromkeys(used))
    return flat, LoadReport(unique, tuple(resized), unused, missing, source.part)


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names that are in one alone, or have other shapes."""
    return [
        name
        for name in one.keys() | other.keys()
        if name not in one or name not in other or one[name].shape != other[name].shape
    ]


def _resized(table: np.ndarray, grid: tuple[int, int], how: Mapping[str, Any]) -> np.ndarray:
    """f32[rows, columns, width] onto another grid, as its source does it."""
    rows, columns, width = table.shape
    table = jnp.asarray(table, jnp.float32).reshape(1, -1, width)
    resized = resize_position_embedding(table, grid, old_grid=(rows, columns), **how)
    return np.asarray(resized).reshape(*grid, width)


def _channels(source: Source, matches: Sequence[Match]) -> int:
    """Of the images: what the first convolution takes; 3 where none is to be seen."""
    for each in matches:
        if each.ours[0].endswith(("patch_embedding/kernel", "stem_conv/kernel")):
            kernel = np.broadcast_to(np.float32(0), source.shape(each.theirs[0], 4))
            return each.rule.load([kernel], None)[0].shape[2]
    return 3


def shapes_of(
    module: nn.Module, image_size: tuple[int, int], channels: int = 3
) -> dict[str, jax.ShapeDtypeStruct]:
    """Names and shapes of a model's variables, for images of (height, width) in pixels."""

    def init():
        images = jnp.zeros((1, *image_size, channels))
        arguments = [images]
        if isinstance(module, MAE):
            patch = module.backbone.patch_size
            arguments.append(jnp.zeros((1, image_size[0] // patch * (image_size[1] // patch))))
        return module.init(jax.random.key(0), *arguments)

    return names_of(jax.eval_shape(init))


def names_of(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables by name: `encoder/norm/scale`, `batch_stats/stem_norm/mean`."""
    tree = {**variables["params"], **{k: v for k, v in variables.items() if k != "params"}}
    return flax.traverse_util.flatten_dict(tree, sep="/")


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `names_of`."""
    statistics = {name: value for name, value in flat.items() if name.startswith("batch_stats/")}
    params = {name: value for name, value in flat.items() if name not in statistics}
    tree = flax.traverse_util.unflatten_dict
    return {"params": tree(params, sep="/"), **tree(statistics, sep="/")}
