"""Semantic segmentation: a class for each pixel. The models are `models/segmenter.py` and
`models/unet.py`."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vitlab import config as config_lib
from vitlab.data.annotations import duplicates
from vitlab.errors import InputError
from vitlab.evaluation import segmentation as metrics_lib
from vitlab.evaluation import segmentation_pictures as draw
from vitlab.evaluation.detection_pictures import class_bars
from vitlab.evaluation.pictures import confusion_matrix
from vitlab.evaluation.segments import FoundSegments
from vitlab.models.build import SEGMENTERS, build_around_backbone
from vitlab.ops.pixel_losses import dice, hardest, pixel_cross_entropy
from vitlab.ops.windows import upsample
from vitlab.tasks.backbone import AroundBackbone
from vitlab.tasks.photometric import AugmentConfig, photometric, without_padding
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
        if not 0 < self.hard_pixels <= 1:
            raise InputError(f"hard_pixels is {self.hard_pixels}: it must be in (0, 1]")
        if any(weight < 0 for weight in self.class_weights):
            raise InputError("class_weights has a negative number")


@dataclasses.dataclass(frozen=True)
class Segmentation(AroundBackbone):
    """See `vitlab.tasks.task.Task` for what each function promises."""

    classes: tuple[str, ...]
    axis_name: str | None = None

    names: ClassVar[str] = "segment_names"
    evaluators: ClassVar[tuple[str, ...]] = ("segmentation",)
    some_metrics: ClassVar[tuple[str, ...]] = ()
    class_parameters: ClassVar[tuple[str, ...]] = ("head/.*", "class_embedding", "mask_norm/.*")

    @classmethod
    def from_config(
        cls,
        model: Arrays,
        loss: Arrays,
        augment: Arrays,
        classes: tuple[str, ...],
        dtype: Any,
        axis_name: str | None = None,
    ) -> "Segmentation":
        """Builds the task. `config.model` has `name`, `backbone` and the fields of the segmenter.

        Raises:
            InputError: a wrong key or value.
        """
        check_classes(classes)
        loss = config_lib.section(loss, LossConfig, "config.loss")
        if loss.class_weights and len(loss.class_weights) != len(classes):
            raise InputError(
                f"config.loss.class_weights has {len(loss.class_weights)} numbers for "
                f"{len(classes)} classes"
            )
        module = build_around_backbone(
            model, SEGMENTERS, num_classes=len(classes), dtype=dtype, axis_name=axis_name
        )
        return cls(
            model=module,
            loss_config=loss,
            augment_config=config_lib.section(augment, AugmentConfig, "config.augment"),
            classes=tuple(classes),
            axis_name=axis_name,
        )

    def settings(self) -> dict[str, Any]:
        """The sections that this task read, resolved."""
        settings = super().settings()
        settings["model"].pop("num_classes", None)
        return settings

    def init(self, key: jax.Array, images: jax.Array) -> dict[str, Any]:
        """Fresh variables for images of this shape."""
        return self.model.init(key, images)

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
        images = without_padding(normalize(batch["image"]), batch)
        predict = type(self.model).predict
        logits = self.model.apply(variables, images, batch.get("content"), method=predict)
        return {"logits": logits, "affine": batch["affine"]}

    def show(self, variables: Arrays, batch: Arrays, normalize: Callable) -> Arrays:
        """The same, of the few."""
        return self.evaluate(variables, batch, normalize)

    def features(self, variables: Arrays, images: jax.Array) -> Arrays:
        """The backbone's coarsest map for whole images f32[batch, height, width, channels], and its
        mean as `pre_logits`."""
        maps = self.model.apply(variables, images)[1]["feature_map"]
        return {"feature_map": maps, "pre_logits": maps.mean(axis=(1, 2))}

    def reduce(self, outputs: Mapping[str, np.ndarray], examples: Examples) -> Arrays:
        """What is counted in each image at its original resolution: see `semantic_counts`."""

        def count(index):
            truth = examples.segments(outputs["id"][index]).semantic()
            found = self._labels(outputs, index, truth.shape)
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
        """Image, truth, prediction and errors; and see `semantic_pictures`."""
        truth = [examples.segments(i) for i in shown["id"]]
        found = [
            of_classes(self._labels(shown, index, each.map.shape), len(self.classes))
            for index, each in enumerate(truth)
        ]
        images = [examples.original(i) for i in shown["id"]]
        path = directory / "segmentations.png"
        draw.segmentation_beside_truth(images, truth, found, self.classes, path)
        semantic_pictures(outputs, self.classes, directory)

    def _labels(self, outputs: Mapping[str, np.ndarray], index: int, size) -> np.ndarray:
        """i[height, width], the class of each pixel of the original image."""
        logits = np.moveaxis(outputs["logits"][index], -1, 0)
        return best_at_original(logits, self.model.stride, outputs["affine"][index], size)


def check_classes(classes: tuple[str, ...]) -> None:
    """That there is something to segment; an InputError says what there could be."""
    if not classes:
        raise InputError(
            "config.data.source has no masks: segmentation needs masks:, panoptic:, "
            "digit_scenes, or coco: and yolo: with outlines"
        )
    for name in duplicates(classes):
        raise InputError(
            f"config.data.source has two classes {name!r}: what no object covers is called "
            "background, and no class may be"
        )


def check_evaluation(batch: Arrays) -> None:
    """That the evaluator's preprocessing tells where pixels come from; an InputError says how."""
    if "affine" not in batch:
        raise InputError(
            "the evaluator's preprocess has neither semantic nor pad_segments, one of which "
            "segmentation needs"
        )


