"""Small data on the device: `config.data.cache = "device"`.

All examples of the training split, as uint8 images and labels, lie in the devices' memory: whole
on each of them if they are small, else split over them like a batch, whose rows then come from
wherever they lie. What comes before the first random op of the preprocessing string is done once,
on the host, by the host's own code; that op and all after it are part of the compiled program,
which takes several steps a call. Of each step nothing but the examples' numbers and epochs goes to
the devices.

The order of the examples is that of `vitlab.data.pipeline.train_batches`. The draws have its laws
and are others: each is a function of (seed, op, epoch, example), see `vitlab.ops.keys`.
"""

import functools
import math
from collections.abc import Callable
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vitlab import distributed
from vitlab.data import image_ops
from vitlab.data.pipeline import eval_batches, first_example
from vitlab.data.preprocess import FLIPS, Preprocess
from vitlab.data.resize import small_size
from vitlab.data.sources import Source
from vitlab.errors import InputError
from vitlab.ops import channels, crops, keys
from vitlab.ops.collectives import BATCH_AXES
from vitlab.ops.resampling import kind_of, resample, resample_boxes, resampling_weights
from vitlab.training import parallelism
from vitlab.training.experiment import DataConfig

# The most steps of one call. On a CPU a loop around the step can be slow: XLA computes convolutions
# in it sixty times slower (jaxlib 0.10).
STEPS, STEPS_ON_CPU = 100, 1
# The part of a device's memory up to which the data lie whole on each.
_SMALL = 1 / 8
_READ_AT_ONCE = 256


