"""DETR (Carion et al., "End-to-End Object Detection with Transformers", 2005.12872).

A backbone's last feature map goes through a transformer encoder; a decoder turns a fixed number of
learned queries into as many boxes, each of a class or of none. No anchors, no suppression: the loss
(`models/set_loss.py`) matches boxes and objects one to one. Numbers, initial kernels and the order
of the layers are those of github.com/facebookresearch/detr; biases begin at zero or next to it.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from vitlab.errors import InputError
from vitlab.models.transformer import TORCH, XAVIER_QKV, Attention, Dense, LayerNorm, Mlp
from vitlab.ops.dropout import dropout
from vitlab.ops.keys import row_keys, split_each
from vitlab.ops.padding import content_mask
from vitlab.ops.positions import sine_positions
from vitlab.ops.windows import pad_to_multiple


class Boxes(NamedTuple):
    """What queries predict.

    Attributes:
        logits: f32[..., queries, classes].
        boxes: f32[..., queries, 4]: centre x, centre y, width, height as fractions of the image,
            padding left out.
    """

    logits: Array
    boxes: Array


class DETR(nn.Module):
    """A detector around any backbone: `DETR(ResNet("50", norm="frozen"), num_classes=92)`.

    Fields:
      backbone: its feature map of the greatest stride is used.
      num_classes: logits of a query; the loss may want one more than there are classes.
      num_queries: the most objects that an image can have.
      width, num_heads, mlp_dim, encoder_layers, decoder_layers: of the transformer.
      dropout: of each branch and inside the MLPs. The paper's code also drops attention weights.
      mask_backbone: keep padding out of the backbone too, so that nothing depends on it. The
        published ResNet saw it, as zeros.
      class_bias: initial bias of the class logits.
      axis_name: of `pmap`.
      dtype: of the computation; parameters, logits and boxes are float32.

    Raises:
      InputError: a field that is out of range.
    """

    backbone: nn.Module
    num_classes: int = 92
    num_queries: int = 100
    width: int = 256
    num_heads: int = 8
    mlp_dim: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    dropout: float = 0.1
    mask_backbone: bool = True
    class_bias: float = 0.0
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def __post_init__(self):
        check_sizes(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        images: Array,
        content: Array | None = None,
        noisy: Any = None,
        train: bool = False,
    ) -> tuple[Boxes, dict[str, Array]]:
        """Detects.

        Args:
          images: f[batch, height, width, channels] of any size; padding should be zero.
          content: i32[batch, 2], height and width in pixels of what is no padding; None: all.
          noisy: of no use here; a `PlainDETR` learns from noisy copies of the objects.
          train: whether dropout acts, which needs `rngs={"dropout": key}`, and the backbone trains.

        Returns:
          The `Boxes` of the last layer; and the stages: "feature_map" and "memory" f[batch, rows,
          columns, channels], "queries" f[batch, queries, width], and "layers", the `Boxes` of each
          layer of the decoder, stacked to f32[batch, layers, queries, ...].
        """
        del noisy
        dtype, dense = self.dtype, partial(Dense, kernel_init=TORCH)
        features, mask = feature_map(self.backbone, images, content, train, self.mask_backbone)
        positions = rearrange(sine_positions(mask, self.width), "b h w c -> b (h w) c")
        positions, keys_mask = positions.astype(dtype), rearrange(mask, "b h w -> b (h w)")
        x = Dense(self.width, kernel_init=TORCH, dtype=dtype, name="input_projection")(features)
        memory = rearrange(x, "b h w c -> b (h w) c")

        attend = partial(Attention, self.num_heads, qkv_init=XAVIER_QKV, dtype=dtype)
        mlp = partial(Mlp, self.mlp_dim, "relu", self.dropout, dtype=dtype)
        norm = partial(LayerNorm, 1e-5, dtype=dtype)
        layer = partial(Layer, attend, mlp, norm, self.dropout)
        random = train and self.dropout
        keys = row_keys(self.make_rng("dropout"), len(x), self.axis_name) if random else None
        depth = self.encoder_layers + self.decoder_layers
        keys = [None] * depth if keys is None else split_each(keys, depth)
        for i in range(self.encoder_layers):
            memory = layer(name=f"encoder_{i}")(memory, positions, keys_mask, keys=keys[i])

        shape = (self.num_queries, self.width)
        query_positions = self.param("query_positions", nn.initializers.normal(1.0), shape)
        query_positions = jnp.broadcast_to(query_positions, (x.shape[0], *shape)).astype(dtype)
        queries, outputs = jnp.zeros_like(query_positions), []
        decoder_norm = norm(name="decoder_norm")
        for i in range(self.decoder_layers):
            queries = layer(name=f"decoder_{i}")(
                queries,
                query_positions,
                memory=memory,
                memory_positions=positions,
                memory_mask=keys_mask,
                keys=keys[self.encoder_layers + i],
            )
            outputs.append(decoder_norm(queries))
        x = jnp.stack(outputs, axis=1).astype(jnp.promote_types(dtype, jnp.float32))
        bias = nn.initializers.constant(self.class_bias)
        logits = dense(self.num_classes, bias_init=bias, dtype=x.dtype, name="class_head")(x)
        layers = Boxes(logits, nn.sigmoid(BoxHead(self.width, dtype=x.dtype, name="box_head")(x)))
        stages = {
            "feature_map": features,
            "memory": memory.reshape(*features.shape[:3], -1),
            "queries": queries,
            "layers": layers,
        }
        return Boxes(layers.logits[:, -1], layers.boxes[:, -1]), stages


class Layer(nn.Module):
    """A post-norm layer of the encoder, or with a memory of the decoder. Positions are added to
    queries and keys, never to values."""

    make_attention: Callable
    make_mlp: Callable
    make_norm: Callable
    dropout: float

    @nn.compact
    def __call__(
        self,
        x,
        positions,
        mask=None,
        memory=None,
        memory_positions=None,
        memory_mask=None,
        keys=None,
    ):
        """x: f[batch, tokens, width] -> the same; memory: f[batch, keys, width]; positions of both;
        masks: bool[batch, tokens or keys], what is attended to; keys: key[batch] of the dropout."""
        keys = [None] * 4 if keys is None else split_each(keys, 4)

        def add(x, y, name, key):
            return self.make_norm(name=name)(x + dropout(y, self.dropout, key))

        at = x + positions
        y = self.make_attention(name="attention")(at, at, value=x, mask=mask)
        x = add(x, y, "norm1", keys[0])
        if memory is not None:
            y = self.make_attention(name="cross_attention")(
                x + positions, memory + memory_positions, value=memory, mask=memory_mask
            )
            x = add(x, y, "norm_cross", keys[1])
        return add(x, self.make_mlp(name="mlp")(x, keys[2]), "norm2", keys[3])


class BoxHead(nn.Module):
    """Three layers that turn a query f32[..., width] into four numbers f32[..., 4]."""

    width: int
    last_init: Callable = TORCH
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        for i in range(2):
            x = Dense(self.width, kernel_init=TORCH, dtype=self.dtype, name=f"layer_{i}")(x)
            x = nn.relu(x)
        return Dense(4, kernel_init=self.last_init, dtype=self.dtype, name="layer_2")(x)


def feature_map(
    backbone: nn.Module, images: Array, content: Array | None, train: bool, mask_backbone: bool
) -> tuple[Array, Array]:
    """The backbone's map of the greatest stride, f[batch, rows, columns, channels], and which of
    its cells hold some of the image, bool[batch, rows, columns]."""
    if mask_backbone and _keeps_padding_out(backbone):
        images, content = pad_to_multiple(images, content, backbone.strides[-1])
    maps = feature_maps(backbone, images, content if mask_backbone else None, train)
    stride = max(maps)
    features = maps[stride]
    if content is None:
        return features, jnp.ones(features.shape[:3], bool)
    return features, content_mask(content, features.shape[1:3], stride)


def feature_maps(
    backbone: nn.Module, images: Array, content: Array | None, train: bool
) -> dict[int, Array]:
    """The backbone's maps by their strides, f[batch, rows, columns, channels].

    Raises:
      InputError: there is padding, and the backbone cannot keep it out of its maps.
    """
    if content is None:
        return backbone.feature_maps(images, train)
    if not _keeps_padding_out(backbone):
        raise InputError(
            f"a {type(backbone).__name__} cannot keep padding out of its feature maps: use a "
            f"ResNet or a ViT, or images of one size whose sides {backbone.strides[-1]} divides"
        )
    return backbone.feature_maps(images, train, content=content)


def _keeps_padding_out(backbone: nn.Module) -> bool:
    return "content" in inspect.signature(backbone.feature_maps).parameters


def check_sizes(model: nn.Module) -> None:
    """That the fields which detectors share are in range; an InputError says which is not."""
    name = type(model).__name__
    for field in ("num_classes", "num_queries", "width", "num_heads", "mlp_dim", "decoder_layers"):
        if getattr(model, field) < 1:
            raise InputError(f"{name} {field} is {getattr(model, field)}: it must be at least 1")
    if model.encoder_layers < 0:
        raise InputError(f"{name} encoder_layers is {model.encoder_layers}: it cannot be negative")
    if model.width % model.num_heads or model.width % 4:
        raise InputError(
            f"{name} width {model.width} is no multiple of its {model.num_heads} heads and of 4"
        )
    if not 0 <= model.dropout < 1:
        raise InputError(f"{name} dropout is {model.dropout}: it must be in [0, 1)")
