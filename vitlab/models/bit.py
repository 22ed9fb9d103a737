"""BiT: the pre-activation ResNet with group normalisation and weight standardisation.

Big Transfer (https://arxiv.org/abs/1912.11370, github.com/google-research/big_transfer). It has no
batch statistics, so neither the batch size nor the device count enters the model.
"""

import re
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from vitlab.errors import InputError
from vitlab.models.resnet import max_pool
from vitlab.ops.convolution import convolve

# layers in the variant's name: blocks in each of the four stages
DEPTHS = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)}


class StdConv(nn.Module):
    """A convolution whose kernel is standardised for each output channel, padding half the kernel.

    Weight standardisation (https://arxiv.org/abs/1903.10520): f[b, h, w, c] -> f[b, ceil(h /
    stride), ceil(w / stride), features], no bias. The statistics are taken in float32.
    """

    features: int
    kernel: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param(
            "kernel",
            # Only the direction of the kernel counts; its length sets how fast it turns.
            nn.initializers.lecun_normal(),
            (self.kernel, self.kernel, x.shape[-1], self.features),
            jnp.float32,
        )
        kernel = kernel - jnp.mean(kernel, axis=(0, 1, 2))
        # big_transfer's 1e-10: timm's 1e-8 is 1e-4 of the variance where the fan-in is large.
        kernel = kernel * jax.lax.rsqrt(jnp.mean(kernel**2, axis=(0, 1, 2)) + 1e-10)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return convolve(x, kernel, self.stride, padding=self.kernel // 2)


class Block(nn.Module):
    """Pre-activation bottleneck, f[b, h, w, c] -> f[b, ceil(h/stride), ceil(w/stride), 4*width]."""

    width: int
    stride: int
    norm_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        norm = partial(nn.GroupNorm, num_groups=self.norm_groups, epsilon=1e-5, dtype=self.dtype)
        conv = partial(StdConv, dtype=self.dtype)

        y = nn.relu(norm(name="norm1")(x))
        if self.stride != 1 or x.shape[-1] != 4 * self.width:
            # The projection sees the activated input; an identity shortcut does not.
            x = conv(4 * self.width, 1, self.stride, name="downsample_conv")(y)
        y = conv(self.width, 1, name="conv1")(y)
        y = conv(self.width, 3, self.stride, name="conv2")(nn.relu(norm(name="norm2")(y)))
        y = conv(4 * self.width, 1, name="conv3")(nn.relu(norm(name="norm3")(y)))
        return x + y


class Stage(nn.Module):
    """`depth` blocks, the first of them with the stride."""

    depth: int
    width: int
    stride: int
    norm_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.depth):
            stride = self.stride if i == 0 else 1
            x = Block(self.width, stride, self.norm_groups, self.dtype, name=f"block_{i}")(x)
        return x


