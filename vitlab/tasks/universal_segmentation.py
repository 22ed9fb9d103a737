"""Semantic, instance and panoptic segmentation by one head of queries, each a class and a mask. The
model is `models/eomt.py`, its loss `models/mask_loss.py`."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from vitlab.errors import InputError
from vitlab.evaluation import segmentation_pictures as draw
from vitlab.evaluation.boxes import Detections
from vitlab.evaluation.class_metrics import write_class_metrics
from vitlab.evaluation.detection import coco_evaluation, coco_metrics, coco_results
from vitlab.evaluation.detection_pictures import class_bars
from vitlab.evaluation.masks import encode_masks, mask_boxes
from vitlab.evaluation.original import at_original, bands
from vitlab.evaluation.panoptic import panoptic_counts, panoptic_quality, per_class_pq
from vitlab.evaluation.segments import FoundSegments
from vitlab.models.build import UNIVERSAL_SEGMENTERS
from vitlab.models.eomt import masking
from vitlab.models.mask_loss import MaskLoss, segment_targets
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

# Instances of an image that are kept, as many as COCO counts.
MAX_INSTANCES = 100
# A query is a segment of a panoptic picture if it is this certain of its class, and if so much of
# its mask is not taken by others (github.com/tue-mps/eomt).
LEAST_SCORE = LEAST_LEFT = 0.8


@dataclasses.dataclass(frozen=True)
class UniversalSegmentation(Segmenting):
    """See `vitlab.tasks.task.Task` for what each function promises."""

    models: ClassVar[Mapping[str, str]] = UNIVERSAL_SEGMENTERS
    loss_class: ClassVar[type] = MaskLoss
    views: ClassVar[int] = 1  # the queries of two are not each other's
    some_metrics: ClassVar[tuple[str, ...]] = (
        "AP_small", "AP_medium", "AP_large", "PQ_things", "PQ_stuff",
    )  # fmt: skip
    class_parameters: ClassVar[Mapping[str, int | None]] = {"predict/class/.*": -1}

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
        return self.predict(variables, batch, normalize)

    def predict(self, variables: Arrays, batch: Arrays, normalize: Callable) -> Arrays:
        """As `evaluate`."""
        images = without_padding(normalize(batch["image"]), batch)
        found, _ = self.model.apply(variables, images, batch.get("content"))
        scores = jax.nn.softmax(found.logits)
        return {"scores": scores, "masks": found.masks, "affine": batch["affine"]}

    def predictions(
        self, views: Sequence[Arrays], sizes: Sequence[tuple[int, int]], things: Sequence[bool]
    ) -> list[SegmentPrediction]:
        """Panoptic segments, and the instances of things; where there are none, as of a semantic
        segmentation."""
        if len(things) != len(self.classes):
            raise InputError(
                "the run does not tell which of its classes are things: an earlier version of "
                "vitlab wrote it"
            )
        (outputs,) = views

        def of_one(index):
            semantic, segments = self._segmented(outputs, index, sizes[index], things)
            if not any(things):
                return SegmentPrediction(of_classes(semantic), self.classes)
            objects = instances(
                outputs["scores"][index],
                lambda query: self._masks(outputs, index, sizes[index], query)[0],
                things,
            )
            order = np.argsort(-objects.scores, kind="stable")
            objects = Detections(
                objects.boxes[order],
                objects.scores[order],
                objects.labels[order],
                [objects.masks[i] for i in order],
            )
            return SegmentPrediction(segments, self.classes, objects, tuple(things))

        return on_all_cores(of_one, range(len(sizes)))

    def reduce(self, outputs: Mapping[str, np.ndarray], examples: Examples) -> Arrays:
        """What is counted in each image at its original resolution, see
        `tasks.segmenting.semantic_counts`; of a source with things, panoptic counts
        f64[classes, 4] and the instances, `Detections`."""

        def count(index):
            truth = examples.segments(outputs["id"][index])
            labels, found = self._segmented(outputs, index, truth.map.shape, examples.things)
            counted = semantic_counts(truth.semantic(), labels, len(self.classes))
            if any(examples.things):
                counted["panoptic"] = panoptic_counts(truth, found, len(self.classes))
                counted["instances"] = instances(
                    outputs["scores"][index],
                    lambda query: self._masks(outputs, index, truth.map.shape, query)[0],
                    examples.things,
                )
            return counted

        return {"id": outputs["id"], **of_each(count, len(outputs["id"]))}

    def metrics(self, outputs: Mapping[str, np.ndarray], examples: Examples) -> dict[str, float]:
        """See `tasks.segmenting.semantic_metrics`; of a source with things PQ, SQ, RQ, PQ_things,
        PQ_stuff and COCO's AP of masks."""
        metrics = semantic_metrics(outputs, len(self.classes))
        if "instances" in outputs:
            counts = outputs["panoptic"].sum(axis=0)
            metrics |= panoptic_quality(counts, examples.things)
            truth = on_all_cores(examples.annotation, outputs["id"])
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
        """Image, truth, panoptic prediction and errors; see `tasks.segmenting.semantic_pictures`;
        PQ of each class; the numbers of each class in `classes.json`; and all instances with the
        data set's own ids, as COCO's tools read them."""
        truth = [examples.segments(i) for i in shown["id"]]
        found = [
            self._segmented(shown, index, each.map.shape, examples.things)[1]
            for index, each in enumerate(truth)
        ]
        images = [examples.original(i) for i in shown["id"]]
        path = directory / "segmentations.png"
        draw.segmentation_beside_truth(images, truth, found, self.classes, path)
        of_class = semantic_pictures(outputs, self.classes, directory)
        if "instances" in outputs:
            of_class["PQ"] = per_class_pq(outputs["panoptic"].sum(axis=0), self.classes)
            class_bars(of_class["PQ"], directory / "panoptic.png", what="PQ")
            annotations = on_all_cores(examples.annotation, outputs["id"])
            ids = [annotation.image_id for annotation in annotations]
            rows = coco_results(list(outputs["instances"]), ids, examples.category_ids)
            for row in rows:
                del row["bbox"]  # by which pycocotools would take a mask's size
                row["score"] = round(row["score"], 5)
            (directory / "instances.json").write_text(json.dumps(rows))
        write_class_metrics(of_class, self.classes, directory)

    def _segmented(self, outputs, index: int, size, things) -> tuple[np.ndarray, FoundSegments]:
        """See `segmented`, at the original resolution."""
        rows = bands(self.model.num_queries, size)
        masks = (self._masks(outputs, index, size, rows=each) for each in rows)
        return segmented(outputs["scores"][index], masks, things)

    def _masks(self, outputs, index: int, size, query: int | None = None, rows=slice(None)):
        """Logits f32[queries or 1, rows, width] at the original resolution."""
        some = slice(None) if query is None else slice(query, query + 1)
        masks, affine = outputs["masks"][index][some], outputs["affine"][index]
        return at_original(masks, self.model.stride, affine, size, rows)

    def layer_of(self, path: str) -> int:
        """A block's is its number; what comes before the blocks is in the first one's, all else in
        the last one's (github.com/tue-mps/eomt, training/lightning_module.py)."""
        root, _, rest = path.partition("/")
        vit = self.model.backbone
        after = vit.layer_of(rest) - 1 if root == "backbone" else self.num_layers
        return min(max(after, 0), self.num_layers)

    @property
    def num_layers(self) -> int:
        """That of the last block."""
        return self.model.backbone.num_layers - 1


