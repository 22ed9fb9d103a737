"""Random keys of the device-side draws: functions of what is drawn for, never of who draws.

A draw for one example depends on (seed, purpose, epoch, id of the example) and a draw for a whole
batch on (seed, purpose, step). Neither sees the position in the batch, the device count or the
number of restarts, so none of those can change a run.
"""

import zlib

import jax
import numpy as np
from jax import Array

from vitlab.errors import InputError
from vitlab.ops import collectives


def example_keys(seed: int | Array, purpose: str, epoch: Array, id: Array) -> Array:
    """One key for each example of a batch.

    Args:
      seed: the run's seed, an int in [0, 2**31) or an int32 scalar.
      purpose: what the draw is for ("color_jitter"); another purpose gives unrelated keys.
      epoch: int32[batch], the pass over the data that each example belongs to.
      id: int32[batch], the index of each example in its split.

    Returns:
      key[batch], typed threefry keys; entry i depends on (seed, purpose, epoch[i], id[i]) alone.

    Raises:
      InputError: the seed is out of range, or epoch and id are not of one shape [batch].
    """
    epoch, id = jax.numpy.asarray(epoch), jax.numpy.asarray(id)
    if epoch.ndim != 1 or epoch.shape != id.shape:
        raise InputError(
            f"example_keys({purpose!r}): epoch {epoch.shape} and id {id.shape} must both be [batch]"
        )
    base = _purpose_key(seed, purpose)
    return jax.vmap(lambda e, i: jax.random.fold_in(jax.random.fold_in(base, e), i))(epoch, id)


def batch_key(seed: int | Array, purpose: str, step: int | Array) -> Array:
    """The key of a draw that a whole batch shares.

    Args:
      seed: the run's seed, an int in [0, 2**31) or an int32 scalar.
      purpose: what the draw is for ("mixup").
      step: int32 scalar, the training step.

    Returns:
      One typed threefry key.

    Raises:
      InputError: the seed is out of range.
    """
    return jax.random.fold_in(_purpose_key(seed, purpose), step)


def row_keys(key: Array, rows: int, axis_name: str | None = None) -> Array:
    """One key for each row of the batch, from one key for all.

    For draws inside a model, which sees rows and not which examples they are.

    Args:
      key: of the step, the same on every device.
      rows: how many rows this program sees.
      axis_name: the mapped axis under `pmap`, see `vitlab.ops.collectives`.

    Returns:
      key[rows]; each depends on `key` and the row's place in the whole batch alone.
    """
    indices = collectives.row_indices(rows, axis_name)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(indices)


def split_each(keys: Array, num: int) -> Array:
    """key[batch] to key[num, batch]: for each row `num` keys that depend on the row's own alone."""
    return jax.vmap(lambda key: jax.random.split(key, num), out_axes=1)(keys)


def _purpose_key(seed: int | Array, purpose: str) -> Array:
    # A wider seed would silently lose its upper bits wherever 64-bit types are off.
    if isinstance(seed, int | np.integer) and not 0 <= seed < 2**31:
        raise InputError(f"seed {seed} must be in [0, 2**31)")
    # Threefry by name: with the "rbg" generators a vmapped draw depends on the batch around it.
    key = jax.random.key(seed, impl="threefry2x32")
    # crc32 and not hash(), which differs from one Python process to the next.
    return jax.random.fold_in(key, zlib.crc32(purpose.encode()))
