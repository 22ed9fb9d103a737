"""Which device holds which part of the train state.

Every parameter gets the layout of the first rule that matches its path; the optimizer's state and
the average have those of their parameters. Arrays are split, never the program: XLA puts in the
collectives (GSPMD, 2105.04663), so that a layout changes memory and speed and no result.
"""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vitlab.errors import InputError
from vitlab.training.rules import check_pattern, match_rules, path_string

AXES = ("data", "fsdp", "tensor")

# Elements. To gather a bias or a norm's scale again costs more than the room that it takes.
SPLIT_FROM = 1 << 14


@dataclasses.dataclass(frozen=True)
class LayoutRule:
    """How the parameters lie over the mesh whose path matches `pattern`.

    Attributes:
        pattern: a regex that must match the whole path.
        split: the mesh axis that each dimension is split over, `""` for none; None splits the
            largest dimension that the axis `fsdp` divides over it, and leaves a parameter whole
            that has none or is small.
    """

    pattern: str
    split: tuple[str, ...] | None = None

    def __post_init__(self):
        check_pattern(self.pattern)
        for axis in self.split or ():
            if axis not in ("", *AXES):
                raise InputError(f"split has {axis!r}: it is one of {', '.join(AXES)} or ''")
        used = [axis for axis in self.split or () if axis]
        if len(used) != len(set(used)):
            raise InputError(f"split {self.split} has an axis twice")


# Megatron's (1909.08053): heads and MLP are split where they are made and joined where they end,
# which costs one sum over `tensor` for each branch; `fsdp` takes the other side (ZeRO, 1910.02054).
LAYOUT = (
    LayoutRule("(.*/)?patch_embedding/.*"),  # whose layers may have those names too
    LayoutRule(".*/(query|key|value|fc1|gate)/kernel", ("fsdp", "tensor")),
    LayoutRule(".*/(query|key|value|fc1|gate)/bias", ("tensor",)),
    LayoutRule(".*/(out|fc2)/kernel", ("tensor", "fsdp")),
    LayoutRule(".*"),
)


def lay_out(rules: tuple[LayoutRule, ...], params: Any, mesh: Mesh) -> Any:
    """A tree like `params` of `NamedSharding`s.

    Args:
        rules: see `LayoutRule`.
        params: the parameters, or their shapes.
        mesh: with the axes `data`, `fsdp` and `tensor`.

    Raises:
        InputError: no rule covers a parameter, an axis does not divide what it splits, or `tensor`
            is used with depthwise convolutions.
    """
    where = "config.parallelism.rules"
    names = [path_string(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    if mesh.shape["tensor"] > 1 and any("dwconv/" in name for name in names):
        # XLA's partitioner (JAX 0.10.2, 0.11.2) multiplies the gradient of a depthwise kernel by
        # the number of devices that hold the same rows of the batch.
        raise InputError(
            "config.parallelism.mesh.tensor must be 1 for a model with depthwise convolutions: "
            "XLA computes wrong gradients for them otherwise; use data and fsdp"
        )
    matched = match_rules(rules, params, where, strict=rules != LAYOUT)

    def sharding(path, leaf, rule):
        split = _split_largest(leaf.shape, mesh) if rule.split is None else rule.split
        name, shape = path_string(path), tuple(leaf.shape)
        if len(split) > len(shape):
            raise InputError(
                f"{where}: {rule.pattern!r} splits {len(split)} dimensions of {name} {shape}"
            )
        for size, axis in zip(shape, split, strict=False):
            if axis and size % mesh.shape[axis]:
                raise InputError(
                    f"config.parallelism.mesh.{axis} is {mesh.shape[axis]}, which does not divide "
                    f"{name} {shape}; take another, or add a rule for it"
                )
        return NamedSharding(mesh, PartitionSpec(*(axis or None for axis in split)))

    return jax.tree_util.tree_map_with_path(sharding, params, matched)


def lay_out_like(tree: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
    """Shardings of arrays that go with parameters, such as an optimizer's moments.

    Args:
        tree: arrays or shapes. One whose path ends in a parameter's path and that has its shape is
            laid out as the parameter is; every other one (Adafactor's factors, which are small;
            GaLore's projected moments, which are not) is on each device whole.
        params: the parameters, or their shapes.
        shardings: theirs, from `lay_out`.
        mesh: for what is whole.
    """
    shapes = jax.tree_util.tree_leaves_with_path(params)
    known = {
        (path_string(path), tuple(leaf.shape)): sharding
        for (path, leaf), sharding in zip(shapes, jax.tree.leaves(shardings), strict=True)
    }
    whole = NamedSharding(mesh, PartitionSpec())

    def sharding(path, leaf):
        for start in range(len(path)):  # the longest path first
            found = known.get((path_string(path[start:]), tuple(leaf.shape)))
            if found is not None:
                return found
        return whole

    return jax.tree_util.tree_map_with_path(sharding, tree)


def bytes_on_a_device(tree: Any) -> int:
    """Bytes that one device holds of arrays, or of `jax.ShapeDtypeStruct`s with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(tuple(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _split_largest(shape: tuple[int, ...], mesh: Mesh) -> tuple[str, ...]:
    count = mesh.shape["fsdp"]
    fits = [i for i, size in enumerate(shape) if size % count == 0]
    if not fits or count == 1 or math.prod(shape) < SPLIT_FROM:
        return ()
    largest = max(fits, key=lambda i: shape[i])
    return ("",) * largest + ("fsdp",)
