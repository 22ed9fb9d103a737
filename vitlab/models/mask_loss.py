"""The loss of a set of masks: match predictions and segments one to one, then compare the pairs.

Mask2Former (2112.01527), as in EoMT: cross-entropy of the class with "no object"; of the mask the
binary cross-entropy and dice. Where those take 12,544 random points of an image, this takes every
cell of the predicted mask, and as its target the part of the cell that the segment covers; void
pixels count nowhere. Everything is a sum and a count: who calls divides.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from vitlab.errors import InputError
from vitlab.models.eomt import Masks
from vitlab.models.set_loss import softmax_classes
from vitlab.ops.collectives import on_each_device
from vitlab.ops.matching import hungarian


class Segments(NamedTuple):
    """The segments of each image, the real ones first.

    Attributes:
        masks: f32[batch, targets, cells], the part of each cell that is the segment's, in [0, 1].
        known: f32[batch, cells], the part of each cell that is not void.
        labels: i32[batch, targets].
        mask: bool[batch, targets], false where there is none.
    """

    masks: Array
    known: Array
    labels: Array
    mask: Array


@dataclasses.dataclass(frozen=True)
class MaskLoss:
    """`config.loss` of universal segmentation. The weights are also the costs of the matching.

    Attributes:
        no_object: weight of "no object" among the classes.
        class_weight, mask_weight, dice_weight: of the terms; the papers' are 2, 5 and 5.
    """

    no_object: float = 0.1
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 0:
                raise InputError(
                    f"{field.name} is {getattr(self, field.name)}: it cannot be negative"
                )

    def match(
        self, found: Masks, targets: Segments, counted: Array, axis_name: str | None = None
    ) -> Array:
        """The query of each segment in each of several sets of predictions.

        Args:
            found: f32[batch, sets, queries, ...].
            targets: of each image.
            counted: bool[batch], the images that count.
            axis_name: see `vitlab.ops.collectives`.

        Returns:
            i32[batch, sets, targets]; without meaning where there is no segment.

        Raises:
            InputError: there may be more segments than queries.
        """

        def solve(found: Masks, targets: Segments, counted: Array) -> Array:
            cost = self._cost(found, targets)
            sets, shape = cost.shape[1], cost.shape[2:]
            counts = jnp.repeat(jnp.where(counted, targets.mask.sum(axis=1), 0), sets)
            query = hungarian(cost.reshape(len(counts), *shape), counts)
            return query.reshape(len(cost), sets, shape[0])

        found, targets = jax.lax.stop_gradient((found, targets))
        return on_each_device(solve, found, targets, counted, axis_name=axis_name)

    def _cost(self, found: Masks, targets: Segments) -> Array:
        """f32[batch, sets, targets, queries]."""
        p = jax.nn.softmax(found.logits).swapaxes(-1, -2)
        class_cost = -jnp.take_along_axis(p, targets.labels[:, None, :, None], axis=2)
        x = found.masks.reshape(*found.masks.shape[:3], -1)
        known = targets.known[:, None, None]

        def pairs(cells):  # sums over the segment's part of each cell
            return jnp.einsum("bsqp,btp->bstq", cells, targets.masks)

        # -log sigmoid(-x) everywhere, and what the segment's own cells cost more or less: -x. No
        # gradient is taken, so without what `jax.nn.softplus` does for one, in fewer passes.
        softplus = jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))
        bce = ((softplus * known).sum(axis=-1)[:, :, None] - pairs(x)) / jnp.maximum(
            known.sum(axis=-1)[..., None], 1
        )
        inside = jax.nn.sigmoid(x)
        total = (inside * known).sum(axis=-1)[:, :, None] + targets.masks.sum(axis=-1)[
            :, None, :, None
        ]
        dice = 1 - (2 * pairs(inside) + 1) / (total + 1)
        return self.class_weight * class_cost + self.mask_weight * bce + self.dice_weight * dice

    def __call__(
        self, found: Masks, targets: Segments, query: Array, counted: Array
    ) -> dict[str, tuple[Array, Array, float]]:
        """The terms of the loss, `{term: (sum f32[], count f32[], weight)}`, over all sets.

        Args:
            found: f32[batch, sets, queries, ...].
            targets: of each image.
            query: i32[batch, sets, targets], the query of each segment.
            counted: bool[batch], the images that count.

        Returns:
            "class", "mask" and "dice". Segments are counted, or for the class the queries' weights.
        """
        there = jnp.broadcast_to((targets.mask & counted[:, None])[:, None], query.shape)
        x = found.masks.reshape(*found.masks.shape[:3], -1)
        x = matched(x, query, there)
        known, masks = targets.known[:, None, None], targets.masks[:, None]
        bce = (jax.nn.softplus(x) * known - x * masks).sum(axis=-1)
        bce = bce / jnp.maximum(known.sum(axis=-1), 1)
        inside = jax.nn.sigmoid(x)
        overlap = (inside * masks).sum(axis=-1)
        total = (inside * known).sum(axis=-1) + masks.sum(axis=-1)
        dice = 1 - (2 * overlap + 1) / (total + 1)
        number = there.sum().astype(x.dtype)
        rows = jnp.broadcast_to(counted[:, None, None], found.logits.shape[:3])
        pairs = (query[..., None] == jnp.arange(found.logits.shape[2])) & there[..., None]
        classes = softmax_classes(found.logits, targets.labels, pairs, rows, there, self.no_object)
        return {
            "class": (*classes, self.class_weight),
            "mask": (jnp.where(there, bce, 0).sum(), number, self.mask_weight),
            "dice": (jnp.where(there, dice, 0).sum(), number, self.dice_weight),
        }

    def overlap(
        self, found: Masks, targets: Segments, query: Array, counted: Array
    ) -> tuple[Array, Array]:
        """The sum of the overlaps (IoU) of what is matched f32[], and how many these are f32[]."""
        there = (targets.mask & counted[:, None])[:, None] & jnp.ones(query.shape, bool)
        x = found.masks.reshape(*found.masks.shape[:3], -1)
        inside = jnp.take_along_axis(x, query[..., None], axis=2) > 0
        inside = inside * targets.known[:, None, None]
        both = jnp.minimum(inside, targets.masks[:, None]).sum(axis=-1)
        either = jnp.maximum(inside, targets.masks[:, None]).sum(axis=-1)
        iou = jnp.where(there, both / jnp.maximum(either, 1e-6), 0)
        return iou.sum(), there.sum().astype(iou.dtype)


def segment_targets(
    segments: Array, labels: Array, mask: Array, grid: tuple[int, int], stride: int
) -> Segments:
    """What the cells of predicted masks should be.

    Args:
        segments: i16[batch, height, width], the place of each pixel's segment, -1 where it is void.
        labels: i32[batch, targets]; mask: bool[batch, targets].
        grid: rows and columns of the predicted masks, which may reach beyond the image.
        stride: pixels of a cell's side.
    """
    sides = [cells * stride - side for cells, side in zip(grid, segments.shape[1:], strict=True)]
    segments = jnp.pad(segments, [(0, 0), *((0, more) for more in sides)], constant_values=-1)
    numbers = jnp.arange(labels.shape[1], dtype=segments.dtype)
    masks, known = 0, 0
    for row in range(
        stride
    ):  # one pixel of each cell at a time: no array of all pixels and targets
        for column in range(stride):
            pixels = segments[:, row::stride, column::stride].reshape(len(segments), 1, -1)
            masks = masks + (pixels == numbers[:, None]).astype(jnp.float32)
            known = known + (pixels[:, 0] >= 0).astype(jnp.float32)
    return Segments(masks / stride**2, known / stride**2, labels, mask)


@jax.custom_vjp
def matched(x: Array, query: Array, there: Array) -> Array:
    """What is predicted for each segment.

    What comes back is looked up by each query, which has one segment at most: a scatter would
    go through all that is predicted once more.

    Args:
        x: f[batch, sets, queries, cells].
        query: i32[batch, sets, targets], different ones where `there`.
        there: bool[batch, sets, targets]; nothing may come back to the others.

    Returns:
        f[batch, sets, targets, cells].
    """
    return jnp.take_along_axis(x, query[..., None], axis=2)


def _matched_back(kept, back):
    query, there, queries = kept
    if not query.shape[2]:
        return jnp.zeros((*back.shape[:2], len(queries), back.shape[3]), back.dtype), None, None
    theirs = (query[..., None, :] == jnp.arange(len(queries))[:, None]) & there[..., None, :]
    found = jnp.take_along_axis(back, theirs.argmax(axis=-1)[..., None], axis=2)
    return jnp.where(theirs.any(axis=-1)[..., None], found, 0), None, None


def _matched(x, query, there):
    return matched(x, query, there), (query, there, jnp.empty(x.shape[2]))


matched.defvjp(_matched, _matched_back)
