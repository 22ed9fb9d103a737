"""EoMT (Kerssies et al., "Your ViT is Secretly an Image Segmentation Model", 2503.19108).

Learned queries join the tokens of a plain ViT for its last blocks. Each then says of which class it
is, or of none, and the product of its embedding with the upscaled patches is its mask. One head for
semantic, instance and panoptic segmentation. In training a query first attends, in those blocks, to
the patches of its own mask alone, as predicted before the block; how often it does falls to never
over the run, one block after the other, so that nothing of it is left when the model is used.
Numbers, the order of the layers and the initial kernels of the head are those of
github.com/tue-mps/eomt.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from vitlab.errors import InputError
from vitlab.models.transformer import TORCH, Dense, LayerNorm
from vitlab.models.vit import ViT
from vitlab.ops.activations import gelu
from vitlab.ops.convolution import depthwise, doubled
from vitlab.ops.keys import row_keys, split_each
from vitlab.ops.padding import content_mask
from vitlab.ops.windows import pad_to_multiple


class Masks(NamedTuple):
    """What queries predict.

    Attributes:
        logits: f32[..., queries, classes + 1], the last for no object.
        masks: f32[..., queries, rows, columns], logits of each cell.
    """

    logits: Array
    masks: Array


class EoMT(nn.Module):
    """A segmenter within a ViT: `EoMT(ViT("S/16", pool="gap"), num_classes=133)`.

    Fields:
      backbone: a ViT, whose class token and registers stay.
      num_classes: without "no object".
      num_queries: the most segments that an image can have.
      num_blocks: how many of the ViT's last blocks the queries pass through.
      masked_attention: whether they attend to their own masks in training, and are learned from
        after each of those blocks; without it, after the last alone.
      axis_name: of `pmap`.
      dtype: of the computation; parameters and outputs are float32.

    Raises:
      InputError: a field that is out of range, or a backbone that is no ViT.
    """

    backbone: nn.Module
    num_classes: int
    num_queries: int = 100
    num_blocks: int = 4
    masked_attention: bool = True
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def __post_init__(self):
        if not isinstance(self.backbone, ViT):
            raise InputError(
                f"EoMT backbone is a {type(self.backbone).__name__}: its queries join the blocks "
                "of a plain ViT (name='vit')"
            )
        if self.backbone.patch_dropout:
            raise InputError("EoMT has no patch_dropout: every patch has a mask to be part of")
        if self.num_queries < 1:
            raise InputError(f"EoMT num_queries is {self.num_queries}: it must be at least 1")
        if not 1 <= self.num_blocks <= self.backbone.depth:
            raise InputError(
                f"EoMT num_blocks is {self.num_blocks}: it must be from 1 to the ViT's depth, "
                f"{self.backbone.depth}"
            )
        patch = self.backbone.patch_size
        if patch % 2 ** enlargements(patch):
            raise InputError(
                f"EoMT backbone has patch_size {patch}, which is no multiple of "
                f"{2 ** enlargements(patch)}, the cells of a mask along a patch"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        images: Array,
        content: Array | None = None,
        masked: Array | None = None,
        train: bool = False,
    ) -> tuple[Masks, dict[str, Any]]:
        """Segments.

        Args:
          images: f[batch, height, width, channels] of any size; padding should be zero.
          content: i32[batch, 2], height and width in pixels of what is no padding; None: all.
          masked: in training with `masked_attention`, f32[batch, num_blocks], how probable it is
            that a query attends to its own mask alone: see `masking`.
          train: whether queries may be held to their masks and dropout acts, which needs
            `rngs={"dropout": key}`, and predictions are made before each of the joint blocks.

        Returns:
          The `Masks` after the last block, a cell for each `stride` pixels; and the stages:
          "feature_map" f[batch, rows, columns, width] of the patches after the last block,
          "queries" f[batch, queries, width], and "layers", the `Masks` before each joint block
          (in training with `masked_attention`) and after the last, f32[batch, layers, ...].
        """
        vit, number = self.backbone, self.num_queries
        images, content = pad_to_multiple(images, content, vit.patch_size)
        tokens, rope, _ = vit.embed(images, content)
        grid = [side // vit.patch_size for side in images.shape[1:3]]
        seen = None
        if content is not None:
            seen = content_mask(content, grid, vit.patch_size).reshape(tokens.shape[:2])
        x, rope, seen = vit.with_prefix(vit.prefix, tokens, rope, seen)
        first = vit.depth - self.num_blocks
        holding = train and self.masked_attention
        keys = hold_keys = None
        if train and (vit.dropout or vit.drop_path):
            keys = vit.row_keys(x)
        if holding and masked is not None:
            hold_keys = row_keys(self.make_rng("dropout"), len(x), self.axis_name)
            hold_keys = split_each(hold_keys, self.num_blocks)
        if vit.pre_norm:
            x = vit.norm_pre(x)
        x, _ = vit.encoder(x, rope, seen, keys, stop=first)

        queries = self.param("queries", nn.initializers.normal(1.0), (1, number, x.shape[-1]))
        x, rope, seen = vit.with_prefix([queries], x, rope, seen)
        predict = Predict(self.num_classes, vit.patch_size, self.dtype, name="predict")

        def predicted(x):
            y = vit.norm(x)
            patches = y[:, number + vit.num_prefix :].reshape(y.shape[0], *grid, -1)
            return predict(y[:, :number], patches, content), y

        found = []
        for i in range(self.num_blocks):
            mask = seen
            if holding:
                found.append(predicted(x)[0])
                if hold_keys is not None:
                    mask = own_masks(found[-1].masks, grid, vit.num_prefix)
                    free = jax.vmap(partial(jax.random.uniform, shape=(number,)))(hold_keys[i])
                    free = jnp.pad(
                        free >= masked[:, i : i + 1],
                        [(0, 0), (0, x.shape[1] - number)],
                        constant_values=True,
                    )
                    mask = mask | free[:, :, None]
                    mask = (mask if seen is None else mask & seen[:, None])[:, None]
            x, _ = vit.encoder(x, rope, mask, keys, first + i, first + i + 1)
        last, y = predicted(x)
        layers = jax.tree.map(lambda *each: jnp.stack(each, axis=1), *found, last)
        stages = {
            "feature_map": y[:, number + vit.num_prefix :].reshape(y.shape[0], *grid, -1),
            "queries": y[:, :number],
            "layers": layers,
        }
        return last, stages

    @property
    def stride(self) -> int:
        """Pixels from one cell of the masks to the next."""
        return self.backbone.patch_size // 2 ** enlargements(self.backbone.patch_size)


class Predict(nn.Module):
    """Classes and masks from queries and patches; the same layers wherever it is called."""

    num_classes: int
    patch_size: int
    dtype: Any

    @nn.compact
    def __call__(self, queries: Array, patches: Array, content: Array | None) -> Masks:
        """queries: f[batch, queries, width]; patches: f[batch, rows, columns, width]; content:
        i32[batch, 2], height and width in pixels of what is no padding, or None."""
        width = queries.shape[-1]
        float32 = jnp.promote_types(self.dtype, jnp.float32)
        dense = partial(Dense, kernel_init=TORCH)
        logits = dense(self.num_classes + 1, dtype=float32, name="class")(queries.astype(float32))
        x = queries
        for i in range(3):
            x = dense(width, dtype=self.dtype, name=f"mask_{i}")(x)
            x = gelu(x) if i < 2 else x
        norm = partial(LayerNorm, 1e-6, dtype=self.dtype)
        for i in range(enlargements(self.patch_size)):
            patches = Doubling(self.dtype, name=f"up_{i}_enlarge")(patches)
            patches = gelu(patches)
            if content is not None:  # zero, as what is beyond the canvas is to the convolution
                stride = self.patch_size // 2 ** (i + 1)
                patches = patches * content_mask(content, patches.shape[1:3], stride)[..., None]
            patches = Depthwise(self.dtype, name=f"up_{i}_depthwise")(patches)
            patches = norm(name=f"up_{i}_norm")(patches)
        masks = mask_logits(x, rearrange(patches, "b h w c -> b (h w) c"))
        return Masks(logits, masks.reshape(*masks.shape[:2], *patches.shape[1:3]))


@jax.custom_vjp
def mask_logits(queries: Array, cells: Array) -> Array:
    """How much each cell is like each query; what comes back is rounded to their dtype, or its
    products would be of float32.

    Args:
      queries: f[batch, queries, width]; cells: f[batch, cells, width], of the same dtype.

    Returns:
      f[batch, queries, cells], of at least float32.
    """
    wide = jnp.promote_types(queries.dtype, jnp.float32)
    return jnp.einsum("bqc,bpc->bqp", queries, cells, preferred_element_type=wide)


def _mask_logits_back(kept, back):
    queries, cells = kept
    back = back.astype(queries.dtype)
    return jnp.einsum("bqp,bpc->bqc", back, cells), jnp.einsum("bqp,bqc->bpc", back, queries)


mask_logits.defvjp(lambda *kept: (mask_logits(*kept), kept), _mask_logits_back)


class Doubling(nn.Module):
    """Twice the rows and columns, as by `nn.ConvTranspose` of kernel and stride 2."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x: f[batch, rows, columns, width] -> f[batch, 2 rows, 2 columns, width]."""
        width = x.shape[-1]
        kernel = self.param("kernel", TORCH, (2, 2, width, width))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        return doubled(x, kernel.astype(self.dtype)) + bias.astype(self.dtype)


