"""Masked autoencoders (He et al., "Masked Autoencoders Are Scalable Vision Learners", 2111.06377).

Three quarters of an image's patches are hidden. The encoder, a plain ViT, sees the others alone,
which makes a step cheap; a light decoder puts a mask token wherever a patch is missing and predicts
the pixels there. Numbers and initialisation are those of github.com/facebookresearch/mae.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from vitlab.errors import InputError
from vitlab.models.transformer import XAVIER, XAVIER_QKV, Attention, Dense, Encoder, LayerNorm, Mlp
from vitlab.models.vit import ViT
from vitlab.ops.positions import sincos_2d


class MAE(nn.Module):
    """A masked autoencoder around any ViT: `MAE(ViT("B/16", pos_embed="sincos2d_mae", ...))`.

    Fields:
      backbone: the encoder, without a head. Registers and rotary positions are welcome; so is the
        paper's class token, which learns nothing here but stays for the fine-tuning.
      mask_ratio: the fraction of patches that is hidden, in (0, 1).
      decoder_width, decoder_depth, decoder_heads: of the decoder; the paper's for every encoder.
      dtype: of the computation; parameters are float32.

    Raises:
      InputError: a field that is none of the above, or a backbone that is no headless ViT.
    """

    backbone: ViT
    mask_ratio: float = 0.75
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    dtype: Any = jnp.float32

    def __post_init__(self):
        if not 0 < self.mask_ratio < 1:
            raise InputError(
                f"MAE mask_ratio is {self.mask_ratio}: it must be between 0 and 1, both excluded, "
                "such as 0.75"
            )
        if not isinstance(self.backbone, ViT) or self.backbone.pool not in ("cls", "gap"):
            raise InputError("MAE needs a ViT as its backbone, with pool 'cls' or 'gap'")
        if self.backbone.stem != "patch":
            raise InputError(
                "MAE needs a backbone with stem='patch': in another a patch tells of the next"
            )
        for field in ("num_classes", "patch_dropout", "norm_after_pool", "rep_size"):
            if getattr(self.backbone, field):
                raise InputError(f"MAE's backbone has no {field}: that is for the fine-tuning")
        for field in ("decoder_width", "decoder_depth", "decoder_heads"):
            if getattr(self, field) < 1:
                raise InputError(f"MAE {field} is {getattr(self, field)} but must be at least 1")
        if self.decoder_width % self.decoder_heads or self.decoder_width % 4:
            raise InputError(
                f"MAE decoder_width {self.decoder_width} is no multiple of its "
                f"{self.decoder_heads} heads and of 4"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Array, noise: Array, train: bool = False
    ) -> tuple[Array, dict[str, Array]]:
        """Predicts every patch of each image from those that stay visible.

        Args:
          images: f[batch, height, width, channels].
          noise: f32[batch, patches], uniform: the patches of an image with the least are visible.
          train: whether dropout and stochastic depth of the backbone act, which needs
            `rngs={"dropout": key}`.

        Returns:
          The prediction f[batch, patches, patch_size^2 * channels], in the order of `patchify`; and
          the stages: "mask" bool[batch, patches], true where a patch was hidden, and the backbone's
          own, of the visible patches.
        """
        backbone, dtype = self.backbone, self.dtype
        tokens, rope, stages = backbone.embed(images)
        kept, restore, mask = random_mask(noise, self.mask_ratio)
        tokens = jnp.take_along_axis(tokens, kept[..., None], axis=1)
        rope = rope if rope is None else rope[kept]
        encoded, encoder_stages = backbone.encode(tokens, rope, train)

        dense = partial(Dense, kernel_init=XAVIER, dtype=dtype)
        x = dense(self.decoder_width, name="decoder_embed")(encoded)
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (self.decoder_width,))
        prefix, visible = jnp.split(x, [backbone.num_prefix], axis=1)
        hidden = (len(x), mask.shape[1] - visible.shape[1], self.decoder_width)
        x = jnp.concatenate([visible, jnp.broadcast_to(mask_token.astype(x.dtype), hidden)], axis=1)
        x = jnp.take_along_axis(x, restore[..., None], axis=1)
        grid = stages["with_position"].shape[1:3]
        positions = sincos_2d(grid, self.decoder_width, endpoint=False)
        x = x + positions.reshape(1, -1, self.decoder_width).astype(x.dtype)
        x = jnp.concatenate([prefix, x], axis=1)  # the class token's position is zero

        norm = partial(LayerNorm, backbone.norm_eps, dtype=dtype)
        attend = partial(Attention, self.decoder_heads, qkv_init=XAVIER_QKV, dtype=dtype)
        mlp = partial(Mlp, 4 * self.decoder_width, dtype=dtype)
        block = partial(backbone.block_class(), attend, mlp, norm)
        x, _ = Encoder(self.decoder_depth, block, scan=backbone.scan, name="decoder")(x)
        x = norm(name="decoder_norm")(x)[:, backbone.num_prefix :]
        outputs = backbone.patch_size**2 * images.shape[-1]
        prediction = dense(outputs, name="decoder_pred")(x)
        return prediction, {**stages, **encoder_stages, "mask": mask}


def random_mask(noise: Array, mask_ratio: float) -> tuple[Array, Array, Array]:
    """Which patches of each image are seen: int(patches * (1 - mask_ratio)) of them, at random.

    Args:
      noise: f32[batch, patches], uniform.
      mask_ratio: in (0, 1).

    Returns:
      kept i32[batch, visible], the patches with the least noise in its order; restore
      i32[batch, patches], where each patch is in "the visible ones, then the hidden ones"; mask
      bool[batch, patches], true where hidden.

    Raises:
      InputError: none or all of the patches would be hidden.
    """
    patches = noise.shape[1]
    visible = int(patches * (1 - mask_ratio))
    if not 0 < visible < patches:
        raise InputError(
            f"MAE mask_ratio {mask_ratio} leaves {visible} of {patches} patches visible: use "
            "another one, a smaller patch or a larger image"
        )
    order = jnp.argsort(noise, axis=1)
    restore = jnp.argsort(order, axis=1)
    return order[:, :visible], restore, restore >= visible


def patchify(images: Array, patch_size: int) -> Array:
    """f[batch, height, width, channels] -> f[batch, patches, patch_size^2 * channels], row-major,
    the channel fastest."""
    p = patch_size
    return rearrange(images, "b (h p) (w q) c -> b (h w) (p q c)", p=p, q=p)


def unpatchify(patches: Array, shape: tuple[int, ...], patch_size: int) -> Array:
    """The inverse of `patchify`; `shape` is that of the images."""
    p, (_, height, width, _) = patch_size, shape
    grid = dict(h=height // p, w=width // p, p=p, q=p)
    return rearrange(patches, "b (h w) (p q c) -> b (h p) (w q) c", **grid)


def reconstruction_loss(
    prediction: Array, images: Array, mask: Array, patch_size: int, norm_pix: bool = True
) -> Array:
    """The mean squared error of each image's hidden patches, f32[batch].

    Args:
      prediction: f[batch, patches, patch_size^2 * channels].
      images: f32[batch, height, width, channels], what was to be predicted.
      mask: bool[batch, patches], true where hidden; as many for each image.
      patch_size: the side of a patch in pixels.
      norm_pix: whether each patch is predicted in units of its own mean and deviation.
    """
    target = patchify(images, patch_size)
    if norm_pix:
        mean, std = _patch_statistics(target)
        target = (target - mean) / std
    error = jnp.square(prediction.astype(target.dtype) - target).mean(axis=-1)
    return (error * mask).sum(axis=1) / mask.sum(axis=1)


def reconstruct(
    prediction: Array, images: Array, mask: Array, patch_size: int, norm_pix: bool = True
) -> Array:
    """Images whose hidden patches are the predicted ones, f32[batch, height, width, channels].

    Arguments as in `reconstruction_loss`. A prediction in units of its patch is brought back to
    pixels with that patch's true mean and deviation, which no model could know.
    """
    target, pixels = patchify(images, patch_size), prediction.astype(images.dtype)
    if norm_pix:
        mean, std = _patch_statistics(target)
        pixels = pixels * std + mean
    return unpatchify(jnp.where(mask[..., None], pixels, target), images.shape, patch_size)


def _patch_statistics(patches: Array) -> tuple[Array, Array]:
    """Mean and deviation of each patch, f32[batch, patches, 1]; the variance is unbiased."""
    mean = patches.mean(axis=-1, keepdims=True)
    variance = patches.var(axis=-1, keepdims=True, ddof=1)
    return mean, jnp.sqrt(variance + 1e-6)