def segmented(
    scores: np.ndarray, masks: Iterable[np.ndarray], things: tuple[bool, ...]
) -> tuple[np.ndarray, FoundSegments]:
    """The class of each pixel, and segments that do not overlap.

    The class is that of the greatest sum over the queries of their probabilities (MaskFormer,
    2107.06278, section 3.4). Among the queries that are certain of a class, each pixel goes to the
    one that is surest of it, if it lies in its mask; of a class that is no thing there is one
    segment.

    Args:
        scores: f32[queries, classes + 1], the last of no object.
        masks: f32[queries, rows, width] each, logits: the image in bands, from the top.
        things: which of the classes are.

    Returns:
        Labels i64[height, width], and the segments.
    """
    labels, certain = scores.argmax(axis=1), scores.max(axis=1)
    kept = np.flatnonzero((labels < scores.shape[1] - 1) & (certain > LEAST_SCORE))
    semantic, winners = [], []  # a winner: the place in `kept`, -1 outside of its mask
    of_mask, won = np.zeros((2, len(kept)), np.int64)
    for band in masks:
        inside = _sigmoid(band)
        flat = inside.reshape(len(band), -1)
        semantic.append((scores[:, :-1].T @ flat).argmax(axis=0).reshape(band.shape[1:]))
        winner = np.full(band.shape[1:], -1)
        if len(kept):
            winner = (certain[kept, None, None] * inside[kept]).argmax(axis=0)
            own = inside[kept] >= 0.5
            of_mask += own.sum(axis=(1, 2))
            won += np.bincount(winner.ravel(), minlength=len(kept))
            winner[~np.take_along_axis(own, winner[None], axis=0)[0]] = -1
        winners.append(winner)
    winner = np.concatenate(winners)
    both = np.bincount(winner.ravel() + 1, minlength=len(kept) + 1)[1:]
    place, found = np.full(len(kept) + 1, -1, np.int32), []
    for number, query in enumerate(kept):
        if not both[number] or won[number] / of_mask[number] < LEAST_LEFT:
            continue
        label = int(labels[query])
        if things[label] or label not in found:
            found.append(label)
            place[number] = len(found) - 1
        else:
            place[number] = found.index(label)
    # A winner of -1 reads the last.
    segments = FoundSegments(place[winner], np.array(found, np.int32))
    return np.concatenate(semantic), segments


def instances(
    scores: np.ndarray, mask: Callable[[int], np.ndarray], things: tuple[bool, ...]
) -> Detections:
    """The surest pairs of a query and a thing, with the class's probability times the mean
    certainty of the mask's pixels as the score.

    Args:
        scores: f32[queries, classes + 1], the last of no object.
        mask: of a query, f32[height, width], logits.
        things: which of the classes are.
    """
    of_things = np.flatnonzero(things)
    pairs = scores[:, of_things].ravel()
    best = np.argsort(-pairs, kind="stable")[:MAX_INSTANCES]
    queries, labels = np.divmod(best, len(of_things))
    encoded, certain = {}, {}
    for query in np.unique(queries):  # one at a time: a hundred large masks need not be there
        logits = mask(query)
        inside = logits > 0
        encoded[query] = encode_masks(inside[None])[0]
        certain[query] = _sigmoid(logits[inside]).sum() / (inside.sum() + 1e-6)
    masks = [encoded[query] for query in queries]
    return Detections(
        boxes=mask_boxes(masks).astype(np.float32),
        scores=np.array(pairs[best] * [certain[query] for query in queries], np.float32),
        labels=of_things[labels].astype(np.int32),
        masks=masks,
    )


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * np.tanh(0.5 * x) + 0.5
