"""What a row of the batch needs of the other rows, wherever those are.

A program compiled by `jit` sees the whole batch, whose rows XLA spreads over the devices. Under
`pmap` it sees one device's rows, and reaches the others over the mapped axis, by its name. Here
`axis_name` is that name, or None under `jit`: either way the result is that of the whole batch.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

# The axes of the mesh over which the rows of a batch are split.
BATCH_AXES = ("data", "fsdp")

# Which part of the program's rows is traced, and of how many: see `part_of_rows`.
_PART: contextvars.ContextVar[tuple[int | Array, int]] = contextvars.ContextVar(
    "part", default=(0, 1)
)


def total(tree: Any, axis_name: str | None) -> Any:
    """Sums over this program's rows to sums over the rows of the whole batch."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def gather(x: Array, axis_name: str | None) -> Array:
    """x[rows, ...] with the rows of the whole batch, on every device."""
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)


def roll_rows(x: Array, axis_name: str | None = None) -> Array:
    """x[rows, ...] with row i - 1 of the whole batch at place i, the last one at place 0."""
    if axis_name is None:
        return jnp.roll(x, 1, axis=0)
    devices = jax.lax.axis_size(axis_name)
    ring = [(device, (device + 1) % devices) for device in range(devices)]
    before = jax.lax.ppermute(x[-1:], axis_name, ring)
    return jnp.concatenate([before, x[:-1]])


def whole_batch(rows: int, axis_name: str | None = None) -> int:
    """The number of rows of the whole batch, of which this program sees `rows`."""
    return rows if axis_name is None else rows * jax.lax.axis_size(axis_name)


def row_indices(rows: int, axis_name: str | None = None) -> Array:
    """i32[rows], the place of each of this program's rows in the whole batch."""
    part, parts = _PART.get()
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * rows * parts
    return first + jnp.arange(rows) * parts + part


@contextlib.contextmanager
def part_of_rows(part: int | Array, parts: int) -> Iterator[None]:
    """What is traced within sees a part of this program's rows: every `parts`-th from `part`
    (i32[]) on. As for a mesh, no model has to hand it on to its layers."""
    token = _PART.set((part, parts))
    try:
        yield
    finally:
        _PART.reset(token)


def on_each_device(function: Callable, *arrays: Array, axis_name: str | None = None) -> Any:
    """`function(*arrays)` of rows that do not need each other, on each device for its own.

    A loop that ends when all rows are done, compiled by `jit` for several devices, would make all
    of them agree at every turn. Each has its own loop here, where the mesh that is set has axes for
    the rows, `BATCH_AXES`, and these divide them; on any other mesh the result is the same, slower.

    Args:
      function: arrays[rows, ...] to arrays[rows, ...].
      arrays: split over the devices by their rows.
      axis_name: see above; under `pmap`, as in a `jax.shard_map`, there is nothing to do.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if axis_name is not None or mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return function(*arrays)
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.shape)
    count = len(jax.tree.leaves(arrays)[0])
    if not axes or count % math.prod(mesh.shape[axis] for axis in axes):
        return function(*arrays)
    rows = jax.sharding.PartitionSpec(axes)
    # Without the check, which not all that a function may call passes: it has no collectives.
    mapped = jax.shard_map(function, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    return mapped(*arrays)
