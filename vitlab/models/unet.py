"""A U-Net on any backbone's feature maps: the ConvNet to compare a segmenter with.

Ronneberger et al., "U-Net" (1505.04597), with a pretrained network as the contracting half, as the
field builds it today: from the map of the greatest stride upwards, each map is enlarged to the next
one's size, joined with it, and passed through two 3x3 convolutions with batch normalisation. Below
the finest map of the backbone it goes on without one.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from vitlab.errors import InputError
from vitlab.models.detr import feature_maps
from vitlab.models.resnet import conv
from vitlab.models.segmenter import check_windows
from vitlab.ops.normalization import BatchNorm
from vitlab.ops.padding import content_mask
from vitlab.ops.windows import pad_to_multiple, sliding_window


class UNet(nn.Module):
    """A segmenter around a ConvNet: `UNet(ResNet("18"), num_classes=11)`.

    Fields:
      backbone: all its feature maps are used.
      num_classes: logits of a cell.
      widths: channels after each enlargement, as many of them as the logits are to be finer than
        the coarsest map by halvings: four lead from a ResNet's stride 32 to 2.
      window, window_stride: see `Segmenter`.
      axis_name: of `pmap`, whose devices count their batch statistics together.
      dtype: of the computation; parameters and logits are float32.

    Raises:
      InputError: a field that is out of range.
    """

    backbone: nn.Module
    num_classes: int
    widths: tuple[int, ...] = (256, 128, 64, 32)
    window: int | None = None
    window_stride: int | None = None
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def __post_init__(self):
        coarsest = self.backbone.strides[-1]
        if not self.widths or min(self.widths) < 1 or coarsest % 2 ** len(self.widths):
            raise InputError(
                f"UNet widths {self.widths} must be positive and no more than the halvings of the "
                f"backbone's stride {coarsest}"
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
          content: i32[batch, 2], height and width in pixels of what is no padding, which is zero in
            every layer, and which the batch statistics count; None: all.
          train: whether batch statistics are the batch's own (`mutable=["batch_stats"]`).

        Returns:
          The logits f32[batch, rows, columns, num_classes], a cell for each `stride` pixels, the
          last ones reaching beyond the image where the stride does not divide it; and the stages
          "feature_map", the backbone's coarsest, "up_1" and so on, and "logits".
        """
        rows, columns = (-(-side // self.stride) for side in images.shape[1:3])
        images, content = pad_to_multiple(images, content, self.backbone.strides[-1])

        def keep(x, stride):  # nothing where there is padding alone, as a convolution pads
            if content is None:
                return x
            return x * content_mask(content, x.shape[1:3], stride)[..., None]

        maps = feature_maps(self.backbone, images, content, train)
        maps = {stride: keep(x, stride) for stride, x in maps.items()}
        stride = max(maps)
        x, stages = maps[stride], {"feature_map": maps[stride]}
        norm = partial(
            BatchNorm,
            use_running_average=not train,
            axis_name=self.axis_name,
            dtype=self.dtype,
        )
        for i, width in enumerate(self.widths, 1):
            stride //= 2
            x = x.repeat(2, axis=1).repeat(2, axis=2)
            if stride in maps:
                x = jnp.concatenate([x, maps[stride]], axis=-1)
            for j in (1, 2):
                x = conv(width, 3, 1, self.dtype, f"up_{i}_conv{j}")(x)
                x = keep(nn.relu(norm(name=f"up_{i}_norm{j}")(x)), stride)
            stages[f"up_{i}"] = x
        float32 = jnp.promote_types(self.dtype, jnp.float32)
        logits = nn.Dense(self.num_classes, dtype=float32, name="head")(x.astype(float32))
        logits = logits[:, :rows, :columns]
        return logits, stages | {"logits": logits}

    def predict(self, images: Array, content: Array | None = None) -> Array:
        """See `Segmenter.predict`."""
        return sliding_window(self, images, content, self.window, self.window_stride, self.stride)

    @property
    def stride(self) -> int:
        """Pixels from one cell of the logits to the next."""
        return self.backbone.strides[-1] // 2 ** len(self.widths)
