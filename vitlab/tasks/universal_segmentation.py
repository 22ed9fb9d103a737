"""Semantic, instance and panoptic segmentation by one head of queries, each a class and a mask. The
model is `models/eomt.py`, its loss `models/mask_loss.py`."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import numpy as np

from vitlab import config as config_lib
from vitlab.errors import InputError
from vitlab.evaluation import segmentation_pictures as draw
from vitlab.evaluation.boxes import Detections
from vitlab.evaluation.detection import coco_evaluation, coco_metrics, coco_results
from vitlab.evaluation.masks import encode_masks, mask_boxes
from vitlab.evaluation.panoptic import panoptic_counts, panoptic_quality
from vitlab.evaluation.segments import FoundSegments
from vitlab.models.build import UNIVERSAL_SEGMENTERS, build_around_backbone
from vitlab.models.eomt import masking
from vitlab.models.mask_loss import MaskLoss, segment_targets
from vitlab.tasks.backbone import AroundBackbone
from vitlab.tasks.photometric import AugmentConfig, photometric, without_padding
from vitlab.tasks.segmentation import (
    at_original,
    check_classes,
    check_evaluation,
    of_each,
    semantic_counts,
    semantic_metrics,
    semantic_pictures,
)
from vitlab.tasks.task import Arrays, Examples

# Instances of an image that are kept, as many as COCO counts.
MAX_INSTANCES = 100
# A query is a segment of a panoptic picture if it is this certain of its class, and if so much of
# its mask is not taken by others (github.com/tue-mps/eomt).
LEAST_SCORE = LEAST_LEFT = 0.8


@dataclasses.dataclass(frozen=True)
class UniversalSegmentation(AroundBackbone):
    """See `vitlab.tasks.task.Task` for what each function promises."""

    classes: tuple[str, ...]
    axis_name: str | None = None

    names: ClassVar[str] = "segment_names"
    evaluators: ClassVar[tuple[str, ...]] = ("segmentation",)
    some_metrics: ClassVar[tuple[str, ...]] = ("AP_small", "AP_medium", "AP_large")
    class_parameters: ClassVar[tuple[str, ...]] = ("predict/class/.*",)

    @classmethod
    def from_config(
        cls,
        model: Arrays,
        loss: Arrays,
        augment: Arrays,
        classes: tuple[str, ...],
        dtype: Any,
        axis_name: str | None = None,
    ) -> "UniversalSegmentation":
        """Builds the task. `config.model` has `name`, `backbone` and the fields of the model.

        Raises:
            InputError: a wrong key or value.
        """
        check_classes(classes)
        module = build_around_backbone(
            model, UNIVERSAL_SEGMENTERS, num_classes=len(classes), dtype=dtype, axis_name=axis_name
        )
        return cls(
            model=module,
            loss_config=config_lib.section(loss, MaskLoss, "config.loss"),
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
        """Makes `image` f32, augmented, zero where it is padding; and adds `masked`, how probable
        it is that a query is held to its mask in each of the joint blocks."""
        del step
        if "segments" not in batch:
            raise InputError(
                "config.data.preprocess has no pad_segments: universal segmentation needs it, such "
                "as |pad_segments(100)"
            )
        images = photometric(self.augment_config, batch, normalize, seed)
        masked = masking(batch["progress"], self.model.num_blocks)
        return {**batch, "image": images, "masked": masked}

    def loss(self, params: Any, model_state: Any, batch: Arrays, key: jax.Array):
        """The loss of the masks after the last block and, as `aux_...`, of those before each of the
        joint blocks. `iou`: the mean overlap of what is matched."""
        (_, stages), new_state = self.model.apply(
            {"params": params, **model_state},
            batch["image"],
            batch.get("content"),
            batch["masked"],
            train=True,
            rngs={"dropout": key},
            mutable=list(model_state),
        )
        found, loss, counted = stages["layers"], self.loss_config, batch["mask"]
        layers, grid = found.masks.shape[1], found.masks.shape[-2:]
        targets = segment_targets(
            batch["segments"],
            batch["segment_label"],
            batch["segment_mask"],
            grid,
            self.model.stride,
        )
        query = loss.match(found, targets, counted, self.axis_name)

        def part(sets):
            some = jax.tree.map(lambda x: x[:, sets], (found, query))
            return loss(some[0], targets, some[1], counted)

        last = slice(layers - 1, None)
        terms = part(last)
        if layers > 1:
            for term, (value, count, weight) in part(slice(layers - 1)).items():
                terms[f"aux_{term}"] = (value, count, weight * (layers - 1))
        final = jax.tree.map(lambda x: x[:, last], found)
        return terms, {"iou": loss.overlap(final, targets, query[:, last], counted)}, new_state

    def evaluate(self, variables: Arrays, batch: Arrays, normalize: Callable) -> Arrays:
        """Of each row the queries' probabilities of the classes f32[queries, classes + 1] and their
        masks, logits f32[queries, rows, columns]; and where the image's pixels come from."""
        check_evaluation(batch)
        images = without_padding(normalize(batch["image"]), batch)
        found, _ = self.model.apply(variables, images, batch.get("content"))
        scores = jax.nn.softmax(found.logits)
        return {"scores": scores, "masks": found.masks, "affine": batch["affine"]}

    def show(self, variables: Arrays, batch: Arrays, normalize: Callable) -> Arrays:
        """The same, of the few."""
        return self.evaluate(variables, batch, normalize)

    def features(self, variables: Arrays, images: jax.Array) -> Arrays:
        """The patches after the last block, for whole images f32[batch, height, width, channels],
        and their mean as `pre_logits`."""
        maps = self.model.apply(variables, images)[1]["feature_map"]
        return {"feature_map": maps, "pre_logits": maps.mean(axis=(1, 2))}

    def reduce(self, outputs: Mapping[str, np.ndarray], examples: Examples) -> Arrays:
        """What is counted in each image at its original resolution, see `Segmentation.reduce`; of a
        source with things, panoptic counts f64[classes, 4] and the instances, `Detections`."""

        def count(index):
            truth = examples.segments(outputs["id"][index])
            scores = outputs["scores"][index]
            masks = self._masks(outputs, index, truth.map.shape)
            found = semantic(scores, masks)
            counted = semantic_counts(truth.semantic(), found, len(self.classes))
            if any(examples.things):
                found = panoptic(scores, masks, examples.things)
                counted["panoptic"] = panoptic_counts(truth, found, len(self.classes))
                counted["instances"] = instances(scores, masks, examples.things)
            return counted

        return {"id": outputs["id"], **of_each(count, len(outputs["id"]))}

    def metrics(self, outputs: Mapping[str, np.ndarray], examples: Examples) -> dict[str, float]:
        """mIoU, pixel_accuracy, mean_accuracy and boundary_F; of a source with things PQ, SQ, RQ,
        PQ_things, PQ_stuff and COCO's AP of masks."""
        metrics = semantic_metrics(outputs)
        if "instances" in outputs:
            counts = outputs["panoptic"].sum(axis=0)
            metrics |= panoptic_quality(counts, examples.things)
            truth = [examples.annotation(i) for i in outputs["id"]]
            found = list(outputs["instances"])
            metrics |= coco_metrics(coco_evaluation(truth, found, self.classes, of="masks"))
        return metrics

    def pictures(
        self,
        outputs: Mapping[str, np.ndarray],
        shown: Mapping[str, np.ndarray],
        examples: Examples,
        directory: pathlib.Path,
    ) -> None:
        """Image, truth, panoptic prediction and errors; IoU of each class; the confusions of
        classes; and all instances with the data set's own ids, as COCO's tools read them."""
        truth = [examples.segments(i) for i in shown["id"]]
        found = [
            panoptic(
                shown["scores"][index], self._masks(shown, index, t.map.shape), examples.things
            )
            for index, t in enumerate(truth)
        ]
        images = [examples.original(i) for i in shown["id"]]
        path = directory / "segmentations.png"
        draw.segmentation_beside_truth(images, truth, found, self.classes, path)
        semantic_pictures(outputs, self.classes, directory)
        if "instances" in outputs:
            ids = [examples.annotation(i).image_id for i in outputs["id"]]
            rows = coco_results(list(outputs["instances"]), ids, examples.category_ids)
            (directory / "instances.json").write_text(json.dumps(rows))

    def _masks(self, outputs: Mapping[str, np.ndarray], index: int, size) -> np.ndarray:
        """Logits f32[queries, height, width] at the original resolution."""
        return at_original(
            outputs["masks"][index], self.model.stride, outputs["affine"][index], size
        )


