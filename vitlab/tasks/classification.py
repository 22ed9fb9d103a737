"""Classification: one label an image, softmax or sigmoid cross-entropy."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitlab import config as config_lib
from vitlab.errors import InputError
from vitlab.evaluation import classification as metrics_lib
from vitlab.evaluation import pictures
from vitlab.evaluation.class_metrics import write_class_metrics
from vitlab.models.build import build_model, model_settings
from vitlab.ops import augment as augment_ops
from vitlab.ops import keys, losses, mixing
from vitlab.tasks.predictions import ClassPrediction
from vitlab.tasks.task import Arrays, Examples


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """`config.loss`.

    Attributes:
        name: `softmax`; `sigmoid`, one binary decision a class, summed over the classes as
            big_vision does ("Are we done with ImageNet?", arXiv:2006.07159); or `bce`, the same
            averaged over the classes, with every class of a mixed image a full positive, as
            DeiT III does (arXiv:2204.07118).
        label_smoothing: mass that is spread evenly over all classes.
    """

    name: Literal["softmax", "sigmoid", "bce"] = "softmax"
    label_smoothing: float = 0.0

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label_smoothing is {self.label_smoothing} but must be in [0, 1)")
        if self.label_smoothing and self.name == "bce":
            raise InputError("label_smoothing would make every class a positive of bce; use 0")

    def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """f32[batch] from logits f[batch, classes] and targets f32[batch, classes]."""
        if self.name == "softmax":
            return losses.softmax_cross_entropy(logits, targets)
        if self.name == "sigmoid":
            return losses.sigmoid_cross_entropy(logits, targets) * logits.shape[-1]
        return losses.sigmoid_cross_entropy(logits, targets > 0)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """`config.augment`: what happens to a training batch on the device. 0 leaves an op out.

    Attributes:
        color_jitter: brightness, contrast, saturation, hue: torchvision's strengths.
        color_jitter_prob: that an example is jittered at all.
        noise: standard deviation of Gaussian noise, for pixels in [0, 1].
        erasing: probability of random erasing, after normalization, with normal noise.
        mixup: alpha of the Beta distribution; one lambda a step.
        cutmix: alpha of the Beta distribution. With both, each step does one or the other.
        mix_prob: that a batch is mixed at all.
        cutmix_share: of the mixed batches, where both are on.
    """

    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    color_jitter_prob: float = 1.0
    noise: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    cutmix_share: float = 0.5

    def __post_init__(self):
        for name in ("color_jitter_prob", "erasing", "mix_prob", "cutmix_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)} but must be in [0, 1]")
        for name in ("noise", "mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}: it cannot be negative")
        if not any(self.color_jitter):
            config_lib.check_unread(self, ("color_jitter_prob",), "without color_jitter")
        if not (self.mixup and self.cutmix):
            config_lib.check_unread(self, ("cutmix_share",), "without both mixup and cutmix")
        if not (self.mixup or self.cutmix):
            config_lib.check_unread(self, ("mix_prob",), "without mixup or cutmix")


@dataclasses.dataclass(frozen=True)
class Classification:
    """See `vitlab.tasks.task.Task` for what each function promises."""

    model: nn.Module
    loss_config: LossConfig
    augment_config: AugmentConfig
    classes: tuple[str, ...]
    axis_name: str | None = None

    names: ClassVar[str] = "class_names"
    evaluators: ClassVar[tuple[str, ...]] = ("classification",)
    views: ClassVar[int] = 2
    class_parameters: ClassVar[Mapping[str, int | None]] = {"head/.*": -1, "pre_logits/.*": None}
    some_metrics: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_config(
        cls,
        model: Arrays,
        loss: Arrays,
        augment: Arrays,
        classes: tuple[str, ...],
        dtype: Any,
        axis_name: str | None = None,
    ) -> "Classification":
        """Builds the task; the head has as many classes as the data unless the config says more.

        Raises:
            InputError: a wrong key or value, data with fewer than two classes, or a head with
                fewer than the data.
        """
        num_classes = model.get("num_classes") or len(classes)
        if not classes:
            raise InputError("config.data.source has no labels: classification needs some")
        if len(classes) == 1:
            raise InputError(
                f"config.data.source has one class alone, {classes[0]!r}: classification tells two "
                "or more apart"
            )
        settings = {**model, "num_classes": num_classes}
        module = build_model(settings, dtype=dtype, axis_name=axis_name)
        if module.num_classes < len(classes):
            raise InputError(
                f"config.model.num_classes is {module.num_classes} but the data have "
                f"{len(classes)} classes"
            )
        extra = tuple(f"unused {i}" for i in range(len(classes), module.num_classes))
        return cls(
            model=module,
            loss_config=config_lib.section(loss, LossConfig, "config.loss"),
            augment_config=config_lib.section(augment, AugmentConfig, "config.augment"),
            classes=tuple(classes) + extra,
            axis_name=axis_name,
        )

    def settings(self) -> dict[str, Any]:
        """The sections that this task read, resolved."""
        return {
            "model": config_lib.as_dict(model_settings(self.model)),
            "loss": config_lib.as_dict(self.loss_config),
            "augment": config_lib.as_dict(self.augment_config),
        }

    def init(self, key: jax.Array, images: jax.Array) -> dict[str, Any]:
        """Fresh variables for images of this shape."""
        return self.model.init(key, images, train=False)

    def augment(self, batch: Arrays, normalize: Callable, seed: int, step: jax.Array) -> Arrays:
        """Adds `target` f32[batch, classes] and makes `image` f32, augmented as configured."""
        if "label" not in batch:
            raise InputError(
                "config.data.source has no labels but boxes: it is for task 'detection'"
            )
        c = self.augment_config
        images, targets = self._augment_each(batch, normalize, seed)
        if c.mixup or c.cutmix:
            partners = None
            if "before" in batch:
                partners = self._augment_each(batch["before"], normalize, seed)
            images, targets = mixing.mixup_or_cutmix(
                images,
                targets,
                keys.batch_key(seed, "mix", step),
                c.mixup,
                c.cutmix,
                c.mix_prob,
                c.cutmix_share,
                self.axis_name,
                partners,
            )
        return {**batch, "image": images, "target": targets}

    def _augment_each(
        self, batch: Arrays, normalize: Callable, seed: int
    ) -> tuple[jax.Array, jax.Array]:
        """Images and targets as they are before mixing, each a function of its own row alone."""
        c = self.augment_config
        images = batch["image"].astype(jnp.float32) / 255.0

        def example_keys(purpose):
            return keys.example_keys(seed, purpose, batch["epoch"], batch["id"])

        if any(c.color_jitter):
            images = augment_ops.color_jitter(
                images, example_keys("color_jitter"), *c.color_jitter, p=c.color_jitter_prob
            )
        if c.noise:
            images = augment_ops.gaussian_noise(images, example_keys("noise"), c.noise)
        images = normalize(images * 255.0)
        if c.erasing:
            images = augment_ops.random_erasing(images, example_keys("erasing"), c.erasing)
        targets = jax.nn.one_hot(batch["label"], len(self.classes))
        return images, losses.smooth_labels(targets, self.loss_config.label_smoothing)

    def loss(self, params: Any, model_state: Any, batch: Arrays, key: jax.Array):
        """Cross-entropy with the (mixed, smoothed) targets, and the accuracy on the labels."""
        variables = {"params": params, **model_state}
        (logits, _), new_state = self.model.apply(
            variables,
            batch["image"],
            train=True,
            rngs={"dropout": key},
            mutable=list(model_state),
        )
        weight = batch["mask"].astype(jnp.float32)
        count = weight.sum()
        total = (self.loss_config(logits, batch["target"]) * weight).sum()
        right = ((logits.argmax(-1) == batch["label"]) * weight).sum()
        return {self.loss_config.name: (total, count, 1.0)}, {"accuracy": (right, count)}, new_state

    def features(self, variables: Arrays, images: jax.Array) -> Arrays:
        """The model's stages."""
        return self.model.apply(variables, images)[1]

    def predict(self, variables: Arrays, batch: Arrays, normalize: Callable) -> Arrays:
        """Of each row the logits f32[classes]."""
        logits, _ = self.model.apply(variables, normalize(batch["image"]))
        return {"logits": logits.astype(jnp.float32)}

    def predictions(
        self, views: Sequence[Arrays], sizes: Sequence[tuple[int, int]], things: Sequence[bool]
    ) -> list[ClassPrediction]:
        """The softmax of the logits, of several views the mean."""
        del sizes, things
        each = [np.asarray(jax.nn.softmax(view["logits"])) for view in views]
        if not np.isfinite(each).all():
            raise InputError("the model gives values that are not finite")
        return [ClassPrediction(row, self.classes) for row in np.mean(each, axis=0)]

    def in_pixels(self, outputs: Arrays, rows: jax.Array, columns: jax.Array) -> Arrays:
        """The logits, and `probabilities`, their softmax."""
        del rows, columns
        return {**outputs, "probabilities": jax.nn.softmax(outputs["logits"])}

    def evaluate(self, variables: Arrays, batch: Arrays, normalize: Callable) -> Arrays:
        """See `judged`."""
        return self.judged(self.predict(variables, batch, normalize), batch)

    def judged(self, outputs: Arrays, batch: Arrays) -> Arrays:
        """Of each row: label i32, nll f32, top_k i32[5 or fewer] best first, confidence f32.

        nll and confidence are those of the softmax, whatever the loss.
        """
        log_probs = jax.nn.log_softmax(outputs["logits"])
        best, top_k = jax.lax.top_k(log_probs, min(5, len(self.classes)))
        nll = -jnp.take_along_axis(log_probs, batch["label"][:, None], axis=1)[:, 0]
        return {
            "label": batch["label"],
            "nll": nll,
            "top_k": top_k,
            "confidence": jnp.exp(best[:, 0]),
        }

    def show(self, variables: Arrays, batch: Arrays, normalize: Callable) -> Arrays:
        """Nothing: the outputs of the whole split say what to draw."""
        del variables, batch, normalize
        return {}

    def reduce(self, outputs: Mapping[str, np.ndarray], examples: Examples) -> Arrays:
        """All of them."""
        del examples
        return outputs

    def metrics(self, outputs: Mapping[str, np.ndarray], examples: Examples) -> dict[str, float]:
        """See `vitlab.evaluation.classification.classification_metrics`."""
        del examples
        return metrics_lib.classification_metrics(
            outputs["label"],
            outputs["top_k"],
            outputs["nll"],
            outputs["confidence"],
            num_classes=len(self.classes),
        )

    def pictures(
        self,
        outputs: Mapping[str, np.ndarray],
        shown: Mapping[str, np.ndarray],
        examples: Examples,
        directory: pathlib.Path,
    ) -> None:
        """Confusion matrix, reliability diagram, the mistakes that cost most, and the accuracy of
        each class in `classes.json`."""
        del shown
        label, predicted = outputs["label"], outputs["top_k"][:, 0]
        matrix = metrics_lib.confusion_matrix(label, predicted, len(self.classes))
        title = f"accuracy {100 * np.mean(label == predicted):.2f} %"
        pictures.confusion_matrix(matrix, self.classes, directory / "confusion.png", title)
        accuracy = metrics_lib.per_class_accuracy(label, predicted, len(self.classes)).tolist()
        of_class = {"accuracy": dict(zip(self.classes, accuracy, strict=True))}
        write_class_metrics(of_class, self.classes, directory)
        pictures.reliability_diagram(
            outputs["confidence"], predicted == label, directory / "reliability.png"
        )
        wrong = np.flatnonzero(predicted != label)
        worst = wrong[np.argsort(-outputs["nll"][wrong], kind="stable")][:24]
        if len(worst):
            titles = [
                f"is {self.classes[label[i]]}\nsays {self.classes[predicted[i]]} "
                f"({outputs['confidence'][i]:.0%})"
                for i in worst
            ]
            images = np.stack([examples.image(int(outputs["id"][i])) for i in worst])
            pictures.image_grid(images, titles, directory / "mistakes.png")

    def layer_of(self, path: str) -> int:
        """As the model says."""
        return self.model.layer_of(path)

    @property
    def num_layers(self) -> int:
        """The head's layer: the model's embedding is 0 and its blocks follow."""
        return self.model.num_layers + 1
