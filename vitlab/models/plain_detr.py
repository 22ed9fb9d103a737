"""A detector on the one feature map of a plain ViT, for data sets of hundreds of images as well.

DETR needs hundreds of epochs; what the field has found since, and what a single map of dense
attention needs, is here, each a field that can be switched off:

- `two_stage`: the queries begin at the boxes that the feature map's own cells propose (Deformable
  DETR, 2010.04159; with learned contents as in DINO, 2203.03605);
- `refine`: each layer of the decoder moves the boxes of the one before (2010.04159), in units of
  those boxes, as box regressors always did (Plain DETR, 2308.01904);
- `box_bias`: attention to the map knows where each cell lies from the box's sides, a small MLP for
  each axis (2308.01904, section 4.1);
- `denoising`: in training, queries that begin at noisy copies of the objects and are to undo the
  noise or, if it is too much, to say that there is nothing (DN-DETR, 2203.01305; DINO);
- `query_groups`: in training, several groups of queries, each from proposals of its own and
  matched by itself (Group DETR, 2207.13085, as in LW-DETR, 2406.03459).

The IoU-aware loss, the average of the parameters and layer decay are the config's.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from vitlab.errors import InputError
from vitlab.models.detr import Boxes, BoxHead, check_sizes, feature_map
from vitlab.models.set_loss import Targets
from vitlab.models.transformer import XAVIER, Attention, Block, Dense, Encoder, LayerNorm, Mlp
from vitlab.ops.boxes import to_centres, to_corners
from vitlab.ops.dropout import dropout
from vitlab.ops.keys import row_keys, split_each
from vitlab.ops.positions import sine_embedding, sine_positions


class PlainDETR(nn.Module):
    """A detector around any backbone: `PlainDETR(ViT("S/16", pool="gap"), num_classes=80)`.

    Fields:
      backbone: its feature map of the greatest stride is used.
      num_classes: logits of a query.
      no_object: whether the last of them says that there is nothing (the softmax loss).
      num_queries: the most objects that an image can have.
      width, num_heads, mlp_dim, encoder_layers, decoder_layers: of the transformer, whose encoder
        may have no layer, as a ViT has enough.
      two_stage, refine, box_bias, denoising, query_groups: see above; `denoising` counts the noisy
        copies of each object, and as many of them again are too noisy.
      box_noise: how far a copy's sides may lie off, in halves of the box's sides.
      label_noise: how often a copy says another class.
      upsample: doubles the rows and columns of the map, by a transposed convolution.
      dropout: of each branch and inside the MLPs.
      class_bias: initial bias of the class logits, -log 99 for the sigmoid losses.
      axis_name: of `pmap`.
      dtype: of the computation; parameters, logits and boxes are float32.

    Raises:
      InputError: a field that is out of range.
    """

    backbone: nn.Module
    num_classes: int = 80
    no_object: bool = False
    num_queries: int = 300
    width: int = 256
    num_heads: int = 8
    mlp_dim: int = 1024
    encoder_layers: int = 1
    decoder_layers: int = 3
    two_stage: bool = True
    refine: bool = True
    box_bias: bool = True
    denoising: int = 3
    query_groups: int = 1
    box_noise: float = 1.0
    label_noise: float = 0.25
    upsample: bool = False
    dropout: float = 0.0
    class_bias: float = 0.0
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def __post_init__(self):
        check_sizes(self)
        if self.denoising < 0 or self.query_groups < 1:
            raise InputError(
                f"PlainDETR denoising is {self.denoising} and query_groups {self.query_groups}: "
                "they must be at least 0 and 1"
            )
        if self.box_noise < 0 or not 0 <= self.label_noise <= 1:
            raise InputError(
                f"PlainDETR box_noise is {self.box_noise} and label_noise {self.label_noise}: they "
                "must be at least 0, and in [0, 1]"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        images: Array,
        content: Array | None = None,
        noisy: Targets | None = None,
        train: bool = False,
    ) -> tuple[Boxes, dict[str, Any]]:
        """Detects.

        Args:
          images: f[batch, height, width, channels] of any size; padding should be zero.
          content: i32[batch, 2], height and width in pixels of what is no padding; None: all.
          noisy: in training with `denoising`, the `noisy_copies` of each image's objects.
          train: whether all groups of queries, noisy copies and dropout are there, which needs
            `rngs={"dropout": key}`, and the backbone trains.

        Returns:
          The `Boxes` of the last layer; and the stages: "feature_map" and "memory" f[batch, rows,
          columns, channels], "queries" f[batch, queries, width]; with `two_stage` "proposals", the
          `Boxes` of each cell of the map f32[batch, groups, cells, ...], and which cells are no
          padding, "proposal_mask" bool[batch, cells]; "layers", those of each layer of the decoder
          f32[batch, layers, groups, queries, ...]; in training with `denoising` "denoised", those
          of the copies f32[batch, layers, copies, 2 targets, ...], the second half too noisy.
        """
        dtype = self.dtype
        norm = partial(LayerNorm, 1e-6, dtype=dtype)
        attend = partial(Attention, self.num_heads, dtype=dtype)
        mlp = partial(Mlp, self.mlp_dim, dropout=self.dropout, dtype=dtype)
        heads = partial(Heads, self.num_classes, self.width, self.class_bias)
        groups = self.query_groups if train else 1
        copies = 0 if noisy is None else self.denoising
        keys = [None] * 2
        if train and self.dropout:
            keys = row_keys(self.make_rng("dropout"), len(images), self.axis_name)
            keys = split_each(keys, 2)

        features, mask = feature_map(self.backbone, images, content, train, True)
        if self.upsample:
            up = nn.ConvTranspose(self.width, (2, 2), (2, 2), dtype=dtype, name="upsample")
            features, mask = up(features), mask.repeat(2, axis=1).repeat(2, axis=2)
        x = Dense(self.width, dtype=dtype, name="input_projection")(features)
        memory = rearrange(norm(name="input_norm")(x), "b h w c -> b (h w) c")
        positions = rearrange(sine_positions(mask, self.width), "b h w c -> b (h w) c")
        positions, cells_mask = positions.astype(dtype), rearrange(mask, "b h w -> b (h w)")
        if self.encoder_layers:
            block = partial(Block, attend, mlp, norm, dropout=self.dropout)
            encoder = Encoder(self.encoder_layers, block, name="encoder")
            memory = encoder(memory + positions, mask=cells_mask, keys=keys[0])[0]
            memory = norm(name="encoder_norm")(memory)
        stages = {"feature_map": features, "memory": memory.reshape(*features.shape[:3], -1)}

        content = images.shape[1:3] if content is None else content
        stride = self.backbone.strides[-1] / (2 if self.upsample else 1)
        places = cell_places(stride, content, *mask.shape)
        shape = (self.query_groups, self.num_queries)
        if self.two_stage:
            anchors = jnp.concatenate([places.centres, 3 * places.cells], axis=-1)
            x = norm(name="proposal_norm")(memory)
            each = self.query_groups if self.is_initializing() else groups
            proposals = [heads(name=f"proposal_heads_{g}")(x, anchors) for g in range(each)]
            proposals = jax.tree.map(lambda *groups: jnp.stack(groups, axis=1), *proposals)
            stages |= {"proposals": proposals, "proposal_mask": cells_mask}
            logits = proposals.logits[..., :-1] if self.no_object else proposals.logits
            likely = proposals._replace(logits=logits)
            boxes = surest(likely, cells_mask, self.num_queries)[:, :groups]
        else:
            learned = nn.sigmoid(self.param("query_boxes", uniform_boxes, shape))[:groups]
            boxes = jnp.broadcast_to(learned, (memory.shape[0], *learned.shape))
        boxes = boxes.reshape(memory.shape[0], -1, 4)
        queries = self.param("queries", nn.initializers.normal(1.0), (*shape, self.width))
        queries = queries[:groups].reshape(1, -1, self.width).astype(dtype)
        queries = jnp.broadcast_to(queries, (memory.shape[0], *queries.shape[1:]))
        group = jnp.repeat(jnp.arange(groups), self.num_queries)
        there = jnp.ones(queries.shape[:2], bool)
        if self.denoising:
            embed = nn.Embed(self.num_classes, self.width, dtype=dtype, name="label_embedding")
            embed(jnp.zeros((1,), jnp.int32))  # is there too in a call without copies
        if copies:
            boxes = jnp.concatenate([boxes, noisy.boxes], axis=1)
            queries = jnp.concatenate([queries, embed(noisy.labels)], axis=1)
            own = groups + jnp.repeat(jnp.arange(copies), noisy.labels.shape[1] // copies)
            group = jnp.concatenate([group, own])
            there = jnp.concatenate([there, noisy.mask], axis=1)
        # A query sees its own group alone, and no copy of an object that is not there.
        together = (group[:, None] == group)[None, None] & there[:, None, None]

        layer = partial(DecoderLayer, attend, mlp, norm, self.dropout)
        bias = partial(BoxBias, self.num_heads, self.width, dtype) if self.box_bias else None
        decoder = Decoder(
            self.decoder_layers, layer, bias, norm, heads, self.refine, name="decoder"
        )
        queries, found = decoder(
            queries, boxes, together, memory, positions, cells_mask, places, keys[1]
        )
        matched = groups * self.num_queries
        stages["queries"] = queries[:, : self.num_queries]
        stages["layers"] = in_groups(groups, found, slice(matched))
        if copies:
            stages["denoised"] = in_groups(copies, found, slice(matched, None))
        return jax.tree.map(lambda x: x[:, -1, 0], stages["layers"]), stages

    @nn.nowrap
    def noisy_copies(self, key: Array, targets: Targets) -> Targets:
        """Of one image's targets [t, ...] their noisy copies [denoising * 2 * t, ...]: in each copy
        first those to be mended, then those that lie too far off (DINO, section 3.3)."""
        shape = (self.denoising, 2, len(targets.labels))
        size, sign, flip, other = jax.random.split(key, 4)
        labels = jnp.where(
            jax.random.bernoulli(flip, self.label_noise, shape),
            jax.random.randint(other, shape, 0, self.num_classes - self.no_object),
            targets.labels,
        )
        far = jnp.arange(2).reshape(1, 2, 1, 1)  # off by 0 to 1, and by 1 to 2, halves of a side
        off = (jax.random.uniform(size, (*shape, 4)) + far) * jax.random.rademacher(
            sign, (*shape, 4), targets.boxes.dtype
        )
        half = jnp.tile(targets.boxes[:, 2:] / 2, 2)
        corners = jnp.clip(to_corners(targets.boxes) + self.box_noise * off * half, 0, 1)
        low, high = jnp.minimum(corners[..., :2], corners[..., 2:]), corners[..., 2:]
        boxes = to_centres(jnp.concatenate([low, jnp.maximum(high, low + 1e-3)], axis=-1))
        mask = jnp.broadcast_to(targets.mask, shape)
        return Targets(boxes.reshape(-1, 4), labels.reshape(-1), mask.reshape(-1))


class Places(NamedTuple):
    """Where the cells of a map lie, as fractions of the image: `rows` f32[batch, rows] and
    `columns` f32[batch, columns] of their centres; `centres` f32[batch, cells, 2] as (x, y), and
    `cells` of the same shape, the size of each."""

    rows: Array
    columns: Array
    centres: Array
    cells: Array


def cell_places(
    stride: float, content: Array | tuple[int, ...], batch: int, rows: int, columns: int
) -> Places:
    """Places of a grid with a cell for `stride` pixels, over images of which `content`, i[2] or
    i[batch, 2], is the height and width; the last cells may reach beyond."""
    content = jnp.broadcast_to(jnp.asarray(content, jnp.float32), (batch, 2))
    cell = stride / content[:, None]
    rows, columns = (
        (jnp.arange(number) + 0.5) * cell[..., i] for i, number in enumerate((rows, columns))
    )
    shape = (batch, rows.shape[1], columns.shape[1])
    centres = jnp.stack(
        [jnp.broadcast_to(columns[:, None], shape), jnp.broadcast_to(rows[:, :, None], shape)], -1
    ).reshape(batch, -1, 2)
    return Places(rows, columns, centres, jnp.broadcast_to(cell[..., ::-1], centres.shape))


class Heads(nn.Module):
    """What a query, or a cell of the map, says: its class, and how its box should move."""

    num_classes: int
    width: int
    class_bias: float

    @nn.compact
    def __call__(self, x: Array, boxes: Array) -> Boxes:
        """x: f[..., width]; boxes: f32[..., 4] -> `Boxes` in float32."""
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        bias = nn.initializers.constant(self.class_bias)
        dense = partial(Dense, kernel_init=XAVIER, bias_init=bias, dtype=x.dtype)
        by = BoxHead(self.width, nn.initializers.zeros, x.dtype, name="box")(x)
        return Boxes(dense(self.num_classes, name="class")(x), moved(boxes, by))


class Decoder(nn.Module):
    """Layers that turn queries into boxes, all with the same heads (LW-DETR, 2406.03459)."""

    depth: int
    make_layer: Callable
    make_bias: Callable | None
    make_norm: Callable
    make_heads: Callable
    refine: bool

    @nn.compact
    def __call__(self, x, boxes, together, memory, positions, cells_mask, places, keys):
        """x: f[batch, queries, width], which begin at boxes f32[batch, queries, 4]; the rest as in
        `DecoderLayer` -> the last x, and `Boxes` f32[batch, depth, queries, ...]."""
        width, found = x.shape[-1], []
        keys = [None] * self.depth if keys is None else split_each(keys, self.depth)
        norm, heads = self.make_norm(name="norm"), self.make_heads(name="heads")
        place = [Dense(width, dtype=x.dtype, name=f"position_{i}") for i in range(2)]
        for i in range(self.depth):
            sines = sine_embedding(boxes, width // 2).astype(x.dtype)
            at, nearness = place[1](nn.relu(place[0](sines))), None
            if self.make_bias:
                nearness = self.make_bias(name=f"box_bias_{i}")(boxes, places)
            layer = self.make_layer(name=f"layer_{i}")
            x = layer(x, at, together, memory, positions, cells_mask, nearness, keys[i])
            found.append(heads(norm(x), boxes))
            if self.refine:
                boxes = jax.lax.stop_gradient(found[-1].boxes)
        return x, jax.tree.map(lambda *layers: jnp.stack(layers, axis=1), *found)


class DecoderLayer(nn.Module):
    """A pre-norm layer: queries attend to their group, then to the map, then think (MLP)."""

    make_attention: Callable
    make_mlp: Callable
    make_norm: Callable
    dropout: float

    @nn.compact
    def __call__(self, x, at, together, memory, positions, memory_mask, nearness, keys):
        """x: f[batch, queries, width] -> the same; at: their positions; together: bool[batch, 1,
        queries, queries]; memory, positions: f[batch, cells, width]; memory_mask: bool[batch,
        cells]; nearness: of `BoxBias` or None; keys: key[batch] or None."""
        keys = [None] * 4 if keys is None else split_each(keys, 4)
        y = self.make_norm(name="norm1")(x)
        attend = self.make_attention(name="attention")
        x = x + dropout(attend(y + at, y + at, value=y, mask=together), self.dropout, keys[0])
        y = self.make_norm(name="norm_cross")(x)
        attend = self.make_attention(name="cross_attention")
        y = attend(y + at, memory + positions, value=memory, mask=memory_mask, bias=nearness)
        x = x + dropout(y, self.dropout, keys[1])
        y = self.make_mlp(name="mlp")(self.make_norm(name="norm2")(x), keys[2])
        return x + dropout(y, self.dropout, keys[3])


class BoxBias(nn.Module):
    """What attention adds for where a cell lies from a box's sides: a term for its row and one for
    its column, each from an MLP of the two distances."""

    num_heads: int
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, boxes: Array, places: Places) -> tuple[Array, Array]:
        """boxes: f32[batch, queries, 4] -> f[batch, heads, queries, rows], and of columns."""
        low, high = jnp.split(to_corners(boxes), 2, axis=-1)

        def axis(name, i, cells):
            sides = jnp.stack([low[..., i], high[..., i]], axis=-1)
            away = cells[:, None, :, None] - sides[:, :, None]
            away = jnp.sign(away) * jnp.log2(jnp.abs(8 * away) + 1) / 3  # fine nearby, coarse afar
            x = nn.relu(OfFew(self.width, dtype=self.dtype, name=f"{name}_in")(away))
            x = Dense(self.num_heads, use_bias=False, dtype=self.dtype, name=f"{name}_out")(x)
            return rearrange(x, "b q c h -> b h q c")

        across, down = axis("x", 0, places.columns), axis("y", 1, places.rows)
        return down, across


class OfFew(nn.Dense):
    """`nn.Dense` of two or three inputs, with the same parameters, as a sum of products: XLA on a
    GPU computes that where it is needed, but writes arrays of this size for a matrix product."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x: f32[..., inputs] -> f[..., features] of `dtype`."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        total = sum(x[..., i, None] * kernel[i] for i in range(x.shape[-1]))
        return (total + bias).astype(self.dtype)