class BiT(nn.Module):
    """BiT-R50x1 ... R152x4, for images of any size.

    Fields:
      variant: "R" + layers (50, 101, 152) + "x" + width factor. Published: R50x1, R50x3, R101x1,
        R101x3, R152x2, R152x4.
      num_classes: size of the head; None: no head, the output is the pooled features.
      stem: "imagenet": 7x7 convolution of stride 2 and a max pool, total stride 4; "small": 3x3 of
        stride 1 and no pool, for CIFAR-sized images.
      head_init_std: standard deviation of the head's initial kernel; 0, as published, gives zeros.
      depths: blocks in each stage; None: the variant's.
      widths: channels of the 3x3 convolutions in each stage, a quarter of the stage's output; the
        first is the stem's as well. None: the variant's (64, 128, 256, 512) * factor.
      norm_groups: groups of every group norm; must divide each of `widths`.
      dtype: compute dtype; parameters, norm statistics and logits are float32 whatever it is.

    Raises:
      InputError: a field has a value that is not one of the above.
    """

    variant: str = "R50x1"
    num_classes: int | None = None
    stem: str = "imagenet"
    head_init_std: float = 0.0
    depths: tuple[int, ...] | None = None
    widths: tuple[int, ...] | None = None
    norm_groups: int = 32
    dtype: Any = jnp.float32

    def __post_init__(self):
        if not re.fullmatch(rf"R({'|'.join(DEPTHS)})x[1-9]\d?", str(self.variant)):
            raise InputError(
                f"BiT variant {self.variant!r} is not R50, R101 or R152 with a width, such as R50x1"
            )
        if self.stem not in ("imagenet", "small"):
            raise InputError(f"BiT stem {self.stem!r} is not one of imagenet, small")
        for name in ("depths", "widths"):
            sizes = getattr(self, name)
            if sizes is not None and (len(sizes) != 4 or min(sizes) < 1):
                raise InputError(f"BiT {name} {sizes} must be four positive numbers")
        if any(width % self.norm_groups for width in self._widths()):
            raise InputError(f"BiT norm_groups {self.norm_groups} must divide {self._widths()}")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> tuple[Array, dict[str, Array]]:
        """Classifies images.

        Args:
          images: f[batch, height, width, channels], any height and width.
          train: changes nothing, BiT being the same in training.

        Returns:
          The logits f[batch, num_classes], or without a head the pooled features f[batch,
          features]; and the dict of the named stages: "stem", "stage_1" ... "stage_4" (f[batch,
          h, w, c], before the final norm), "pre_logits" f[batch, features] (after it) and, with a
          head, "logits".
        """
        del train
        widths = self._widths()
        out = {}

        if self.stem == "imagenet":
            x = StdConv(widths[0], 7, 2, self.dtype, name="stem_conv")(images)
            # Zeros join the maximum at the border, as in big_transfer. No activation came before,
            # so they differ from the -inf that pads other pools.
            x = max_pool(x)
        else:
            x = StdConv(widths[0], 3, 1, self.dtype, name="stem_conv")(images)
        out["stem"] = x

        for i, (depth, width) in enumerate(zip(self._depths(), widths, strict=True), 1):
            stride = 1 if i == 1 else 2
            x = Stage(depth, width, stride, self.norm_groups, self.dtype, name=f"stage_{i}")(x)
            out[f"stage_{i}"] = x

        x = nn.relu(nn.GroupNorm(self.norm_groups, epsilon=1e-5, dtype=self.dtype, name="norm")(x))
        x = out["pre_logits"] = jnp.mean(x, axis=(1, 2))
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
        """The output of each stage, before any norm, keyed by its stride: 4, 8, 16, 32, or 1, 2,
        4, 8 with the small stem. f[batch, ceil(height / stride), ceil(width / stride), channels].
        """
        _, out = self(images, train)
        return {stride: out[f"stage_{i}"] for i, stride in enumerate(self.strides, 1)}

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the feature maps, in pixels."""
        first = 4 if self.stem == "imagenet" else 1
        return tuple(first * 2**i for i in range(4))

    @property
    def num_layers(self) -> int:
        """Number of residual blocks."""
        return sum(self._depths())

    @nn.nowrap
    def layer_of(self, path: str) -> int:
        """Depth of a parameter, for layer-wise learning-rate decay.

        Args:
          path: "stage_2/block_0/conv1/kernel".

        Returns:
          0 for the stem, i + 1 for the i-th block of the network, num_layers + 1 for the final
          norm and the head.

        Raises:
          InputError: no parameter of a BiT is called that.
        """
        if path.startswith("stem_"):
            return 0
        if path.startswith(("norm/", "head/")):
            return self.num_layers + 1
        if match := re.match(r"stage_([1-4])/block_(\d+)/", path):
            stage, block = map(int, match.groups())
            if block < self._depths()[stage - 1]:
                return sum(self._depths()[: stage - 1]) + block + 1
        raise InputError(f"BiT-{self.variant} has no parameter {path!r}")

    @nn.nowrap
    def _depths(self) -> tuple[int, ...]:
        return self.depths or DEPTHS[self.variant[1:].split("x")[0]]

    @nn.nowrap
    def _widths(self) -> tuple[int, ...]:
        factor = int(self.variant.split("x")[1])
        return self.widths or tuple(factor * width for width in (64, 128, 256, 512))