class DeviceData:
    """The training split, as it lies on the devices.

    Attributes:
        examples: `image` u8[examples, height, width, channels] and `label` i32[examples], as
            `jax.ShapeDtypeStruct`s with shardings; where they are split, with empty examples at the
            end, so that the devices have equally many.
        max_steps: the most steps of one call of the compiled program.

    Args:
        source: the examples.
        preprocess: of the training images.
        config: of the data.
        seed: of the draws.
        mesh: the devices.

    Raises:
        InputError: a source or an op that only the host path has.
    """

    def __init__(
        self, source: Source, preprocess: Preprocess, config: DataConfig, seed: int, mesh: Mesh
    ):
        self._source, self._config, self._seed, self._mesh = source, config, seed, mesh
        self._fixed, self._ops = preprocess.split_at_random()
        for op in self._ops:
            if op.name not in _RANDOM | _FIXED:
                raise InputError(
                    f"config.data.cache: {op.where} runs on the host alone; from the first random "
                    f"op on the device can do {', '.join(sorted(_RANDOM | _FIXED))}"
                )
            if op.name in FLIPS and self._fixed.pads:
                raise InputError(
                    f"config.data.cache: {op.where} after {self._fixed.pads[0]} would mirror the "
                    "padding too; use a resize instead"
                )
        example = first_example(source, self._fixed, config.on_error)
        if "label" not in example:
            raise InputError(
                f"config.data.cache: {config.source} has boxes or segments; only images with "
                "labels, or without any, can be kept on the device"
            )
        kept = {k: x for k, x in example.items() if k not in ("id", "epoch", "mask")}
        shards, rows = parallelism.batch_shards(mesh), len(source)
        size = rows * sum(x.nbytes for x in kept.values())
        small = _SMALL * parallelism.device_memory() or math.inf
        # All must decide alike, and their devices may say otherwise.
        self._split = shards > 1 and bool(distributed.from_first(size > small))
        place = parallelism.replicated(mesh)
        if self._split:
            place, rows = parallelism.split_by_example(mesh), -(-rows // shards) * shards
        self.examples = {
            key: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=place)
            for key, x in kept.items()
        }
        self.max_steps = STEPS_ON_CPU if mesh.devices.flat[0].platform == "cpu" else STEPS

    def read(self) -> tuple[dict[str, Array], np.ndarray, str]:
        """The examples on the devices; i32[examples], which of them stands for each: itself, or
        with `on_error="skip"` the next that can be read, as in `train_batches`; and a line on those
        that cannot be, if there are some.

        Raises:
            InputError: an example cannot be read, or the images are not of one size.
        """
        # Only what is written takes memory: of what is split, this process's part.
        found = {key: np.zeros(x.shape, x.dtype) for key, x in self.examples.items()}
        count = len(self._source)
        batches = eval_batches(
            self._source,
            self._fixed,
            batch_size=_READ_AT_ONCE,
            workers=self._config.workers,
            on_error=self._config.on_error,
        )
        try:
            with closing(batches):
                for start, batch in zip(range(0, count, _READ_AT_ONCE), batches, strict=True):
                    for key, array in found.items():
                        self._put(batch[key][: count - start], key, array, start)
        except InputError as error:
            place = f", before {self._ops[0].name}" if self._ops else ""
            raise InputError(f"config.data.cache{place}: {error}") from error
        good = np.array([i for i in range(count) if i not in batches.broken], np.int32)
        following = good[np.searchsorted(good, np.arange(count)) % len(good)]
        placed = {
            key: jax.make_array_from_callback(x.shape, x.sharding, found[key].__getitem__)
            for key, x in self.examples.items()
        }
        return placed, following, batches.broken_report()

    def _put(self, rows: np.ndarray, key: str, array: np.ndarray, start: int) -> None:
        if rows.shape[1:] != array.shape[1:]:
            first, other = (self._source.describe(i) for i in (0, start))
            raise InputError(
                f"{key} of {first} has the shape {array.shape[1:]} and of {other} "
                f"{rows.shape[1:]}: add a resize to the preprocessing"
            )
        if not self._split or self._holds(start, start + len(rows), len(array)):
            array[start : start + len(rows)] = rows

    def _holds(self, start: int, stop: int, count: int) -> bool:
        """Whether this process has devices for some of these of `count` examples."""
        index, parts = parallelism.process_share(self._mesh)
        return start < (index + 1) * count // parts and index * count // parts < stop

    def batch(self, examples: dict[str, Array], ids: Array, epochs: Array) -> dict[str, Array]:
        """A batch as of `train_batches`, within the compiled program.

        Args:
            examples: see `read`.
            ids, epochs: i32[batch], the examples and their passes over the data.
        """
        if self._split:
            batch = self._gathered(examples, ids)
        else:
            batch = {key: x.at[ids].get(mode="promise_in_bounds") for key, x in examples.items()}
            split = parallelism.split_by_example(self._mesh)
            batch = jax.lax.with_sharding_constraint(batch, split)
        images = batch["image"]
        for place, op in enumerate(self._ops):
            arguments = dict(op.arguments)
            if op.name in _RANDOM:
                # By its place too: a string may have an op twice.
                purpose = f"preprocess {place} {op.name}"
                drawn = keys.example_keys(self._seed, purpose, epochs, ids)
                images = _RANDOM[op.name](images, drawn, **arguments)
            else:
                images = _FIXED[op.name](images, **arguments)
        mask = jnp.ones(ids.shape, bool)
        return {**batch, "image": images, "id": ids, "epoch": epochs, "mask": mask}

    def _gathered(self, examples: dict[str, Array], ids: Array) -> dict[str, Array]:
        """A batch's rows from the devices that have them to those that need them."""
        rows, whole = parallelism.split_by_example(self._mesh).spec, PartitionSpec()

        def of_each(examples, ids):
            def wanted(x):
                place = ids - jax.lax.axis_index(BATCH_AXES) * len(x)
                here = ((place >= 0) & (place < len(x))).reshape(-1, *[1] * (x.ndim - 1))
                # Nought but on one device, so that the sum is that row.
                found = jnp.where(here, x.at[place].get(mode="clip"), 0)
                return jax.lax.psum_scatter(found, BATCH_AXES, tiled=True)

            return jax.tree.map(wanted, examples)

        gather = jax.shard_map(
            of_each, mesh=self._mesh, in_specs=(rows, whole), out_specs=rows, check_vma=False
        )
        return gather(examples, ids)

    def several_steps(self, step: Callable) -> Callable:
        """`(state, batch) -> state` as `(state, examples, (ids, epochs), count) -> state`, which
        takes the first `count` i32[] of the steps whose ids and epochs i32[max_steps, batch] are
        given."""

        def steps(state, examples, index, count):
            def one(i, state):
                return step(state, self.batch(examples, *(x[i] for x in index)))

            if self.max_steps == 1:
                return one(0, state)
            return jax.lax.fori_loop(0, count, one, state)

        return steps

    def inputs(self, batch_size: int) -> tuple[Any, ...]:
        """What `several_steps` takes beside the state, as `jax.ShapeDtypeStruct`s."""
        index, whole = self._index_sharding(), parallelism.replicated(self._mesh)
        rows = jax.ShapeDtypeStruct((self.max_steps, batch_size), np.int32, sharding=index)
        return self.examples, (rows, rows), jax.ShapeDtypeStruct((), np.int32, sharding=whole)

    def to_devices(self, *index: np.ndarray) -> tuple[tuple[Array, ...], Array]:
        """Ids and epochs i32[steps, batch] of the next steps, filled up to `max_steps`, and their
        number; the same on all processes."""
        count = len(index[0])
        filled = [np.pad(x, ((0, self.max_steps - count), (0, 0)), mode="edge") for x in index]
        index, whole = self._index_sharding(), parallelism.replicated(self._mesh)
        placed = [jax.make_array_from_callback(x.shape, index, x.__getitem__) for x in filled]
        count = np.array(count, np.int32)
        return tuple(placed), jax.make_array_from_callback((), whole, count.__getitem__)

    def _index_sharding(self) -> NamedSharding:
        rows = parallelism.split_by_example(self._mesh).spec
        return NamedSharding(self._mesh, PartitionSpec(None, *rows))


