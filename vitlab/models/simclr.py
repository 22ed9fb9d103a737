"""SimCLR (Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations",
2002.05709; version 2 with its deeper head, 2006.10029).

Two random views of an image go through one backbone and one projection head; the loss, NT-Xent,
asks that a view's projection be nearest to that of its twin among those of the whole batch. The
head is thrown away afterwards. Numbers are those of github.com/google-research/simclr.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from vitlab.errors import InputError
from vitlab.ops.collectives import gather, row_indices
from vitlab.ops.normalization import BatchNorm

# Examples whose similarities with all others are in memory at once: at 1,024 of a batch of 16,384
# they take 256 MiB over all devices, where all of them would take 4 GiB.
BLOCK = 1024


class SimCLR(nn.Module):
    """A backbone with SimCLR's projection head, an MLP with batch norm after every layer.

    Fields:
      backbone: a ViT, ResNet, ... without a head.
      projector_layers: 3 in version 2, 2 in the first.
      projector_width: of the hidden layers; None: the backbone's own, as in the paper.
      projector_dim: of the projection.
      axis_name: the `pmap` axis over which batch statistics are averaged.
      dtype: of the computation; parameters and statistics are float32.

    Raises:
      InputError: a size below 1, or a backbone with a head.
    """

    backbone: nn.Module
    projector_layers: int = 3
    projector_width: int | None = None
    projector_dim: int = 128
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def __post_init__(self):
        for field in ("projector_layers", "projector_width", "projector_dim"):
            if (size := getattr(self, field)) is not None and size < 1:
                raise InputError(f"SimCLR {field} is {size} but must be at least 1")
        if self.backbone.num_classes:
            raise InputError("SimCLR's backbone has no num_classes")
        super().__post_init__()

    @nn.compact
    def __call__(self, views: Array, train: bool = False) -> tuple[Array, dict[str, Array]]:
        """f[2 * batch, height, width, channels] -> projections f[2 * batch, projector_dim], and the
        backbone's stages.

        Args:
          views: of all images; batch norm counts both views of an image together.
          train: normalise by the batch's own statistics, which needs `mutable=["batch_stats"]`.
        """
        x, stages = self.backbone(views, train=train)
        if x.ndim != 2:
            raise InputError(f"SimCLR's backbone must pool its tokens, and gives {x.shape}")
        hidden = self.projector_width or x.shape[-1]
        for i in range(self.projector_layers):
            last = i == self.projector_layers - 1
            width, init = self.projector_dim if last else hidden, nn.initializers.normal(0.01)
            dense = partial(nn.Dense, use_bias=False, kernel_init=init, dtype=self.dtype)
            x = dense(width, name=f"projector_{i}")(x)
            norm = BatchNorm(
                use_running_average=not train,
                use_bias=not last,
                axis_name=self.axis_name,
                dtype=self.dtype,
                name=f"projector_norm_{i}",
            )
            x = norm(x)
            x = x if last else nn.relu(x)
        return x, stages


def unit_length(projections: Array) -> Array:
    """f[..., dim] -> f32[..., dim] of length 1."""
    x = projections.astype(jnp.promote_types(projections.dtype, jnp.float32))
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-12))


def nt_xent(
    projections: Array,
    mask: Array,
    temperature: float,
    axis_name: str | None = None,
    block: int = BLOCK,
) -> tuple[Array, Array]:
    """The normalised temperature-scaled cross-entropy: which of all other views is my twin?

    The similarities of `block` examples at a time are computed, forward and again backward, so that
    memory grows with the batch and not with its square.

    Args:
      projections: f[batch, 2, dim], of the two views of each image.
      mask: bool[batch]; false marks padding, which is nobody's negative.
      temperature: divides the cosine similarities.
      axis_name: the mapped axis under `pmap`, see `vitlab.ops.collectives`.
      block: how many examples.

    Returns:
      The loss of each example, f32[batch], the mean over its two views; and how many of the two
      had their twin nearest, f32[batch], as a fraction. Padding has some value too; the only image
      of a batch has the loss 0.
    """
    z = unit_length(projections)
    rows = len(z)
    everyone, there = gather(z, axis_name), gather(mask, axis_name)

    @jax.checkpoint
    def compare(args):
        z, index = args  # f[rows, 2, dim], i32[rows]
        logits = jnp.einsum("rvd,nwd->rvnw", z, everyone, precision="highest") / temperature
        same = index[:, None] == jnp.arange(len(everyone))  # [rows, n]
        twin = same[:, None, :, None] & ~jnp.eye(2, dtype=bool)[None, :, None, :]
        other = there[None, None, :, None] & ~same[:, None, :, None]
        positive = jnp.where(twin, logits, 0).sum(axis=(2, 3))
        logits = jnp.where(other, logits, -jnp.inf)
        # The logarithm of one plus the others' share, which stays exact where the loss is small.
        nll = jax.nn.softplus(jax.nn.logsumexp(logits, axis=(2, 3)) - positive)
        right = positive > logits.max(axis=(2, 3))
        return nll.mean(axis=1), right.mean(axis=1, dtype=z.dtype)

    indices = row_indices(rows, axis_name)
    # Blocks of equal size that take every n-th row, so that each is spread over the devices.
    blocks = next(n for n in range(-(-rows // block), rows + 1) if rows % n == 0)
    if blocks == 1:
        return compare((z, indices))
    parts = jax.tree.map(lambda x: x.reshape(-1, blocks, *x.shape[1:]).swapaxes(0, 1), (z, indices))
    out = jax.lax.map(compare, parts)
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(rows), out)
