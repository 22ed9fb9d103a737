"""The device mesh, and the way of a batch onto it and of arrays back."""

import contextlib
import dataclasses
import os
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vitlab import config as config_lib
from vitlab.errors import InputError
from vitlab.ops.collectives import BATCH_AXES
from vitlab.training.layout import AXES, LAYOUT, LayoutRule

# The name of `pmap`'s axis, for `vitlab.ops.collectives`.
PMAP_AXIS = "data"


@dataclasses.dataclass(frozen=True)
class ParallelismConfig:
    """`config.parallelism`. None of it changes what is computed, only where.

    Attributes:
        mode: `jit` compiles one program over all arrays, which are split as the mesh and the rules
            say; `pmap` runs the same step on each device's rows, with all else on every device.
        mesh: devices on each axis; -1 takes all that are left, as `data` does if it is left out.
            `data` and `fsdp` split the batch, `fsdp` also parameters, optimizer state and average,
            `tensor` heads and MLPs of transformers; the devices along it repeat the work of every
            other layer. Fewer devices than there are takes the first ones.
        rules: how parameters are split, first match wins, every parameter must match one.
    """

    mode: Literal["jit", "pmap"] = "jit"
    mesh: dict[str, int] = dataclasses.field(
        default_factory=lambda: {"data": -1, "fsdp": 1, "tensor": 1}
    )
    rules: tuple[LayoutRule, ...] = LAYOUT

    def __post_init__(self):
        for axis, size in self.mesh.items():
            if axis not in AXES:
                raise InputError(f"mesh.{axis} does not exist{config_lib.nearest(axis, AXES)}")
            if size < 1 and size != -1:
                raise InputError(f"mesh.{axis} is {size} but must be positive, or -1 for the rest")
            if self.mode == "pmap" and axis != "data" and size != 1:
                raise InputError(f"mesh.{axis} is {size}: pmap splits over data alone; use jit")
        if list(self.mesh.values()).count(-1) > 1:
            raise InputError("mesh has more than one -1: only one axis can take what is left")


def make_mesh(config: ParallelismConfig, batch_size: int) -> Mesh:
    """The mesh of the run, with the axes `data`, `fsdp` and `tensor`.

    Raises:
        InputError: more devices than there are, or a batch that they do not divide.
    """
    devices = jax.devices()
    mesh = {"data": 1 if -1 in config.mesh.values() else -1, "fsdp": 1, "tensor": 1, **config.mesh}
    known = int(np.prod([size for size in mesh.values() if size != -1]))
    sizes = [max(len(devices) // known, 1) if mesh[axis] == -1 else mesh[axis] for axis in AXES]
    shape = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
    count = int(np.prod(sizes))
    if count > len(devices):
        raise InputError(
            f"config.parallelism.mesh is {shape}, which are {count} devices: there are "
            f"{len(devices)} {devices[0].platform} devices"
        )
    if -1 in mesh.values() and count < len(devices):
        raise InputError(
            f"config.parallelism.mesh is {shape}: {known} do not divide the {len(devices)} devices"
        )
    if jax.process_count() > 1 and config.mode == "pmap":
        raise InputError("config.parallelism.mode: pmap is for one process; use jit for several")
    if jax.process_count() > 1 and count < len(devices):
        raise InputError(
            f"config.parallelism.mesh is {shape}, which are {count} devices: {jax.process_count()} "
            f"processes must use all their {len(devices)}"
        )
    shards = sizes[0] * sizes[1]
    if batch_size % shards:
        raise InputError(
            f"config.batch_size is {batch_size}, which {shards} devices do not divide; "
            f"{batch_size - batch_size % shards or shards} would do"
        )
    # In the order of the processes, so that the rows of each are consecutive in the batch.
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))[:count]
    mesh = Mesh(np.array(devices).reshape(sizes), AXES)
    process_share(mesh)  # which refuses a mesh that it cannot feed
    return mesh


def device_memory() -> int:
    """Bytes that one device can hold, or 0 where nobody says.

    The limit of the runtime's allocator; on a CPU its part of the memory.
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return memory // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit", 0)


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device whole."""
    return NamedSharding(mesh, PartitionSpec())


def split_by_example(mesh: Mesh) -> NamedSharding:
    """The leading axis over the devices, those of `tensor` alike."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the mesh cuts a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def process_share(mesh: Mesh) -> tuple[int, int]:
    """(i, n): this process reads the i-th of n equal parts of every batch.

    Processes that hold the same rows, which `tensor` can bring about, have the same i.
    """
    shards = batch_shards(mesh)
    indices = split_by_example(mesh).addressable_devices_indices_map((shards,))
    rows = sorted({index[0].indices(shards)[0] for index in indices.values()})
    aligned = shards % len(rows) == 0 and rows[0] % len(rows) == 0
    if rows != list(range(rows[0], rows[0] + len(rows))) or not aligned:
        raise InputError(
            "config.parallelism.mesh: the devices of one process must hold one part of the batch, "
            "and those of another the same part or a disjoint one; let tensor divide, or be "
            "divided by, the devices of a process"
        )
    return rows[0] // len(rows), shards // len(rows)


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch as part of one global array over the mesh."""
    sharding = split_by_example(mesh)
    _, parts = process_share(mesh)

    def place(rows):
        shape = (len(rows) * parts, *rows.shape[1:])
        return jax.make_array_from_process_local_data(sharding, rows, shape)

    return {name: place(rows) for name, rows in batch.items()}


def to_host(tree: Any) -> Any:
    """Device arrays as NumPy arrays, rows of other processes included."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def over_devices(step: Callable, mesh: Mesh, mode: str) -> Callable:
    """`(state, batch) -> state` of the whole batch, to be compiled by `jit`.

    Args:
        step: a pure function; in the mode `pmap` it sees one device's rows, and names the axis
            `PMAP_AXIS` in its collectives.
        mesh: the devices.
        mode: `jit` or `pmap`.
    """
    if mode == "jit":
        return step
    devices = list(mesh.devices.flat)
    # Nothing but the batch has a device axis: the rest goes in and comes out as one array that
    # every device holds whole, which is how `jit`, evaluation and checkpoints know it.
    mapped = jax.pmap(step, PMAP_AXIS, in_axes=(None, 0), out_axes=None, devices=devices)

    def of_all_rows(state, batch):
        rows = jax.tree.map(lambda x: x.reshape(len(devices), -1, *x.shape[1:]), batch)
        return mapped(state, rows)

    return of_all_rows


def trace_step(
    step: Callable, mesh: Mesh, mode: str, state: Any, inputs: tuple[Any, ...]
) -> jax.stages.Traced:
    """Traces `(state, *inputs) -> state` for the mesh, to be compiled; the state's memory is used
    again.

    Args:
        step: made of a step by `over_devices`.
        mesh: the devices.
        mode: `jit` or `pmap`.
        state, inputs: trees of `jax.ShapeDtypeStruct`s with shardings.
    """
    shardings = jax.tree.map(lambda x: x.sharding, state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=shardings)
    # For `on_each_device`, which has nothing to do in a `pmap`.
    with contextlib.nullcontext() if mode == "pmap" else jax.set_mesh(mesh):
        return jitted.trace(state, *inputs)