def surest(proposals: Boxes, mask: Array, count: int) -> Array:
    """The boxes f32[batch, groups, count, 4] of the cells that are most certain of a class, the
    surest first, without a gradient. mask: bool[batch, cells], of those that may be chosen."""
    cells = mask.shape[1]
    if count > cells:
        raise InputError(
            f"PlainDETR num_queries is {count} but the feature map has only {cells} cells to "
            "propose boxes: use fewer, a larger image or upsample"
        )
    certain = jnp.where(mask[:, None], proposals.logits.max(axis=-1), -jnp.inf)
    best = jax.lax.top_k(certain, count)[1]
    return jax.lax.stop_gradient(jnp.take_along_axis(proposals.boxes, best[..., None], axis=2))


def in_groups(groups: int, found: Boxes, some: slice) -> Boxes:
    """Some of the queries f32[batch, layers, queries, ...] as f32[batch, layers, groups, ...]."""

    def regroup(x):
        return rearrange(x[:, :, some], "b l (g q) c -> b l g q c", g=groups)

    return jax.tree.map(regroup, found)


def moved(boxes: Array, by: Array) -> Array:
    """Boxes f32[..., 4] moved and stretched in units of their own sides, f32[..., 4]."""
    centre, size = jnp.split(boxes, 2, axis=-1)
    shift, stretch = jnp.split(by, 2, axis=-1)
    # The bound is Faster R-CNN's: it keeps a wild prediction from becoming infinite.
    size_now = size * jnp.exp(jnp.clip(stretch, -4.135, 4.135))
    return jnp.concatenate([centre + shift * size, size_now], axis=-1)


def uniform_boxes(key: Array, shape: tuple[int, int]) -> Array:
    """Logits f32[*shape, 4] of boxes whose centres are anywhere and whose sides are a quarter."""
    centres = jax.random.uniform(key, (*shape, 2), minval=0.05, maxval=0.95)
    boxes = jnp.concatenate([centres, jnp.full((*shape, 2), 0.25)], axis=-1)
    return jnp.log(boxes) - jnp.log1p(-boxes)
