"""What the tasks share that give each pixel something: semantic and universal segmentation."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Self

import jax
import numpy as np

from vitlab import config as config_lib
from vitlab.data.annotations import duplicates
from vitlab.errors import InputError
from vitlab.evaluation import segmentation as metrics_lib
from vitlab.evaluation.detection_pictures import class_bars
from vitlab.evaluation.pictures import confusion_matrix
from vitlab.evaluation.segments import FoundSegments
from vitlab.models.build import build_around_backbone
from vitlab.tasks.backbone import AroundBackbone
from vitlab.tasks.photometric import AugmentConfig
from vitlab.tasks.task import Arrays


@dataclasses.dataclass(frozen=True)
class Segmenting(AroundBackbone):
    """A task whose classes are those of segments.

    A method names its models and its loss, and adds `augment`, `loss`, `evaluate`, `reduce`,
    `metrics` and `pictures`; see `vitlab.tasks.task.Task` for what each promises.
    """

    classes: tuple[str, ...]
    axis_name: str | None = None

    names: ClassVar[str] = "segment_names"
    evaluators: ClassVar[tuple[str, ...]] = ("segmentation",)
    given: ClassVar[tuple[str, ...]] = ("num_classes",)
    models: ClassVar[Mapping[str, str]]  # by name, as in `models.build`
    loss_class: ClassVar[type]  # of `config.loss`

    @classmethod
    def from_config(
        cls,
        model: Arrays,
        loss: Arrays,
        augment: Arrays,
        classes: tuple[str, ...],
        dtype: Any,
        axis_name: str | None = None,
    ) -> Self:
        """Builds the task. `config.model` has `name`, `backbone` and the fields of the model.

        Raises:
            InputError: a wrong key or value, or a source without masks.
        """
        if not classes:
            raise InputError(
                "config.data.source has no masks: segmentation needs masks:, panoptic:, "
                "digit_scenes, or outlines in coco:, yolo:, cvat:, labelbox:, via: or labelme:"
            )
        for name in duplicates(classes):
            raise InputError(
                f"config.data.source has two classes {name!r}: what no object covers is called "
                "background, and no class may be"
            )
        return cls(
            model=build_around_backbone(
                model, cls.models, num_classes=len(classes), dtype=dtype, axis_name=axis_name
            ),
            loss_config=config_lib.section(loss, cls.loss_class, "config.loss"),
            augment_config=config_lib.section(augment, AugmentConfig, "config.augment"),
            classes=tuple(classes),
            axis_name=axis_name,
        )

    def show(self, variables: Arrays, batch: Arrays, normalize: Callable) -> Arrays:
        """What `evaluate` gives, of the few."""
        return self.evaluate(variables, batch, normalize)

    def features(self, variables: Arrays, images: jax.Array) -> Arrays:
        """The coarsest map of the backbone (EoMT: its patches after the last block) for whole
        images f32[batch, height, width, channels], and its mean as `pre_logits`."""
        maps = self.model.apply(variables, images)[1]["feature_map"]
        return {"feature_map": maps, "pre_logits": maps.mean(axis=(1, 2))}


def check_evaluation(batch: Arrays) -> None:
    """That the evaluator's preprocessing tells where pixels come from; an InputError says how."""
    if "affine" not in batch:
        raise InputError(
            "the evaluator's preprocess has neither semantic nor pad_segments, one of which "
            "segmentation needs"
        )


def on_all_cores(function: Callable, items: Iterable) -> list:
    """`function` of each; threads are enough, as numpy and Pillow let others work."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
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


def of_classes(labels: np.ndarray) -> FoundSegments:
    """A segment for each class that is there, of labels i[height, width]."""
    present, places = np.unique(labels, return_inverse=True)
    return FoundSegments(places.reshape(labels.shape).astype(np.int32), present.astype(np.int32))


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
) -> dict[str, dict[str, float]]:
    """IoU and F of the boundary of each class, which it returns too; and which classes are taken
    for which."""
    confusion = _confusion(outputs, len(classes))
    iou = metrics_lib.per_class_iou(confusion, classes)
    class_bars(iou, directory / "classes.png", what="IoU")
    f = metrics_lib.per_class_boundary_f(outputs["boundary"].sum(axis=0), classes)
    class_bars(f, directory / "boundaries.png", what="boundary F")
    confusion_matrix(confusion, classes, directory / "confusion.png", "of pixels")
    return {"IoU": iou, "boundary_F": f}


def _confusion(outputs: Mapping[str, np.ndarray], classes: int) -> np.ndarray:
    """int64[classes, classes] of the whole split."""
    total = np.zeros(classes**2, np.int64)
    for places, values in outputs["confusion"]:
        total[places] += values
    return total.reshape(classes, classes)