def on_all_cores(function: Callable, items: Iterable) -> list:
    """`function` of each; threads are enough, as numpy and Pillow let others work."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(function, items))


def of_each(function: Callable[[int], dict[str, Any]], number: int) -> dict[str, np.ndarray]:
    """What `function` gives for 0, 1, ..., stacked, or as objects where it is no array."""
    found = on_all_cores(function, range(number))
    result = {}
    for key, first in found[0].items():
        values = [each[key] for each in found]
        if isinstance(first, np.ndarray):
            result[key] = np.stack(values)
        else:
            result[key] = np.empty(number, object)
            result[key][:] = values
    return result


def at_original(
    maps: np.ndarray, stride: int, affine: np.ndarray, size, rows: slice = slice(None)
) -> np.ndarray:
    """Maps as the model sees an image to maps of the original image, bilinear.

    Args:
        maps: f32[n, rows, columns], a cell for each `stride` pixels.
        stride: see above.
        affine: f[4], scale and offset (x, y) from the original image to the model's.
        size: height and width of the original image.
        rows: those of the original image that are wanted.

    Returns:
        f32[n, height or as many as wanted, width].

    Raises:
        InputError: the model has not seen all of the original image, or a value is not finite.
    """
    if not np.isfinite(maps).all():
        raise InputError("the model gives values that are not finite")
    corners = np.array([[0, 0], size[::-1]]) * affine[:2] + affine[2:]
    mirrored = corners[0, 0] > corners[1, 0]
    box = np.sort(corners, axis=0) / stride
    room = np.array(maps.shape[:0:-1])
    if (box < -1e-3).any() or (box > room + 1e-3).any():
        raise InputError(
            "the evaluator's preprocess cuts off a part of the image: use resize, letterbox or pad"
        )
    # Without the cells of padding alone, which the filter would reach.
    right, below = np.ceil(box[1] - 1e-3).astype(int)
    maps, (low, high) = maps[:, :below, :right], np.clip(box, 0, [right, below])
    top, bottom, _ = rows.indices(size[0])
    low[1], high[1] = (low[1] + (high[1] - low[1]) * row / size[0] for row in (top, bottom))
    resize = {
        "size": (size[1], bottom - top),
        "resample": Image.Resampling.BILINEAR,
        "box": (*low.tolist(), *high.tolist()),
    }
    found = np.stack([np.asarray(Image.fromarray(each).resize(**resize)) for each in maps])
    return found[:, :, ::-1] if mirrored else found


def best_at_original(maps: np.ndarray, stride: int, affine: np.ndarray, size) -> np.ndarray:
    """Which of the maps is the greatest at each pixel of the original image: i64[height, width].
    Arguments and errors as of `at_original`."""
    found = [
        at_original(maps, stride, affine, size, rows).argmax(axis=0)
        for rows in bands(len(maps), size)
    ]
    return np.concatenate(found)


def bands(maps: int, size) -> list[slice]:
    """Rows of an image in pieces, of which this many maps take no more than 64 MiB each."""
    height, width = size
    step = max(1, (64 << 20) // (4 * maps * width))
    return [slice(row, min(row + step, height)) for row in range(0, height, step)]


def of_classes(labels: np.ndarray, classes: int) -> FoundSegments:
    """A segment for each class, of the label of each pixel i[height, width]."""
    return FoundSegments(labels.astype(np.int32), np.arange(classes, dtype=np.int32))


def semantic_counts(truth: np.ndarray, found: np.ndarray, classes: int) -> dict[str, Any]:
    """What `semantic_metrics` needs of an image, from labels i[height, width]: "boundary"
    int64[classes, 4]; and of "confusion", int64[classes, classes], the places and the values that
    are not 0, as most are of most images."""
    confusion = metrics_lib.confusion_matrix(truth, found, classes).ravel()
    places = np.flatnonzero(confusion)
    return {
        "confusion": (places, confusion[places]),
        "boundary": metrics_lib.boundary_counts(truth, found, classes),
    }


def semantic_metrics(outputs: Mapping[str, np.ndarray], classes: int) -> dict[str, float]:
    """Of what `semantic_counts` has counted in each image of a split: mIoU, and of the classes in
    the truth alone mIoU_present; pixel_accuracy, mean_accuracy and boundary_F."""
    confusion = _confusion(outputs, classes)
    present = metrics_lib.segmentation_metrics(confusion, absent="leave_out")
    return {
        **metrics_lib.segmentation_metrics(confusion),
        "mIoU_present": present["mIoU"],
        "boundary_F": metrics_lib.boundary_f(outputs["boundary"].sum(axis=0)),
    }


def semantic_pictures(
    outputs: Mapping[str, np.ndarray], classes: Sequence[str], directory: pathlib.Path
) -> None:
    """IoU and F of the boundary of each class, and which classes are taken for which."""
    confusion = _confusion(outputs, len(classes))
    iou = metrics_lib.per_class_iou(confusion, classes)
    class_bars(iou, directory / "classes.png", what="IoU")
    f = metrics_lib.per_class_boundary_f(outputs["boundary"].sum(axis=0), classes)
    class_bars(f, directory / "boundaries.png", what="boundary F")
    confusion_matrix(confusion, classes, directory / "confusion.png", "of pixels")


def _confusion(outputs: Mapping[str, np.ndarray], classes: int) -> np.ndarray:
    """int64[classes, classes] of the whole split."""
    total = np.zeros(classes**2, np.int64)
    for places, values in outputs["confusion"]:
        total[places] += values
    return total.reshape(classes, classes)
