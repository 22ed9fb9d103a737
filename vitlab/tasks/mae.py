"""Masked autoencoding: pretrains a ViT on images without labels. The method is `models/mae.py`."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vitlab.evaluation import pictures
from vitlab.models.mae import MAE, patchify, reconstruct, reconstruction_loss, unpatchify
from vitlab.ops import keys
from vitlab.tasks.pretraining import Pretraining
from vitlab.tasks.task import Arrays, Examples


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """`config.loss`.

    Attributes:
        norm_pix: whether each patch is predicted in units of its own mean and deviation, which
            gives better features (the paper's table 1d).
    """

    norm_pix: bool = True


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """`config.augment`: nothing. The paper crops and flips, and the data pipeline does that."""


@dataclasses.dataclass(frozen=True)
class MaskedAutoencoding(Pretraining):
    """See `vitlab.tasks.task.Task` for what each function promises."""

    evaluators: ClassVar[tuple[str, ...]] = ("reconstruction",)
    model_class = MAE
    loss_class = LossConfig
    augment_class = AugmentConfig

    def init(self, key: jax.Array, images: jax.Array) -> dict[str, Any]:
        """Fresh variables for images of this shape."""
        return self.model.init(key, images, jnp.zeros((len(images), self._patches(images.shape))))

    def augment(self, batch: Arrays, normalize: Callable, seed: int, step: jax.Array) -> Arrays:
        """Adds `noise` f32[batch, patches], which says what is hidden of each image."""
        del step
        patches = self._patches(batch["image"].shape)
        example_keys = keys.example_keys(seed, "mask", batch["epoch"], batch["id"])
        noise = jax.vmap(lambda key: jax.random.uniform(key, (patches,)))(example_keys)
        return {**batch, "image": normalize(batch["image"]), "noise": noise}

    def loss(self, params: Any, model_state: Any, batch: Arrays, key: jax.Array):
        """The mean squared error of the hidden patches."""
        variables = {"params": params, **model_state}
        error = self._apply(variables, batch, train=True, rngs={"dropout": key})[0]
        weight = batch["mask"].astype(jnp.float32)
        return {"reconstruction": ((error * weight).sum(), weight.sum(), 1.0)}, {}, model_state

    def evaluate(self, variables: Arrays, batch: Arrays, normalize: Callable) -> Arrays:
        """Of each row: the loss f32, under a mask that is always the same for an example."""
        return {"loss": self._apply(variables, self.augment_alike(batch, normalize))[0]}

    def show(self, variables: Arrays, batch: Arrays, normalize: Callable) -> Arrays:
        """Of each row: what the encoder sees and what the decoder makes of it, both images."""
        batch, patch = self.augment_alike(batch, normalize), self.model.backbone.patch_size
        _, prediction, mask = self._apply(variables, batch)
        images = batch["image"]
        made = reconstruct(prediction, images, mask, patch, self.loss_config.norm_pix)
        hidden = jnp.broadcast_to(mask[..., None], patchify(images, patch).shape)
        return {"reconstruction": made, "hidden": unpatchify(hidden, images.shape, patch)}

    def metrics(self, outputs: Mapping[str, np.ndarray], examples: Examples) -> dict[str, float]:
        """The mean loss."""
        del examples
        return {"loss": float(outputs["loss"].mean(dtype=np.float64))}

    def pictures(
        self,
        outputs: Mapping[str, np.ndarray],
        shown: Mapping[str, np.ndarray],
        examples: Examples,
        directory: pathlib.Path,
    ) -> None:
        """Images, what the encoder sees of them, and the reconstructions."""
        del outputs
        images = np.stack([examples.image(int(i)) for i in shown["id"]])
        masked = np.where(shown["hidden"], np.uint8(128), images)
        columns = np.stack([images, masked, examples.to_pixels(shown["reconstruction"])], axis=1)
        titles = ("image", "what is seen", "reconstruction")
        pictures.contact_sheet(columns, titles, directory / "reconstructions.png")

    def _apply(self, variables, batch, train=False, rngs=None):
        """The loss of each row f32[batch], the prediction and the mask."""
        images = batch["image"]
        prediction, stages = self.model.apply(variables, images, batch["noise"], train, rngs=rngs)
        mask, patch = stages["mask"], self.model.backbone.patch_size
        norm_pix = self.loss_config.norm_pix
        return reconstruction_loss(prediction, images, mask, patch, norm_pix), prediction, mask

    def _patches(self, shape: tuple[int, ...]) -> int:
        patch = self.model.backbone.patch_size
        return (shape[1] // patch) * (shape[2] // patch)