class Depthwise(nn.Module):
    """A 3x3 convolution of each channel by itself, as `nn.Conv` without a bias."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x: f[batch, rows, columns, width] -> the same."""
        kernel = self.param("kernel", TORCH, (3, 3, 1, x.shape[-1]))
        return depthwise(x, kernel.astype(self.dtype))


def enlargements(patch_size: int) -> int:
    """How often the patches are doubled: to a cell for 4 pixels, and once at least."""
    return max(1, (patch_size.bit_length() - 1) - 2)


def own_masks(masks: Array, grid: tuple[int, int], num_prefix: int) -> Array:
    """What each token attends to if every query is held to its mask.

    Args:
      masks: f32[batch, queries, rows, columns], logits.
      grid: rows and columns of the patches.
      num_prefix: tokens between the queries and the patches.

    Returns:
      bool[batch, tokens, tokens], queries first: a query attends to all but the patches outside of
      its mask, all others attend to everything.
    """
    batch, number = masks.shape[:2]
    # Torch's bilinear, which takes no average where it makes an image smaller: of the cells of a
    # patch, an even number along each side, those four around its middle.
    side = masks.shape[2] // grid[0]
    middle = slice(side // 2 - 1, side // 2 + 1)
    cells = masks.reshape(batch, number, grid[0], side, grid[1], side)
    inside = cells[:, :, :, middle, :, middle].sum((3, 5)) > 0
    inside = rearrange(inside, "b q h w -> b q (h w)")
    rest = number + num_prefix
    tokens = rest + inside.shape[2]
    inside = jnp.pad(inside, [(0, 0), (0, tokens - number), (rest, 0)], constant_values=True)
    return jax.lax.stop_gradient(inside)


def masking(progress: Array, num_blocks: int) -> Array:
    """The published annealing: how probable it is that a query is held to its mask in each block.

    1 at first; from 1/6 of the run on (the first of the joint blocks) to 4/6 (the last) it falls to
    0 within 1/6 of the run, as (1 - x)^0.9.

    Args:
      progress: f32[...], the part of the run that is done, in [0, 1].
      num_blocks: of the joint blocks.

    Returns:
      f32[..., num_blocks] in [0, 1].
    """
    starts = jnp.linspace(1.0, 4.0, num_blocks) if num_blocks > 1 else jnp.ones(1)
    passed = jnp.clip(progress[..., None] * 6 - starts, 0, 1)
    return (1 - passed) ** 0.9
