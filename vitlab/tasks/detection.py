"""Detection of objects: a box, a class and a score for each. The models are `models/detr.py` and
`models/plain_detr.py`, their loss is `models/set_loss.py`."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vitlab import config as config_lib
from vitlab.errors import InputError
from vitlab.evaluation import detection as metrics_lib
from vitlab.evaluation import detection_pictures as draw
from vitlab.evaluation import pictures
from vitlab.evaluation.class_metrics import write_class_metrics
from vitlab.models.build import DETECTORS, build_around_backbone
from vitlab.models.detr import Boxes
from vitlab.models.set_loss import SetLoss, Targets
from vitlab.ops import keys
from vitlab.ops.boxes import to_centres, to_corners
from vitlab.tasks.backbone import AroundBackbone
from vitlab.tasks.photometric import AugmentConfig, photometric, without_padding
from vitlab.tasks.predictions import ObjectPrediction, suppressed
from vitlab.tasks.task import Arrays, Examples

# Detections of an image that are kept, as many as COCO counts.
MAX_DETECTIONS = 100


@dataclasses.dataclass(frozen=True)
class Detection(AroundBackbone):
    """See `vitlab.tasks.task.Task` for what each function promises."""

    classes: tuple[str, ...]
    axis_name: str | None = None

    evaluators: ClassVar[tuple[str, ...]] = ("detection",)
    views: ClassVar[int] = 2
    given: ClassVar[tuple[str, ...]] = ("num_classes", "class_bias", "no_object")
    some_metrics: ClassVar[tuple[str, ...]] = ("AP_small", "AP_medium", "AP_large")
    class_parameters: ClassVar[Mapping[str, int | None]] = {
        "class_head/.*": -1,
        "(proposal_heads_[0-9]+|decoder/heads)/class/.*": -1,
        "label_embedding/.*": 0,
    }

    @classmethod
    def from_config(
        cls,
        model: Arrays,
        loss: Arrays,
        augment: Arrays,
        classes: tuple[str, ...],
        dtype: Any,
        axis_name: str | None = None,
    ) -> "Detection":
        """Builds the task. `config.model` has `name`, `backbone` and the fields of the detector.

        Raises:
            InputError: a wrong key or value.
        """
        if not classes:
            raise InputError("config.data.source has no classes: detection needs boxes of some")
        loss = config_lib.section(loss, SetLoss, "config.loss")
        softmax = loss.classification == "softmax"
        module = build_around_backbone(
            model,
            DETECTORS,
            num_classes=len(classes) + softmax,
            # A sigmoid says 1 % at first: nearly all that it sees is background (1708.02002).
            class_bias=0.0 if softmax else -math.log(99),
            no_object=softmax,
            dtype=dtype,
            axis_name=axis_name,
        )
        return cls(
            model=module,
            loss_config=loss,
            augment_config=config_lib.section(augment, AugmentConfig, "config.augment"),
            classes=tuple(classes),
            axis_name=axis_name,
        )

    def augment(self, batch: Arrays, normalize: Callable, seed: int, step: jax.Array) -> Arrays:
        """Makes `image` f32, augmented, zero where it is padding; and adds `targets`."""
        del step
        _check(batch, "config.data.preprocess")
        images = photometric(self.augment_config, batch, normalize, seed)
        size = _size(batch)[:, None, ::-1]  # width, height
        boxes = to_centres(batch["boxes"]) / jnp.tile(size, 2)
        mask = batch["box_mask"] & batch["mask"][:, None]
        targets = Targets(boxes, batch["box_label"], mask)
        if getattr(self.model, "denoising", 0):
            example_keys = keys.example_keys(seed, "denoising", batch["epoch"], batch["id"])
            noisy = jax.vmap(self.model.noisy_copies)(example_keys, targets)
            batch = {**batch, "noisy": noisy}
        return {**batch, "image": images, "targets": targets}

    def loss(self, params: Any, model_state: Any, batch: Arrays, key: jax.Array):
        """The set loss of the last layer and, as `aux_...`, of the others; of the proposals and the
        noisy copies where the model has them. `iou`: the mean overlap of what is matched."""
        targets = batch["targets"]
        (_, stages), new_state = self.model.apply(
            {"params": params, **model_state},
            batch["image"],
            batch.get("content"),
            batch.get("noisy"),
            train=True,
            rngs={"dropout": key},
            mutable=list(model_state),
        )
        loss, rows = self.loss_config, batch["mask"][:, None, None]
        layers = stages["layers"].boxes.shape[1]
        found = _sets(stages["layers"])
        last = found.boxes.shape[1] // layers
        query = loss.match(found, targets, rows, self.axis_name)
        final = _part(found, slice(-last, None))
        terms = loss(final, targets, query[:, -last:], rows)
        iou = loss.overlap(final, targets, query[:, -last:])

        def add(name, more, layers=1):
            for term, (value, count, weight) in more.items():
                terms[f"{name}_{term}"] = (value, count, weight * layers)

        if layers > 1:
            others = loss(_part(found, slice(-last)), targets, query[:, :-last], rows)
            add("aux", others, layers - 1)
        if "proposals" in stages:
            proposals = stages["proposals"]
            counted = rows & stages["proposal_mask"][:, None]
            query = loss.match(proposals, targets, counted, self.axis_name)
            add("proposal", loss(proposals, targets, query, counted))
        if "denoised" in stages:
            denoised = _sets(stages["denoised"])
            number = targets.mask.shape[1]
            counted = rows & jnp.tile(targets.mask, 2)[:, None]
            query = jnp.broadcast_to(jnp.arange(number), (*denoised.boxes.shape[:2], number))
            add("denoising", loss(denoised, targets, query, counted), layers)
        return terms, {"iou": iou}, new_state

    def evaluate(self, variables: Arrays, batch: Arrays, normalize: Callable) -> Arrays:
        """See `predict`."""
        _check(batch, "the evaluator's preprocess")
        return self.predict(variables, batch, normalize)

    def predict(self, variables: Arrays, batch: Arrays, normalize: Callable) -> Arrays:
        """Of each row the best detections: boxes f32[k, 4] as corners in pixels of the original
        image, beyond which they may reach, scores f32[k] best first, labels i32[k]."""
        images = without_padding(normalize(batch["image"]), batch)
        found, _ = self.model.apply(variables, images, batch.get("content"))
        size = jnp.tile(_size(batch)[:, None, ::-1], 2)
        scale, offset = (jnp.tile(x, 2)[:, None] for x in jnp.split(batch["affine"], 2, axis=1))
        boxes = (to_corners(found.boxes) * size - offset) / scale
        # In the right order also where the image was mirrored.
        low, high = jnp.split(boxes, 2, axis=-1)
        boxes = jnp.concatenate([jnp.minimum(low, high), jnp.maximum(low, high)], axis=-1)
        if self.loss_config.classification == "softmax":
            p = jax.nn.softmax(found.logits)[..., :-1]
            scores, order = jax.lax.top_k(p.max(axis=-1), min(MAX_DETECTIONS, p.shape[1]))
            labels = jnp.take_along_axis(p.argmax(axis=-1), order, axis=1)
        else:
            p = jax.nn.sigmoid(found.logits)
            classes = p.shape[2]
            flat = p.reshape(p.shape[0], -1)
            scores, order = jax.lax.top_k(flat, min(MAX_DETECTIONS, flat.shape[1]))
            # Not % and //, which no exporter has for a batch of any size.
            query = jax.lax.div(order, jnp.full_like(order, classes))
            order, labels = query, order - query * classes
        boxes = jnp.take_along_axis(boxes, order[..., None], axis=1)
        return {"boxes": boxes, "scores": scores, "labels": labels.astype(jnp.int32)}

    def predictions(
        self, views: Sequence[Arrays], sizes: Sequence[tuple[int, int]], things: Sequence[bool]
    ) -> list[ObjectPrediction]:
        """The detections; those of several views without duplicates.

        A box may reach beyond its image, as it does where it is scored: DETR's published AP is that
        of boxes as the model gives them. Pictures end at the image's edge.
        """
        del things
        made = []
        for index in range(len(sizes)):
            parts = [[view[key][index] for view in views] for key in ("boxes", "scores", "labels")]
            boxes, scores, labels = map(np.concatenate, parts)
            if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
                raise InputError("the model gives values that are not finite")
            found = metrics_lib.Detections(boxes, scores, labels)
            found = suppressed(found) if len(views) > 1 else found
            made.append(ObjectPrediction(found.boxes, found.scores, found.labels, self.classes))
        return made

    def show(self, variables: Arrays, batch: Arrays, normalize: Callable) -> Arrays:
        """Nothing: the outputs of the whole split say what to draw."""
        del variables, batch, normalize
        return {}

    def features(self, variables: Arrays, images: jax.Array) -> Arrays:
        """The backbone's maps for whole images f32[batch, height, width, channels], by their
        strides, such as `stride_16`; `pre_logits` is the mean of that of the greatest."""

        def maps(model, images):
            return model.backbone.feature_maps(images)

        maps = self.model.apply(variables, images, method=maps)
        stages = {f"stride_{stride}": features for stride, features in maps.items()}
        return {**stages, "pre_logits": maps[max(maps)].mean(axis=(1, 2))}

    def metrics(self, outputs: Mapping[str, np.ndarray], examples: Examples) -> dict[str, float]:
        """COCO's (`vitlab.evaluation.detection.coco_metrics`), and the mean AP of Pascal VOC by its
        two conventions: VOC_AP is the area, VOC07_AP of eleven points."""
        truth, found = _compared(outputs, examples)
        metrics = metrics_lib.coco_metrics(metrics_lib.coco_evaluation(truth, found, self.classes))
        for name, convention in (("VOC_AP", "area"), ("VOC07_AP", "11_point")):
            mean, _ = metrics_lib.voc_ap(truth, found, self.classes, metric=convention)
            metrics[name] = mean
        return metrics

    def pictures(
        self,
        outputs: Mapping[str, np.ndarray],
        shown: Mapping[str, np.ndarray],
        examples: Examples,
        directory: pathlib.Path,
    ) -> None:
        """Predictions beside the truth, precision against recall, AP of each class, also in
        `classes.json`, confusions; and all detections with the data set's own ids, as COCO's tools
        read them."""
        del shown
        truth, found = _compared(outputs, examples)
        evaluation = metrics_lib.coco_evaluation(truth, found, self.classes)
        # From all over the split: examples lie beside those of one scene.
        some = np.linspace(0, len(truth) - 1, min(len(truth), 8)).astype(int)
        draw.boxes_beside_truth(
            [examples.original(outputs["id"][i]) for i in some],
            [truth[i] for i in some],
            [found[i] for i in some],
            self.classes,
            directory / "detections.png",
        )
        curves = metrics_lib.precision_recall(evaluation)
        draw.precision_recall_curves(*curves, directory / "precision_recall.png")
        ap = metrics_lib.per_class_ap(evaluation)
        draw.class_bars(ap, directory / "classes.png")
        write_class_metrics({"AP": ap}, self.classes, directory)
        names = (*self.classes, "background")
        confusion = metrics_lib.confusion(truth, found, self.classes)
        title = "of IoU above 0.5 and score above 0.3"
        pictures.confusion_matrix(confusion, names, directory / "confusion.png", title)
        ids = [image.image_id for image in truth]
        results = metrics_lib.coco_results(found, ids, examples.category_ids)
        for row in results:  # as COCO asks for: a third of the digits
            row |= {"bbox": [round(x, 2) for x in row["bbox"]], "score": round(row["score"], 5)}
        (directory / "detections.json").write_text(json.dumps(results))


def _check(batch: Arrays, where: str) -> None:
    if "boxes" not in batch:
        raise InputError(f"{where} has no pad_boxes: detection needs it, such as |pad_boxes(100)")


def _size(batch: Arrays) -> jax.Array:
    """f32[batch, 2], height and width of each image in pixels, without padding."""
    if "content" in batch:
        return batch["content"].astype(jnp.float32)
    return jnp.broadcast_to(
        jnp.asarray(batch["image"].shape[1:3], jnp.float32), (batch["image"].shape[0], 2)
    )


def _sets(found: Boxes) -> Boxes:
    """f32[batch, ..., queries, n] to f32[batch, sets, queries, n]."""
    return jax.tree.map(lambda x: x.reshape(len(x), -1, *x.shape[-2:]), found)


def _part(found: Boxes, sets) -> Boxes:
    return jax.tree.map(lambda x: x[:, sets], found)


def _compared(outputs, examples):
    """The truth and the detections of each example."""
    truth = [examples.annotation(i) for i in outputs["id"]]
    keys = ("boxes", "scores", "labels")
    found = [
        metrics_lib.Detections(*each) for each in zip(*(outputs[key] for key in keys), strict=True)
    ]
    return truth, found
