"""SimCLR: pretrains any backbone on images without labels. The method is `models/simclr.py`."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from vitlab.config import check_unread
from vitlab.errors import InputError
from vitlab.evaluation import pictures
from vitlab.models.simclr import SimCLR, nt_xent, unit_length
from vitlab.ops import augment as augment_ops
from vitlab.ops import crops, keys
from vitlab.ops.collectives import total, whole_batch
from vitlab.tasks.pretraining import Pretraining
from vitlab.tasks.task import Arrays, Examples


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """`config.loss`.

    Attributes:
        temperature: of NT-Xent: 0.1 on ImageNet, 0.5 on CIFAR-10, 0.2 with a ViT (MoCo v3).
    """

    temperature: float = 0.1

    def __post_init__(self):
        if self.temperature <= 0:
            raise InputError(f"temperature is {self.temperature} but must be positive")


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """`config.augment`: how two views are made of one image, each in torchvision's sense.

    The defaults are SimCLR's for ImageNet. What differs between the views is a pair.

    Attributes:
        size: side of a view in pixels; None: as the image.
        crop_area: range of the area of the random crop, as a fraction of the image's.
        crop_ratio: range of its width over its height.
        crop_method: of its resize.
        flip: probability of a left-right flip.
        color_jitter: brightness, contrast, saturation, hue: torchvision's strengths.
        color_jitter_prob: that a view is jittered at all.
        greyscale: probability of losing its colours.
        blur: probability of a Gaussian blur, of each view.
        blur_kernel: its side as a fraction of the view's.
        blur_sigma: range of its deviation in pixels.
        solarize: probability that bright pixels are inverted, of each view.
    """

    size: int | None = None
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_method: Literal["bilinear", "bicubic"] = "bicubic"
    flip: float = 0.5
    color_jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)
    color_jitter_prob: float = 0.8
    greyscale: float = 0.2
    blur: tuple[float, float] = (0.5, 0.5)
    blur_kernel: float = 0.1
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self):
        if self.size is not None and self.size < 1:
            raise InputError(f"size is {self.size} but must be at least 1")
        chances = (self.flip, self.color_jitter_prob, self.greyscale, *self.blur, *self.solarize)
        if not all(0 <= chance <= 1 for chance in chances):
            raise InputError(
                "flip, color_jitter_prob, greyscale, blur and solarize are probabilities in [0, 1]"
            )
        if not any(self.color_jitter):
            check_unread(self, ("color_jitter_prob",), "without color_jitter")
        if not any(self.blur):
            check_unread(self, ("blur_kernel", "blur_sigma"), "without blur")


@dataclasses.dataclass(frozen=True)
class Contrastive(Pretraining):
    """See `vitlab.tasks.task.Task` for what each function promises."""

    evaluators: ClassVar[tuple[str, ...]] = ("contrast",)
    model_class = SimCLR
    loss_class = LossConfig
    augment_class = AugmentConfig

    def init(self, key: jax.Array, images: jax.Array) -> dict[str, Any]:
        """Fresh variables for images of this shape."""
        return self.model.init(key, jnp.zeros((2, *self._view_size(images), images.shape[-1])))

    def augment(self, batch: Arrays, normalize: Callable, seed: int, step: jax.Array) -> Arrays:
        """`image` becomes two views of it, f32[batch, 2, height, width, channels]."""
        del step
        images = batch["image"].astype(jnp.float32) / 255.0
        views = [normalize(255.0 * self._view(images, batch, seed, i)) for i in range(2)]
        return {**batch, "image": jnp.stack(views, axis=1)}

    def loss(self, params: Any, model_state: Any, batch: Arrays, key: jax.Array):
        """NT-Xent over the global batch; how often it is right, and how far views are spread.

        `feature_std` is that of the projections: see `vitlab.evaluation.collapse.feature_std`.
        """
        views = batch["image"]
        if whole_batch(len(views), self.axis_name) < 2:
            raise InputError(
                "config.batch_size: contrastive learning compares the images of a batch, so it "
                "must be at least 2, and learns well from 256 on"
            )
        (projections, _), new_state = self.model.apply(
            {"params": params, **model_state},
            views.reshape(-1, *views.shape[2:]),
            train=True,
            rngs={"dropout": key},
            mutable=list(model_state),
        )
        projections = projections.reshape(*views.shape[:2], -1)
        mask, temperature = batch["mask"], self.loss_config.temperature
        losses, nearest = nt_xent(projections, mask, temperature, self.axis_name)
        weight = mask.astype(jnp.float32)
        count = weight.sum()
        # Of vectors of length 1, the variance over all dimensions is what the mean lacks to 1.
        sums = (unit_length(projections).mean(axis=1) * weight[:, None]).sum(axis=0)
        mean = total(sums, self.axis_name) / total(count, self.axis_name)
        spread = jnp.sqrt(jnp.maximum(1 - jnp.square(mean).sum(), 0))
        metrics = {
            "contrast_accuracy": ((nearest * weight).sum(), count),
            "feature_std": (spread, jnp.ones(())),
        }
        return {"nt_xent": ((losses * weight).sum(), count, 1.0)}, metrics, new_state

    def evaluate(self, variables: Arrays, batch: Arrays, normalize: Callable) -> Arrays:
        """Of each row: the loss f32 among the images of its batch, and whether it is right f32.

        The views of an example are always the same. More images in a batch make a larger loss, so
        compare values of the same `batch_size` only.
        """
        views = self.augment_alike(batch, normalize)["image"]
        projections, _ = self.model.apply(variables, views.reshape(-1, *views.shape[2:]))
        projections = projections.reshape(*views.shape[:2], -1)
        loss, nearest = nt_xent(projections, batch["mask"], self.loss_config.temperature)
        return {"loss": loss, "contrast_accuracy": nearest}

    def show(self, variables: Arrays, batch: Arrays, normalize: Callable) -> Arrays:
        """Of each row: its two views f32[2, height, width, channels]."""
        del variables
        return {"views": self.augment_alike(batch, normalize)["image"]}

    def metrics(self, outputs: Mapping[str, np.ndarray], examples: Examples) -> dict[str, float]:
        """Means over the split."""
        del examples
        return {name: float(outputs[name].mean()) for name in ("loss", "contrast_accuracy")}

    def pictures(
        self,
        outputs: Mapping[str, np.ndarray],
        shown: Mapping[str, np.ndarray],
        examples: Examples,
        directory: pathlib.Path,
    ) -> None:
        """The views that are compared, in pairs."""
        del outputs
        pictures.contact_sheet(
            examples.to_pixels(shown["views"]), ("view 1", "view 2"), directory / "views.png"
        )

    def _view(self, images: jax.Array, batch: Arrays, seed: int, view: int) -> jax.Array:
        """f32[batch, height, width, channels] in [0, 1]: one random view of each image."""
        c = self.augment_config

        def draws(purpose):
            return keys.example_keys(seed, f"{purpose}_{view}", batch["epoch"], batch["id"])

        size = self._view_size(images)
        x = crops.random_resized_crop(
            images, draws("crop"), size, c.crop_area, c.crop_ratio, c.crop_method
        )
        x = crops.random_flip(x, draws("flip"), c.flip)
        if any(c.color_jitter) and c.color_jitter_prob:
            x = augment_ops.color_jitter(
                x, draws("color_jitter"), *c.color_jitter, p=c.color_jitter_prob
            )
        if c.greyscale:
            x = augment_ops.random_greyscale(x, draws("greyscale"), c.greyscale)
        if c.blur[view]:
            kernel = 2 * int(c.blur_kernel * min(size) / 2) + 1
            if kernel < 3:
                raise InputError(
                    f"config.augment.blur: a kernel of {c.blur_kernel} of {min(size)} pixels blurs "
                    "nothing; set blur=(0.0, 0.0) or a larger blur_kernel"
                )
            x = augment_ops.random_blur(x, draws("blur"), kernel, c.blur_sigma, c.blur[view])
        if c.solarize[view]:
            x = augment_ops.random_solarize(x, draws("solarize"), c.solarize[view])
        return x

    def _view_size(self, images: jax.Array) -> tuple[int, int]:
        size = self.augment_config.size
        return images.shape[1:3] if size is None else (size, size)
