"""Semantic segmentation: a class for each pixel. The models are `models/segmenter.py` and
`models/unet.py`."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vitlab.errors import InputError
from vitlab.evaluation import segmentation_pictures as draw
from vitlab.evaluation.class_metrics import write_class_metrics
from vitlab.evaluation.original import best_at_original
from vitlab.evaluation.segments import FoundSegments
from vitlab.models.build import SEGMENTERS
from vitlab.ops.pixel_losses import dice, hardest, pixel_cross_entropy
from vitlab.ops.resampling import to_original
from vitlab.ops.windows import upsample
from vitlab.tasks.photometric import photometric, without_padding
from vitlab.tasks.predictions import SegmentPrediction
from vitlab.tasks.segmenting import (
    Segmenting,
    check_evaluation,
    of_classes,
    of_each,
    on_all_cores,
    semantic_counts,
    semantic_metrics,
    semantic_pictures,
)
from vitlab.tasks.task import Arrays, Examples


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """`config.loss`.

    Attributes:
        cross_entropy, dice: weights of the two terms.
        class_weights: of each class in the cross-entropy; none: 1.
        focal_gamma: see `vitlab.ops.pixel_losses.pixel_cross_entropy`.
        hard_pixels: the share of each image's pixels that the cross-entropy is taken of, those of
            the greatest loss.
    """

    cross_entropy: float = 1.0
    dice: float = 0.0
    class_weights: tuple[float, ...] = ()
    focal_gamma: float = 0.0
    hard_pixels: float = 1.0

    def __post_init__(self):
        for name in ("cross_entropy", "dice", "focal_gamma"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}: it cannot be negative")
        if not self.cross_entropy + self.dice:
            raise InputError("cross_entropy and dice are both 0: there is nothing to learn from")
        if not 0 < self.hard_pixels <= 1:
            raise InputError(f"hard_pixels is {self.hard_pixels}: it must be in (0, 1]")
        if any(weight < 0 for weight in self.class_weights):
            raise InputError("class_weights has a negative number")


@dataclasses.dataclass(frozen=True)
class Segmentation(Segmenting):
    """See `vitlab.tasks.task.Task` for what each function promises."""

    models: ClassVar[Mapping[str, str]] = SEGMENTERS
    loss_class: ClassVar[type] = LossConfig
    some_metrics: ClassVar[tuple[str, ...]] = ()
    views: ClassVar[int] = 2
    class_parameters: ClassVar[Mapping[str, int | None]] = {
        "head/.*": -1,
        "class_embedding": 1,
        "mask_norm/.*": -1,
    }

    def __post_init__(self):
        weights = self.loss_config.class_weights
        if weights and len(weights) != len(self.classes):
            raise InputError(
                f"config.loss.class_weights has {len(weights)} numbers for {len(self.classes)} "
                "classes"
            )

    def augment(self, batch: Arrays, normalize: Callable, seed: int, step: jax.Array) -> Arrays:
        """Makes `image` f32, augmented, zero where it is padding."""
        del step
        if "semantic" not in batch:
            raise InputError(
                "config.data.preprocess has no semantic: segmentation needs it, after all that "
                "moves pixels"
            )
        return {**batch, "image": photometric(self.augment_config, batch, normalize, seed)}

    def loss(self, params: Any, model_state: Any, batch: Arrays, key: jax.Array):
        """Cross-entropy and dice at the resolution of the labels, and the accuracy of pixels."""
        (logits, _), new_state = self.model.apply(
            {"params": params, **model_state},
            batch["image"],
            batch.get("content"),
            train=True,
            rngs={"dropout": key},
            mutable=list(model_state),
        )
        c, rows = self.loss_config, batch["mask"][:, None, None]
        labels = jnp.where(rows, batch["semantic"], -1)
        logits = upsample(logits, self.model.stride, labels.shape[1:])
        terms = {}
        if c.cross_entropy:
            losses, weights = pixel_cross_entropy(logits, labels, c.class_weights, c.focal_gamma)
            if c.hard_pixels < 1:
                losses, weights = hardest(losses, weights, c.hard_pixels)
            terms["cross_entropy"] = (losses.sum(), weights.sum(), c.cross_entropy)
        if c.dice:
            value, count = dice(logits, labels)
            terms["dice"] = (value.sum(), count.sum(), c.dice)
        known = labels >= 0
        right = ((logits.argmax(axis=-1) == labels) & known).sum()
        accuracy = (right.astype(jnp.float32), known.sum().astype(jnp.float32))
        return terms, {"pixel_accuracy": accuracy}, new_state

    def evaluate(self, variables: Arrays, batch: Arrays, normalize: Callable) -> Arrays:
        """Of each row the logits f32[rows, columns, classes], and where its pixels come from."""
        check_evaluation(batch)
        return self.predict(variables, batch, normalize)

    def predict(self, variables: Arrays, batch: Arrays, normalize: Callable) -> Arrays:
        """As `evaluate`."""
        images = without_padding(normalize(batch["image"]), batch)
        logits = self.model.apply(variables, images, batch.get("content"), method="predict")
        return {"logits": logits, "affine": batch["affine"]}

    def predictions(
        self, views: Sequence[Arrays], sizes: Sequence[tuple[int, int]], things: Sequence[bool]
    ) -> list[SegmentPrediction]:
        """A segment for each class that is there; of several views by the sum of their logits."""
        del things

        def of_one(index):
            labels = self._labels(views, index, sizes[index])
            return SegmentPrediction(of_classes(labels), self.classes)

        return on_all_cores(of_one, range(len(sizes)))

    def in_pixels(self, outputs: Arrays, rows: jax.Array, columns: jax.Array) -> Arrays:
        """`labels` i32[batch, height, width], the class of each pixel."""
        maps, stride = outputs["logits"], self.model.stride
        logits = to_original(maps, stride, outputs["affine"], rows, columns)
        return {"labels": logits.argmax(axis=1).astype(jnp.int32)}

    def reduce(self, outputs: Mapping[str, np.ndarray], examples: Examples) -> Arrays:
        """What is counted in each image at its original resolution: see `semantic_counts`."""

        def count(index):
            truth = examples.segments(outputs["id"][index]).semantic()
            if "labels" in outputs:  # of `in_pixels`
                found = outputs["labels"][index]
            else:
                found = self._labels([outputs], index, truth.shape)
            return semantic_counts(truth, found, len(self.classes))

        counted = of_each(count, len(outputs["id"]))
        return {"id": outputs["id"], **counted}

    def metrics(self, outputs: Mapping[str, np.ndarray], examples: Examples) -> dict[str, float]:
        """See `semantic_metrics`."""
        del examples
        return semantic_metrics(outputs, len(self.classes))

    def pictures(
        self,
        outputs: Mapping[str, np.ndarray],
        shown: Mapping[str, np.ndarray],
        examples: Examples,
        directory: pathlib.Path,
    ) -> None:
        """Image, truth, prediction and errors; see `semantic_pictures`, whose numbers of each class
        are in `classes.json`."""
        truth = [examples.segments(i) for i in shown["id"]]
        labels = np.arange(len(self.classes), dtype=np.int32)  # a segment for each class
        found = [
            FoundSegments(self._labels([shown], index, each.map.shape).astype(np.int32), labels)
            for index, each in enumerate(truth)
        ]
        images = [examples.original(i) for i in shown["id"]]
        path = directory / "segmentations.png"
        draw.segmentation_beside_truth(images, truth, found, self.classes, path)
        of_class = semantic_pictures(outputs, self.classes, directory)
        write_class_metrics(of_class, self.classes, directory)

    def _labels(self, views: Sequence[Arrays], index: int, size: tuple[int, int]) -> np.ndarray:
        """i[height, width], the class of each pixel of the original image."""
        seen = [
            (np.moveaxis(view["logits"][index], -1, 0), view["affine"][index]) for view in views
        ]
        return best_at_original(seen, self.model.stride, size)
