"""Segmenter (Strudel et al., "Segmenter: Transformer for Semantic Segmentation", 2105.05633).

A backbone's feature map becomes a map of class logits, one vector a cell, by a linear layer or by
the mask transformer: learned class embeddings join the cells' features in two transformer blocks,
and the logit of a class at a cell is the product of the two embeddings, both of length one, under a
norm over the classes. The order of the layers is that of github.com/rstrudel/segmenter.
"""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from vitlab.errors import InputError
from vitlab.models.detr import feature_map
from vitlab.models.transformer import Attention, Block, Dense, Encoder, LayerNorm, Mlp
from vitlab.ops.keys import row_keys
from vitlab.ops.windows import pad_to_multiple, sliding_window


class Segmenter(nn.Module):
    """A segmenter around any backbone: `Segmenter(ViT("S/16", pool="gap"), num_classes=150)`.

    Fields:
      backbone: its feature map of the greatest stride is used.
      num_classes: logits of a cell.
      decoder: "mask", the mask transformer, or "linear".
      depth, num_heads, mlp_dim, width: of the mask transformer; None: the backbone's channels as
        the width, four times that inside the MLPs, and a head for 64 channels, as published.
      dropout, drop_path: of the mask transformer.
      window: side in pixels of the pieces that `predict` sees a larger image in; None: whole.
      window_stride: pixels from one piece to the next; None: the window, without overlap.
      axis_name: of `pmap`.
      dtype: of the computation; parameters and logits are float32.

    Raises:
      InputError: a field that is out of range.
    """

    backbone: nn.Module
    num_classes: int
    decoder: Literal["mask", "linear"] = "mask"
    depth: int = 2
    width: int | None = None
    num_heads: int | None = None
    mlp_dim: int | None = None
    dropout: float = 0.1
    drop_path: float = 0.0
    window: int | None = None
    window_stride: int | None = None
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def __post_init__(self):
        if self.decoder not in ("mask", "linear"):
            raise InputError(f"Segmenter decoder is {self.decoder!r}: it must be mask or linear")
        if self.depth < 1 or not 0 <= self.dropout < 1 or not 0 <= self.drop_path < 1:
            raise InputError(
                f"Segmenter depth is {self.depth}, dropout {self.dropout} and drop_path "
                f"{self.drop_path}: depth must be at least 1, the others in [0, 1)"
            )
        check_windows(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Array, content: Array | None = None, train: bool = False
    ) -> tuple[Array, dict[str, Array]]:
        """Segments.

        Args:
          images: f[batch, height, width, channels] of any size; padding should be zero.
          content: i32[batch, 2], height and width in pixels of what is no padding; None: all.
          train: whether dropout acts, which needs `rngs={"dropout": key}`, and the backbone trains.

        Returns:
          The logits f32[batch, rows, columns, num_classes], a cell for each `stride` pixels, the
          last ones reaching beyond the image where the stride does not divide it; and the stages
          "feature_map" f[batch, rows, columns, channels], with the mask transformer "cells" and
          "classes" f[batch, tokens, width], and "logits".
        """
        images, content = pad_to_multiple(images, content, self.stride)
        features, mask = feature_map(self.backbone, images, content, train, True)
        grid, stages = features.shape[1:3], {"feature_map": features}
        float32 = jnp.promote_types(self.dtype, jnp.float32)
        if self.decoder == "linear":
            logits = Dense(self.num_classes, dtype=float32, name="head")(features.astype(float32))
            return logits, stages | {"logits": logits}

        width = self.width or features.shape[-1]
        heads = self.num_heads or max(1, width // 64)
        if width % heads:
            raise InputError(f"Segmenter width {width} is no multiple of its {heads} num_heads")
        norm = partial(LayerNorm, 1e-5)
        attend = partial(Attention, heads, dtype=self.dtype)
        mlp = partial(Mlp, self.mlp_dim or 4 * width, dropout=self.dropout, dtype=self.dtype)
        make_norm = partial(norm, dtype=self.dtype)
        block = partial(Block, attend, mlp, make_norm, dropout=self.dropout)

        x = Dense(width, dtype=self.dtype, name="input_projection")(features)
        x = rearrange(x, "b h w c -> b (h w) c")
        init = nn.initializers.truncated_normal(0.02)
        classes = self.param("class_embedding", init, (1, self.num_classes, width))
        classes = jnp.broadcast_to(classes, (x.shape[0], *classes.shape[1:])).astype(x.dtype)
        x = jnp.concatenate([x, classes], axis=1)
        if content is not None:
            mask = rearrange(mask, "b h w -> b (h w)")
            mask = jnp.pad(mask, [(0, 0), (0, self.num_classes)], constant_values=True)
        random = train and (self.dropout or self.drop_path)
        keys = row_keys(self.make_rng("dropout"), len(x), self.axis_name) if random else None
        x, _ = Encoder(self.depth, block, self.drop_path, name="decoder_blocks")(
            x, mask=None if content is None else mask, keys=keys
        )
        x = norm(dtype=self.dtype, name="decoder_norm")(x)

        # Without bias and with kernels of the published scale.
        project = partial(Dense, width, use_bias=False, dtype=float32)
        project = partial(project, kernel_init=nn.initializers.normal(width**-0.5))
        x = x.astype(float32)
        cells = project(name="cell_projection")(x[:, : -self.num_classes])
        classes = project(name="class_projection")(x[:, -self.num_classes :])
        cells, classes = (y / jnp.linalg.norm(y, axis=-1, keepdims=True) for y in (cells, classes))
        logits = norm(dtype=float32, name="mask_norm")(cells @ classes.swapaxes(1, 2))
        logits = logits.reshape(x.shape[0], *grid, self.num_classes)
        return logits, stages | {"cells": cells, "classes": classes, "logits": logits}

    def predict(self, images: Array, content: Array | None = None) -> Array:
        """The logits of images as large as any: of the pieces of `window` pixels that cover them,
        averaged where they overlap. Arguments and result as of a call."""
        return sliding_window(self, images, content, self.window, self.window_stride, self.stride)

    @property
    def stride(self) -> int:
        """Pixels from one cell of the logits to the next."""
        return self.backbone.strides[-1]


def check_windows(model: nn.Module) -> None:
    """That `window` and `window_stride` are as `sliding_window` wants them.

    Raises:
      InputError: they are not.
    """
    name, window, step = type(model).__name__, model.window, model.window_stride
    if window is None and step is None:
        return
    apart = window if step is None else step
    if not window or window % model.stride or apart % model.stride:
        raise InputError(
            f"{name} window is {window} and window_stride {step}: both must be multiples of the "
            f"logits' stride, {model.stride}"
        )
    if not 0 < apart <= window:
        raise InputError(
            f"{name} window_stride is {step}: it must be from 1 to the window, {window}"
        )
