"""Where arrays live: the device mesh, and the way of a batch onto it."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vitlab import config as config_lib
from vitlab.errors import InputError


@dataclasses.dataclass(frozen=True)
class ParallelismConfig:
    """`config.parallelism`.

    Attributes:
        mesh: devices on each axis. `data` splits the batch; -1 takes every device there is, a
            smaller number than there are takes the first ones.
    """

    mesh: dict[str, int] = dataclasses.field(default_factory=lambda: {"data": -1})

    def __post_init__(self):
        for axis in self.mesh:
            if axis != "data":
                raise InputError(f"mesh.{axis} does not exist{config_lib.nearest(axis, ['data'])}")


def make_mesh(config: ParallelismConfig, batch_size: int) -> Mesh:
    """The mesh of the run.

    Raises:
        InputError: more devices than there are, or a batch that they do not divide.
    """
    devices = jax.devices()
    count = config.mesh.get("data", -1)
    count = len(devices) if count == -1 else count
    if not 1 <= count <= len(devices):
        raise InputError(
            f"config.parallelism.mesh.data is {count}: there are {len(devices)} "
            f"{devices[0].platform} devices"
        )
    if batch_size % count:
        raise InputError(
            f"config.batch_size is {batch_size}, which {count} devices do not divide; "
            f"{batch_size - batch_size % count or count} would do"
        )
    return Mesh(np.array(devices[:count]), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device whole."""
    return NamedSharding(mesh, PartitionSpec())


def split_by_example(mesh: Mesh) -> NamedSharding:
    """The leading axis over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch as part of one global array over the mesh."""
    sharding = split_by_example(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def to_host(tree: Any) -> Any:
    """Device arrays as NumPy arrays, rows of other processes included."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)