def _inception_crop(
    images, drawn, size, area_min, area_max, ratio_min, ratio_max, method, antialias, sampling
):
    by_area = sampling == "area"
    law = crops.sample_crop_boxes if by_area else crops.sample_crop_boxes_by_height
    areas, ratios = (area_min / 100, area_max / 100), (ratio_min, ratio_max)
    boxes = law(drawn, images.shape[1:3], areas, ratios)
    return _through_floats(resample_boxes, images, boxes, _pair(size), kind_of(method, antialias))


def _resize(images, size, method, antialias):
    kind, lengths = kind_of(method, antialias), images.shape[1:3]
    if lengths == _pair(size):
        return images
    weights = [
        resampling_weights(_places(new), _places(old), float(old), float(new), kind)
        for old, new in zip(lengths, _pair(size), strict=True)
    ]
    return _through_floats(resample, images, *weights, kind)


def _resize_small(images, size, method, antialias, rounding):
    return _resize(images, small_size(*images.shape[1:3], size, rounding), method, antialias)


def _of_each(function: Callable) -> Callable:
    """An op of the host that only cuts, for a batch."""
    return lambda images, **arguments: jax.vmap(functools.partial(function, **arguments))(images)


def _through_floats(function: Callable, images: Array, *arguments: Any) -> Array:
    """Of uint8 images, by a function of floats that gives whole grey levels."""
    return function(images.astype(jnp.float32), *arguments).astype(jnp.uint8)


def _places(length: int) -> Array:
    return jnp.arange(length, dtype=jnp.float32)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


_RANDOM: dict[str, Callable] = {
    "flip_lr": crops.random_flip,
    "flip_ud": functools.partial(crops.random_flip, axis=1),
    "inception_crop": _inception_crop,
    "random_crop": crops.random_crop,
}
_FIXED: dict[str, Callable] = {
    "central_crop": _of_each(image_ops.central_crop),
    "grey_to_rgb": channels.grey_to_rgb,
    "resize": _resize,
    "resize_small": _resize_small,
    "to_grey": functools.partial(_through_floats, channels.to_grey),
    "whole_patches": _of_each(image_ops.whole_patches),
}
