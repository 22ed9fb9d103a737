"""The loss of a set of boxes: match predictions and objects one to one, then compare the pairs.

DETR (2005.12872, section 3.1 and appendix A.2) with its softmax over the classes and "no object";
the focal form of Deformable DETR (2010.04159); the IoU-aware form of LW-DETR (2406.03459), where a
class is to be as certain as its box is good. Everything is a sum and a count: who calls divides.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from vitlab.errors import InputError
from vitlab.models.detr import Boxes
from vitlab.ops.boxes import iou_and_giou, to_corners
from vitlab.ops.collectives import on_each_device
from vitlab.ops.matching import hungarian


class Targets(NamedTuple):
    """The objects of each image, the real ones first.

    Attributes:
        boxes: f32[batch, targets, 4], as the model's.
        labels: i32[batch, targets].
        mask: bool[batch, targets], false where there is none.
    """

    boxes: Array
    labels: Array
    mask: Array


@dataclasses.dataclass(frozen=True)
class SetLoss:
    """`config.loss` of detection.

    Attributes:
        classification: `softmax` over the classes and "no object" (DETR), `focal` sigmoids
            (Deformable DETR), or `iou_aware` sigmoids (LW-DETR).
        no_object: weight of "no object" in the softmax.
        alpha, gamma: of the focal loss, which is also what the sigmoids are matched by.
        class_weight, l1_weight, giou_weight: of the terms of the loss. The paper's are 1, 5 and 2;
            with sigmoids 2 is usual for the classes.
        class_cost, l1_cost, giou_cost: of the same in the matching.
    """

    classification: Literal["softmax", "focal", "iou_aware"] = "softmax"
    no_object: float = 0.1
    alpha: float = 0.25
    gamma: float = 2.0
    class_weight: float = 1.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    class_cost: float = 1.0
    l1_cost: float = 5.0
    giou_cost: float = 2.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and value < 0:
                raise InputError(f"{field.name} is {value}: it cannot be negative")

    def match(
        self, found: Boxes, targets: Targets, counted: Array, axis_name: str | None = None
    ) -> Array:
        """The query of each target in each of several sets of predictions.

        Args:
            found: f32[batch, sets, queries, ...].
            targets: of each image.
            counted: bool[batch, 1, 1 or queries], the queries that may be matched.
            axis_name: see `vitlab.ops.collectives`.

        Returns:
            i32[batch, sets, targets]; without meaning where there is no target.

        Raises:
            InputError: there may be more targets than queries.
        """

        def solve(found: Boxes, targets: Targets, counted: Array) -> Array:
            cost = jnp.where(counted[:, :, None], self._cost(found, targets), jnp.inf)
            sets, shape = cost.shape[1], cost.shape[2:]
            counts = jnp.repeat(targets.mask.sum(axis=1), sets)
            query = hungarian(cost.reshape(len(counts), *shape), counts)
            return query.reshape(len(cost), sets, shape[0])

        found, targets = jax.lax.stop_gradient((found, targets))
        return on_each_device(solve, found, targets, counted, axis_name=axis_name)

    def _cost(self, found: Boxes, targets: Targets) -> Array:
        """f32[batch, sets, targets, queries]."""
        by_class = jnp.swapaxes(found.logits, -1, -2)
        if self.classification == "softmax":
            by_class = -jax.nn.softmax(by_class, axis=-2)
        else:
            p = jax.nn.sigmoid(by_class)
            right = self.alpha * (1 - p) ** self.gamma * -jax.nn.log_sigmoid(by_class)
            wrong = (1 - self.alpha) * p**self.gamma * -jax.nn.log_sigmoid(-by_class)
            by_class = right - wrong
        class_cost = jnp.take_along_axis(by_class, targets.labels[:, None, :, None], axis=2)
        theirs, ours = targets.boxes[:, None, :, None], found.boxes[:, :, None]
        l1 = jnp.abs(theirs - ours).sum(axis=-1)
        giou = iou_and_giou(to_corners(theirs), to_corners(ours))[1]
        return self.class_cost * class_cost + self.l1_cost * l1 - self.giou_cost * giou

    def __call__(
        self, found: Boxes, targets: Targets, query: Array, counted: Array
    ) -> dict[str, tuple[Array, Array, float]]:
        """The terms of the loss, `{term: (sum f32[], count f32[], weight)}`, means over the sets.

        A count is that of one set, so that who divides by the boxes of the whole batch, or by 1
        where it has none, divides each set by them, as DETR does each layer of its decoder.

        Args:
            found: f32[batch, sets, queries, ...].
            targets: of each image.
            query: i32[batch, sets, targets], the query of each target.
            counted: bool[batch, 1 or sets, 1 or queries], the queries whose class counts.

        Returns:
            "class", "l1" and "giou". Boxes are counted, or for the softmax the queries' weights.
        """
        mask = jnp.broadcast_to(targets.mask[:, None], query.shape)
        ours, theirs, iou, giou = _paired(found, targets, query)
        number = mask.sum().astype(ours.dtype)
        l1 = jnp.abs(ours - theirs).sum(axis=-1)
        pairs = (query[..., None] == jnp.arange(found.logits.shape[2])) & mask[..., None]
        counted = jnp.broadcast_to(counted, found.logits.shape[:3])
        if self.classification == "softmax":
            labels = targets.labels
            classes = softmax_classes(found.logits, labels, pairs, counted, mask, self.no_object)
        else:
            classes = self._sigmoid(found.logits, targets.labels, pairs, counted, iou), number
        terms = {
            "class": (*classes, self.class_weight),
            "l1": (jnp.where(mask, l1, 0).sum(), number, self.l1_weight),
            "giou": (jnp.where(mask, 1 - giou, 0).sum(), number, self.giou_weight),
        }
        sets = query.shape[1]
        return {name: (value / sets, n / sets, w) for name, (value, n, w) in terms.items()}

    def overlap(self, found: Boxes, targets: Targets, query: Array) -> tuple[Array, Array]:
        """The sum of the overlaps (IoU) of what is matched f32[], and how many these are f32[]."""
        iou = _paired(found, targets, query)[2]
        mask = jnp.broadcast_to(targets.mask[:, None], query.shape)
        return jnp.where(mask, iou, 0).sum(), mask.sum().astype(iou.dtype)

    def _sigmoid(self, logits, labels, pairs, counted, iou):
        p = jax.nn.sigmoid(logits)
        yes, no = -jax.nn.log_sigmoid(logits), -jax.nn.log_sigmoid(-logits)
        classes = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        on = jnp.einsum("bstq,btc->bsqc", pairs.astype(logits.dtype), classes)
        if self.classification == "focal":
            right = self.alpha * (1 - p) ** self.gamma * yes
            wrong = (1 - self.alpha) * p**self.gamma * no
            losses = on * right + (1 - on) * wrong
        else:
            # To be as certain as p^alpha IoU^(1 - alpha), with a gradient through neither.
            quality = jnp.einsum("bstq,bst->bsq", pairs.astype(iou.dtype), iou)[..., None]
            aim = jnp.maximum(p, 1e-6) ** self.alpha * jnp.maximum(quality, 0) ** (1 - self.alpha)
            aim = jax.lax.stop_gradient(jnp.maximum(aim, 0.01))
            losses = on * (aim * yes + (1 - aim) * no) + (1 - on) * p**self.gamma * no
        return (losses * counted[..., None]).sum()


def softmax_classes(
    logits: Array, labels: Array, pairs: Array, counted: Array, there: Array, no_object: float
) -> tuple[Array, Array]:
    """Cross-entropy over the classes and "no object", the last: its sum f32[], and its count f32[],
    the sum of the queries' weights, as one can know it before anything is matched.

    Args:
        logits: f32[batch, sets, queries, classes + 1].
        labels: i32[batch, targets].
        pairs: bool[batch, sets, targets, queries], what is matched.
        counted: bool[batch, sets, queries], the queries that count.
        there: bool[batch, sets, targets], the targets that are.
        no_object: weight of a query that is not matched.
    """
    matched = pairs.any(axis=2)
    target = (pairs * labels[:, None, :, None]).sum(axis=2)
    target = jnp.where(matched, target, logits.shape[-1] - 1)
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1)[..., 0]
    weight = jnp.where(matched, 1.0, no_object) * counted
    number = there.sum() * (1 - no_object) + counted.sum() * no_object
    return -(weight * log_p).sum(), number.astype(log_p.dtype)


def _paired(found: Boxes, targets: Targets, query: Array) -> tuple[Array, Array, Array, Array]:
    """The matched boxes f32[batch, sets, targets, 4], the objects', and their IoU and GIoU."""
    ours = jnp.take_along_axis(found.boxes, query[..., None], axis=2)
    # Zeros where there is no object: whatever else is there, a NaN say, would reach the gradient.
    theirs = jnp.where(targets.mask[..., None], targets.boxes, 0)[:, None]
    theirs = jnp.broadcast_to(theirs, ours.shape)
    return ours, theirs, *iou_and_giou(to_corners(ours), to_corners(theirs))
