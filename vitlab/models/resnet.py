"""ResNet v1.5 with batch normalisation.

Deep Residual Learning for Image Recognition (https://arxiv.org/abs/1512.03385), in torchvision's
form: the bottleneck strides in its 3x3 convolution ("v1.5"), and strided convolutions pad both
sides alike, where XLA's "SAME" would pad the far side only and shift every feature by a pixel.
"""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from vitlab.errors import InputError
from vitlab.ops.backend import backend
from vitlab.ops.convolution import Conv
from vitlab.ops.normalization import BatchNorm
from vitlab.ops.padding import content_mask

# variant: (has bottleneck blocks, blocks in each of the four stages)
VARIANTS = {
    "18": (False, (2, 2, 2, 2)),
    "34": (False, (3, 4, 6, 3)),
    "50": (True, (3, 4, 6, 3)),
    "101": (True, (3, 4, 23, 3)),
    "152": (True, (3, 8, 36, 3)),
}


class Block(nn.Module):
    """One residual block, f[b, h, w, c] -> f[b, ceil(h / stride), ceil(w / stride), channels].

    Two 3x3 convolutions, or with `bottleneck` 1x1, 3x3, 1x1 where the last has 4 * width channels.
    """

    width: int
    bottleneck: bool
    stride: int
    norm: Callable[..., nn.Module]
    zero_init_residual: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, keep: Callable[[Array], Array]) -> Array:
        if self.bottleneck:
            convs = [(self.width, 1, 1), (self.width, 3, self.stride), (4 * self.width, 1, 1)]
        else:
            convs = [(self.width, 3, self.stride), (self.width, 3, 1)]
        channels = convs[-1][0]

        shortcut = x
        if self.stride != 1 or x.shape[-1] != channels:
            shortcut = conv(channels, 1, self.stride, self.dtype, "downsample_conv")(x)
            shortcut = self.norm(name="downsample_norm")(shortcut)

        for i, (features, kernel, stride) in enumerate(convs, 1):
            last = i == len(convs)
            # A last scale of zero starts every block as the identity (arxiv.org/abs/1706.02677).
            zero = last and self.zero_init_residual
            x = conv(features, kernel, stride, self.dtype, f"conv{i}")(x)
            x = self.norm(
                scale_init=nn.initializers.zeros if zero else nn.initializers.ones, name=f"norm{i}"
            )(x)
            if not last:
                x = keep(nn.relu(x))
        return keep(nn.relu(x + shortcut))


class Stage(nn.Module):
    """`depth` blocks, the first of them with the stride."""

    depth: int
    stride: int
    block: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array, keep: Callable[[Array], Array]) -> Array:
        for i in range(self.depth):
            x = self.block(stride=self.stride if i == 0 else 1, name=f"block_{i}")(x, keep)
        return x


