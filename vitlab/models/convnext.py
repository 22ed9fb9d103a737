"""ConvNeXt.

A ConvNet for the 2020s (https://arxiv.org/abs/2201.03545, github.com/facebookresearch/ConvNeXt).
"""

import re
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from vitlab.errors import InputError
from vitlab.models.transformer import Dense, LayerNorm
from vitlab.ops.activations import gelu
from vitlab.ops.convolution import Conv
from vitlab.ops.dropout import drop_path
from vitlab.ops.keys import row_keys

# variant: (blocks in each of the four stages, channels of each)
VARIANTS = {
    "T": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "S": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "B": ((3, 3, 27, 3), (128, 256, 512, 1024)),
}

# torch's trunc_normal_(std=0.02) cuts at the values -2 and 2, a hundred deviations out.
kernel_init = nn.initializers.normal(0.02)


class Block(nn.Module):
    """Depthwise 7x7, norm, and a four times wider MLP, on a residual: f[b, h, w, c] to the same."""

    drop_path: float
    layer_scale: float
    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        width = x.shape[-1]
        y = Conv(
            width,
            7,
            padding=3,
            groups=width,
            kernel_init=kernel_init,
            dtype=self.dtype,
            name="dwconv",
        )(x)
        y = LayerNorm(1e-6, dtype=self.dtype, name="norm")(y)
        y = Dense(4 * width, kernel_init=kernel_init, dtype=self.dtype, name="fc1")(y)
        y = gelu(y)
        y = Dense(width, kernel_init=kernel_init, dtype=self.dtype, name="fc2")(y)
        scale = self.param(
            "layer_scale", nn.initializers.constant(self.layer_scale), (width,), jnp.float32
        )
        y = y * scale.astype(self.dtype)
        if train and self.drop_path > 0:
            keys = row_keys(self.make_rng("dropout"), len(x), self.axis_name)
            y = drop_path(y, self.drop_path, keys)
        return x + y


class Stage(nn.Module):
    """Norm and strided convolution that halve the map (not in the first stage), then the blocks."""

    width: int
    downsample: bool
    drop_path: tuple[float, ...]
    layer_scale: float
    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        if self.downsample:
            x = LayerNorm(1e-6, dtype=self.dtype, name="downsample_norm")(x)
            x = patches(self.width, 2, self.dtype, "downsample_conv")(x)
        for i, rate in enumerate(self.drop_path):
            block = Block(rate, self.layer_scale, self.axis_name, self.dtype, name=f"block_{i}")
            x = block(x, train)
        return x