def semantic(scores: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The class of each pixel i64[height, width]: the sum over the queries of their probabilities
    (MaskFormer, 2107.06278, section 3.4).

    Args:
        scores: f32[queries, classes + 1], the last of no object.
        masks: f32[queries, height, width], logits.
    """
    inside = _sigmoid(masks).reshape(len(masks), -1)
    return (scores[:, :-1].T @ inside).argmax(axis=0).reshape(masks.shape[1:])


def panoptic(scores: np.ndarray, masks: np.ndarray, things: tuple[bool, ...]) -> FoundSegments:
    """Segments that do not overlap: each pixel goes to the query that is surest of it, and of a
    class that is no thing there is one segment. Arguments as of `semantic`."""
    labels, certain = scores.argmax(axis=1), scores.max(axis=1)
    kept = np.flatnonzero((labels < scores.shape[1] - 1) & (certain > LEAST_SCORE))
    places = np.full(masks.shape[1:], -1, np.int32)
    found: list[int] = []
    if len(kept):
        inside = _sigmoid(masks[kept])
        winner = (certain[kept, None, None] * inside).argmax(axis=0)
    for number, query in enumerate(kept):
        own, won = inside[number] >= 0.5, winner == number
        both = own & won
        if not both.any() or won.sum() / own.sum() < LEAST_LEFT:
            continue
        label = int(labels[query])
        if things[label] or label not in found:
            found.append(label)
            places[both] = len(found) - 1
        else:
            places[both] = found.index(label)
    return FoundSegments(places, np.array(found, np.int32))


def instances(scores: np.ndarray, masks: np.ndarray, things: tuple[bool, ...]) -> Detections:
    """The surest pairs of a query and a thing, with the class's probability times the mean
    certainty of the mask's pixels as the score. Arguments as of `semantic`."""
    of_things = np.flatnonzero(things)
    pairs = scores[:, of_things].ravel()
    best = np.argsort(-pairs, kind="stable")[:MAX_INSTANCES]
    queries, labels = np.divmod(best, len(of_things))
    used, place = np.unique(queries, return_inverse=True)
    inside = masks[used] > 0
    certain = (_sigmoid(masks[used]) * inside).sum(axis=(1, 2)) / (inside.sum(axis=(1, 2)) + 1e-6)
    encoded = encode_masks(inside)
    encoded = [encoded[i] for i in place]
    return Detections(
        boxes=mask_boxes(encoded).astype(np.float32),
        scores=(pairs[best] * certain[place]).astype(np.float32),
        labels=of_things[labels].astype(np.int32),
        masks=encoded,
    )


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * np.tanh(0.5 * x) + 0.5