class ResNet(nn.Module):
    """ResNet-18, -34, -50, -101, -152, for images of any size.

    Batch statistics are those of the global batch: under `jit` always, under `pmap` where
    `axis_name` names the mapped axis. They are computed and kept in float32. The running variance
    averages the biased variance, the one that the batch was normalised with, so that it does not
    depend on how many values it came from; torch averages n / (n - 1) times that, n being the
    values per channel (batch * height * width). At n >= 10,000 (the last stage of ImageNet at
    batch 256 has 12,544) they differ by less than 1e-4 of the variance, and neither depends on the
    device count, n being global. Torch's published statistics are used as they are.

    Fields:
      variant: "18", "34", "50", "101" or "152".
      num_classes: size of the head; None: no head, the output is the pooled features.
      stem: "imagenet": 7x7 convolution of stride 2 and a max pool, total stride 4; "small": 3x3 of
        stride 1 and no pool, for CIFAR-sized images (https://arxiv.org/abs/2002.05709, B.9).
      norm: "batch"; "frozen": running statistics in training too, never updated, as detectors do
        with their pretrained backbones. Whether scale and bias train is the optimizer's matter.
      zero_init_residual: start each block's last norm scale at zero, so each block as identity.
      head_init_std: standard deviation of the head's initial kernel; 0 gives zeros. 0.01 is from
        https://arxiv.org/abs/1706.02677.
      depths: blocks in each stage; None: the variant's.
      widths: channels of the 3x3 convolutions in each stage; the first is the stem's as well. Fewer
        than four leave the last stages out.
      axis_name: the `pmap` axis over which batch statistics are averaged.
      dtype: compute dtype; parameters, statistics and logits are float32 whatever it is.

    Raises:
      InputError: a field has a value that is not one of the above.
    """

    variant: str = "50"
    num_classes: int | None = None
    stem: str = "imagenet"
    norm: str = "batch"
    zero_init_residual: bool = True
    head_init_std: float = 0.01
    depths: tuple[int, ...] | None = None
    widths: tuple[int, ...] = (64, 128, 256, 512)
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def __post_init__(self):
        if self.variant not in VARIANTS:
            raise InputError(f"ResNet variant {self.variant!r} is not one of {', '.join(VARIANTS)}")
        if self.stem not in ("imagenet", "small"):
            raise InputError(f"ResNet stem {self.stem!r} is not one of imagenet, small")
        if self.norm not in ("batch", "frozen"):
            raise InputError(f"ResNet norm {self.norm!r} is not one of batch, frozen")
        for name in ("depths", "widths"):
            sizes = getattr(self, name)
            if sizes is not None and (not 1 <= len(sizes) <= 4 or min(sizes) < 1):
                raise InputError(f"ResNet {name} {sizes} must be one to four positive numbers")
        if len(self._depths()) != len(self.widths):
            raise InputError(
                f"ResNet depths {self._depths()} and widths {self.widths} must be as many"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Array, train: bool = False, content: Array | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """Classifies images.

        Args:
          images: f[batch, height, width, channels], any height and width.
          train: normalise by the batch's own statistics and update the running ones, which needs
            `mutable=["batch_stats"]`.
          content: i32[batch, 2], height and width in pixels of what is no padding: the rest is zero
            in every layer, as it is outside of an image. The pooled features and the batch
            statistics count it. None: there is no padding.

        Returns:
          The logits f[batch, num_classes], or without a head the pooled features f[batch,
          features]; and the dict of the named stages: "stem_conv" (before the pool, where there is
          one), "stem", "stage_1" ... "stage_4" (f[batch, h, w, c]), "pre_logits" f[batch, features]
          and, with a head, "logits".
        """
        bottleneck, _ = VARIANTS[self.variant]
        norm = partial(
            BatchNorm,
            use_running_average=not train or self.norm == "frozen",
            axis_name=self.axis_name,
            dtype=self.dtype,
        )
        out = {}

        def keep(x):
            if content is None:
                return x
            # The sides are rounded up at every stride, the longer one the least.
            ratio = max(a / b for a, b in zip(images.shape[1:3], x.shape[1:3], strict=True))
            stride = 2 ** math.ceil(math.log2(ratio))
            return x * content_mask(content, x.shape[1:3], stride)[..., None]

        x = keep(images.astype(self.dtype))
        if self.stem == "imagenet":
            x = conv(self.widths[0], 7, 2, self.dtype, "stem_conv")(x)
        else:
            x = conv(self.widths[0], 3, 1, self.dtype, "stem_conv")(x)
        x = keep(nn.relu(norm(name="stem_norm")(x)))
        if self.stem == "imagenet":
            out["stem_conv"] = x
            x = keep(max_pool(x))
        out["stem"] = x

        for i, (depth, width) in enumerate(zip(self._depths(), self.widths, strict=True), 1):
            block = partial(
                Block,
                width=width,
                bottleneck=bottleneck,
                norm=norm,
                zero_init_residual=self.zero_init_residual,
                dtype=self.dtype,
            )
            x = Stage(depth, 1 if i == 1 else 2, block, name=f"stage_{i}")(x, keep)
            out[f"stage_{i}"] = x

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

    def feature_maps(
        self, images: Array, train: bool = False, content: Array | None = None
    ) -> dict[int, Array]:
        """The output of each stage, keyed by its stride: 4, 8, 16, 32, after that of the stem's
        convolution, 2; or 1, 2, 4, 8 with the small stem. f[batch, ceil(height / stride),
        ceil(width / stride), channels]."""
        _, out = self(images, train, content)
        stages = [f"stage_{i + 1}" for i in range(len(self.widths))]
        stages = ["stem_conv", *stages] if self.stem == "imagenet" else stages
        return {stride: out[stage] for stride, stage in zip(self.strides, stages, strict=True)}

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the feature maps, in pixels."""
        of_stages = [2**i for i in range(len(self.widths))]
        return (2, *(4 * each for each in of_stages)) if self.stem == "imagenet" else (*of_stages,)

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
          0 for the stem, i + 1 for the i-th block of the network, num_layers + 1 for the head.

        Raises:
          InputError: no parameter of a ResNet is called that.
        """
        if path.startswith("stem_"):
            return 0
        if path.startswith("head/"):
            return self.num_layers + 1
        if match := re.match(r"stage_([1-4])/block_(\d+)/", path):
            stage, block = map(int, match.groups())
            if block < self._depths()[stage - 1]:
                return sum(self._depths()[: stage - 1]) + block + 1
        raise InputError(f"ResNet-{self.variant} has no parameter {path!r}")

    @nn.nowrap
    def _depths(self) -> tuple[int, ...]:
        return self.depths or VARIANTS[self.variant][1]


def max_pool(x: Array) -> Array:
    """The largest of 3x3 pixels, with stride 2: f[b, h, w, c] -> f[b, ceil(h / 2), ceil(w / 2), c].

    Zeros around the image join, which after a ReLU are never the largest. On a CPU by slices, as
    XLA takes there six times as long for the gradient of `nn.max_pool`, which goes to the first of
    the largest too.
    """
    if backend() != "cpu":
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding="VALID")
    for axis in (2, 1):
        margins = [(0, 0)] * 4
        margins[axis] = (1, 1)
        padded, length = jnp.pad(x, margins), x.shape[axis]
        x, second, third = (
            jax.lax.slice_in_dim(padded, i, i + length - (length + 1) % 2, 2, axis)
            for i in range(3)
        )
        for other in (second, third):
            x = jnp.where((x >= other) | (x != x), x, other)  # NaN stays
    return x


def conv(features: int, kernel: int, stride: int, dtype: Any, name: str) -> Conv:
    """A convolution without bias that pads both sides by half the kernel."""
    return Conv(
        features,
        kernel,
        stride,
        padding=kernel // 2,
        use_bias=False,
        # He initialisation over the outputs, torchvision's.
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        dtype=dtype,
        name=name,
    )