class ConvNeXt(nn.Module):
    """ConvNeXt-T, -S, -B, for images of any size of at least 8 * patch_size.

    Strided convolutions do not overlap and do not pad, so rows and columns that do not fill a
    patch are left out, as in torch.

    Fields:
      variant: "T", "S" or "B".
      num_classes: size of the head; None: no head, the output is the pooled features.
      patch_size: kernel and stride of the stem; 1 or 2 for CIFAR-sized images.
      drop_path: stochastic depth of the last block, rising linearly from 0 at the first.
        Published, ImageNet-1k from scratch: 0.1 (T), 0.4 (S), 0.5 (B).
      layer_scale: initial value of the scale of each residual branch.
      head_init_std: standard deviation of the head's initial kernel; 0 gives zeros.
      depths: blocks in each stage; None: the variant's.
      widths: channels of each stage; None: the variant's.
      axis_name: of `pmap`, whose devices count their rows together.
      dtype: compute dtype; parameters, norm statistics and logits are float32 whatever it is.

    Raises:
      InputError: a field has a value that is not one of the above.
    """

    variant: str = "T"
    num_classes: int | None = None
    patch_size: int = 4
    drop_path: float = 0.0
    layer_scale: float = 1e-6
    head_init_std: float = 0.02
    depths: tuple[int, ...] | None = None
    widths: tuple[int, ...] | None = None
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def __post_init__(self):
        if self.variant not in VARIANTS:
            raise InputError(
                f"ConvNeXt variant {self.variant!r} is not one of {', '.join(VARIANTS)}"
            )
        if not 0 <= self.drop_path < 1:
            raise InputError(f"ConvNeXt drop_path {self.drop_path} must be in [0, 1)")
        if self.patch_size < 1:
            raise InputError(f"ConvNeXt patch_size {self.patch_size} must be at least 1")
        for name in ("depths", "widths"):
            sizes = getattr(self, name)
            if sizes is not None and (len(sizes) != 4 or min(sizes) < 1):
                raise InputError(f"ConvNeXt {name} {sizes} must be four positive numbers")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> tuple[Array, dict[str, Array]]:
        """Classifies images.

        Args:
          images: f[batch, height, width, channels], any height and width from 8 * patch_size.
          train: draw stochastic depth from the random stream "dropout".

        Returns:
          The logits f[batch, num_classes], or without a head the pooled features f[batch,
          features]; and the dict of the named stages: "stem", "stage_1" ... "stage_4" (f[batch,
          h, w, c]), "pre_logits" f[batch, features] (pooled, then normalised) and, with a head,
          "logits".

        Raises:
          InputError: the images are too small for the last stage to have a pixel.
        """
        height, width = images.shape[1:3]
        if min(height, width) < 8 * self.patch_size:
            raise InputError(
                f"images of {height}x{width} are too small for ConvNeXt with patch_size "
                f"{self.patch_size}: at least {8 * self.patch_size} a side, or a smaller patch_size"
            )
        depths, widths = self._depths(), self.widths or VARIANTS[self.variant][1]
        rates = np.linspace(0, self.drop_path, sum(depths)).tolist()
        out = {}

        x = patches(widths[0], self.patch_size, self.dtype, "stem_conv")(images)
        x = LayerNorm(1e-6, dtype=self.dtype, name="stem_norm")(x)
        out["stem"] = x

        for i, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
            stage_rates, rates = tuple(rates[:depth]), rates[depth:]
            shared = (self.layer_scale, self.axis_name, self.dtype)
            x = Stage(width, i > 1, stage_rates, *shared, name=f"stage_{i}")(x, train)
            out[f"stage_{i}"] = x

        x = jnp.mean(x, axis=(1, 2))
        x = LayerNorm(1e-6, dtype=self.dtype, name="norm")(x)
        out["pre_logits"] = x
        if self.num_classes is not None:
            x = nn.Dense(
                self.num_classes,
                kernel_init=nn.initializers.normal(self.head_init_std),
                dtype=jnp.promote_types(self.dtype, jnp.float32),
                name="head",
            )(x)
            out["logits"] = x
        return x, out

    def feature_maps(self, images: Array, train: bool = False) -> dict[int, Array]:
        """The output of each stage, before any norm, keyed by its stride: patch_size * (1, 2, 4,
        8), so 4, 8, 16, 32. f[batch, height // stride, width // stride, channels]."""
        _, out = self(images, train)
        return {stride: out[f"stage_{i}"] for i, stride in enumerate(self.strides, 1)}

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the feature maps, in pixels."""
        return tuple(self.patch_size * 2**i for i in range(4))

    @property
    def num_layers(self) -> int:
        """Number of residual blocks."""
        return sum(self._depths())

    @nn.nowrap
    def layer_of(self, path: str) -> int:
        """Depth of a parameter, for layer-wise learning-rate decay.

        Args:
          path: "stage_2/block_0/fc1/kernel".

        Returns:
          0 for the stem, i + 1 for the i-th block of the network (the downsampling before a stage
          goes with its first block), num_layers + 1 for the final norm and the head.

        Raises:
          InputError: no parameter of a ConvNeXt is called that.
        """
        if path.startswith("stem_"):
            return 0
        if path.startswith(("norm/", "head/")):
            return self.num_layers + 1
        if match := re.match(r"stage_([1-4])/(?:downsample_(?:norm|conv)|block_(\d+))/", path):
            stage, block = int(match[1]), int(match[2] or 0)
            if block < self._depths()[stage - 1]:
                return sum(self._depths()[: stage - 1]) + block + 1
        raise InputError(f"ConvNeXt-{self.variant} has no parameter {path!r}")

    @nn.nowrap
    def _depths(self) -> tuple[int, ...]:
        return self.depths or VARIANTS[self.variant][0]


def patches(features: int, size: int, dtype: Any, name: str) -> Conv:
    """A convolution of patches that do not overlap; what fills no patch is left out."""
    return Conv(features, size, stride=size, kernel_init=kernel_init, dtype=dtype, name=name)
