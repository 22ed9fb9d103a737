"""Preprocessing strings: how an example's image becomes the model's input.

    pp = Preprocess.parse("decode|inception_crop(224)|flip_lr|randaug(2,10)|value_range(-1,1)")
    example = pp({"image": jpeg_bytes, "label": 3}, np.random.default_rng(0))
    inputs = example["image"] * pp.scale + pp.shift  # The step does this on the device.

A string is a chain of ops with arguments, as `vitlab.data.op_strings` reads it. All ops but the
last run on the host and leave a uint8 image; the last is `value_range(low, high)` or
`normalize(...)`, an affine map that the compiled step applies, so that images travel to the device
as bytes. The ops are in `vitlab.data.decode`, `image_ops`, `geometry`, `randaugment` and `targets`;
the last two are here.

A string with `pad_boxes` is for detection: the boxes of the image's objects then move with the
image. One with `semantic` or `pad_segments` is for segmentation, and the image's segments move
likewise. Ops that could not move them are refused.
"""

import dataclasses
import inspect
import itertools
import types
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np

from vitlab.data import geometry, image_ops, targets
from vitlab.data.annotations import Annotation
from vitlab.data.arguments import Between
from vitlab.data.decode import Picture, decode
from vitlab.data.op_strings import Op, parse_ops, spell_op, unknown
from vitlab.data.randaugment import randaug, three_augment
from vitlab.data.segments import Segments
from vitlab.errors import InputError

# Means and standard deviations of the channels in units of 0 to 1, as the models that were
# trained with them have them.
STATISTICS = types.MappingProxyType(
    {
        "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        "fashion_mnist": ((0.2860,), (0.3530,)),
        "half": ((0.5,), (0.5,)),
        "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "mnist": ((0.1307,), (0.3081,)),
    }
)
_Unit = Annotated[float, Between(0, 1)]


def value_range(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Gives the scale and shift, f32[1] each, that map 0 to `low` and 255 to `high`."""
    if low >= high:
        raise InputError(f"needs low < high, not {low:g} and {high:g}")
    return _float32([(high - low) / 255]), _float32([low])


def normalize(
    statistics: str | None = None,
    mean: _Unit | tuple[_Unit, ...] | None = None,
    std: _Unit | tuple[_Unit, ...] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Gives the scale and shift that subtract a mean and divide by a standard deviation.

    Args:
      statistics: the name of a mean and standard deviation in `STATISTICS`; or else
      mean: of each channel or of all, in units of 0 to 1.
      std: the same.

    Returns:
      Scale and shift, f32[channels] or f32[1], for images of 0 to 255.
    """
    if statistics is not None:
        if mean is not None or std is not None:
            raise InputError("takes a name or mean and std, not both")
        if statistics not in STATISTICS:
            raise InputError(unknown("statistics", statistics, STATISTICS))
        mean, std = STATISTICS[statistics]
    if mean is None or std is None:
        raise InputError(f"needs a name ({', '.join(STATISTICS)}) or both mean and std")
    mean, std = np.atleast_1d(mean), np.atleast_1d(std)
    if mean.shape != std.shape and 1 not in (mean.size, std.size):
        raise InputError(f"has {mean.size} means, but {std.size} standard deviations")
    if (std <= 0).any():
        raise InputError("needs standard deviations above 0")
    mean, std = np.broadcast_arrays(mean, std)
    return _float32(1 / (255 * std)), _float32(-mean / std)


_OPS = types.MappingProxyType(
    {
        op.__name__: op
        for op in (
            decode,
            image_ops.grey_to_rgb,
            image_ops.to_grey,
            geometry.resize,
            geometry.resize_small,
            image_ops.central_crop,
            image_ops.whole_patches,
            image_ops.random_crop,
            image_ops.inception_crop,
            geometry.flip_lr,
            geometry.flip_ud,
            geometry.letterbox,
            geometry.pad,
            geometry.scale_jitter,
            geometry.random_size_crop,
            geometry.random_scale,
            geometry.segment_crop,
            image_ops.rotate,
            randaug,
            three_augment,
            targets.pad_boxes,
            targets.semantic,
            targets.pad_segments,
        )
    }
)
_LAST_OPS = types.MappingProxyType({op.__name__: op for op in (value_range, normalize)})
_CHECKS = types.MappingProxyType(
    {
        "inception_crop": image_ops.check_inception_crop,
        "scale_jitter": geometry.check_scales,
        "random_scale": geometry.check_scales,
        "random_size_crop": geometry.check_random_size_crop,
    }
)


def _parameters(op) -> tuple[str, ...]:
    return tuple(inspect.signature(op).parameters)


_RANDOM = frozenset(name for name, op in _OPS.items() if "rng" in _parameters(op))
# Ops on the whole example rather than on its image.
_ON_EXAMPLE = frozenset(name for name, op in _OPS.items() if "example" in _parameters(op))
# Ops that make arrays of what is known of an image, and what each makes them of.
_TRUTH = types.MappingProxyType(
    {"pad_boxes": "boxes", "semantic": "segments", "pad_segments": "segments"}
)
# Ops that mirror, and leave padding where it is.
FLIPS = frozenset({"flip_lr", "flip_ud"})
# Ops that move what is known of an image with it, and others that leave every pixel where it is.
_MOVES = FLIPS | {"resize", "resize_small", "letterbox", "pad", "scale_jitter"}
_MOVES |= {"random_size_crop", "random_scale", "segment_crop"}
_STAYS = frozenset({"decode", "grey_to_rgb", "to_grey"})
# Ops that look at the size of the image, then take a piece of it.
_CUTS = frozenset({"central_crop", "whole_patches", "random_crop", "inception_crop"})
# Ops that pad: after them the image is not all there is.
_PADS = frozenset({"letterbox", "pad", "scale_jitter", "segment_crop"})


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """A parsed preprocessing string, made by `Preprocess.parse`.

    Two of them are equal where their ops and all arguments are. It can be pickled.

    Attributes:
      ops: the ops in order, the last one being the affine map.
      scale: f32[channels] or f32[1]; the step computes `image * scale + shift`.
      shift: f32[channels] or f32[1].
      evaluation: whether nothing is learned from boxes and segments, which are known from the
        source: `pad_boxes` then leaves all boxes out, so that an image may have any number of
        objects, and of `semantic` and `pad_segments` only `affine` and `content` remain.
      prediction: whether there is only an image: of `pad_boxes` too no more remains than that.
    """

    ops: tuple[Op, ...]
    scale: np.ndarray = dataclasses.field(compare=False, repr=False)
    shift: np.ndarray = dataclasses.field(compare=False, repr=False)
    evaluation: bool = False
    prediction: bool = False

    @classmethod
    def parse(cls, text: str) -> "Preprocess":
        """Reads a preprocessing string.

        Raises:
          InputError: it cannot be read; the line names the column in `text`, counted from 1.
        """
        if not isinstance(text, str):
            raise InputError(f"preprocess must be a string, not {type(text).__name__}")
        ops = parse_ops(text, _OPS | _LAST_OPS)
        last = ops[-1]
        for op in ops[:-1]:
            if op.name in _LAST_OPS:
                raise InputError(f"{op.where} must be the last op")
        for op in ops[1:]:
            if op.name == "decode":
                raise InputError(f"{op.where} must be the first op")
        if last.name not in _LAST_OPS:
            raise InputError(
                f"{last.where} cannot be the last op, value_range or normalize must be: add "
                "|value_range(-1,1)"
            )
        if dict(ops[0].arguments).get("shrink") and ops[1].name != "inception_crop":
            raise InputError(f"{ops[0].where}: shrink needs inception_crop as the next op")
        _check_truth(ops)
        for op in ops:
            try:
                if op.name in _CHECKS:
                    _CHECKS[op.name](**dict(op.arguments))
                elif op is last:
                    scale, shift = _LAST_OPS[op.name](**dict(op.arguments))
            except InputError as error:
                raise InputError(f"{op.where}: {error}") from None
        return cls(ops, scale, shift)

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        """Runs the host ops.

        Args:
          example: of a source. "image" is the bytes of an image file or uint8[height, width(,
            channels)]. It is left as it is.
          rng: the only source of randomness.

        Returns:
          A new dict, "image" being uint8[height, width, channels], and without "objects" and
          "segments" but for what `pad_boxes`, `semantic` and `pad_segments` make of them.

        Raises:
          InputError: the image cannot be decoded or is not what an op needs, or the source has no
            boxes or segments where they are wanted.
        """
        example = {**example, "image": self._checked(example["image"])}
        known = {"boxes": example.pop("objects", None), "segments": example.pop("segments", None)}
        wanted = [op.name for op in self.ops if op.name in _TRUTH]
        for name in wanted:
            if known[_TRUTH[name]] is None and not self.prediction:
                raise InputError(f"{name}: the source has no {_TRUTH[name]}")
        for op, following in itertools.pairwise(self.ops):
            if wanted and "affine" not in example and op.name != "decode":
                example = self._with_truth(example, **known)
            arguments = dict(op.arguments)
            if op.name in _RANDOM:
                arguments["rng"] = rng
            if op.name == "decode" and following.name in _CUTS:
                example["image"] = _undecoded(example["image"], following, **arguments)
                continue
            of_segments = _TRUTH.get(op.name) == "segments"
            if (self.prediction and op.name in _TRUTH) or (self.evaluation and of_segments):
                example = targets.with_place(example)
            elif op.name in _ON_EXAMPLE:
                example = _OPS[op.name](example, **arguments)
            else:
                example["image"] = _OPS[op.name](example["image"], **arguments)
        image = np.ascontiguousarray(example["image"])
        if not wanted:
            example.pop("content", None)
        if isinstance(example.get("segments"), Segments):
            del example["segments"]  # What `semantic` was made of.
        if self.scale.size not in (1, image.shape[2]):
            remedy = ": put grey_to_rgb before it" if image.shape[2] == 1 else ""
            raise InputError(
                f"{self.ops[-1].where} is for {self.scale.size} channels, the image has "
                f"{image.shape[2]}{remedy}"
            )
        return {**example, "image": image}

    def split_at_random(self) -> tuple["Preprocess", tuple[Op, ...]]:
        """What is the same in every epoch, the ops before the first that draws something; and the
        others but the last, the affine map, which both parts have."""
        names = [op.name in _RANDOM for op in self.ops]
        first = names.index(True) if True in names else len(names) - 1
        fixed = (*self.ops[:first], self.ops[-1])
        return dataclasses.replace(self, ops=fixed), self.ops[first:-1]

    @property
    def random(self) -> list[str]:
        """The names of its ops that draw something."""
        return [op.name for op in self.ops if op.name in _RANDOM]

    @property
    def pads(self) -> list[str]:
        """The names of its ops after which the image may not be all there is."""
        return [op.name for op in self.ops if op.name in _PADS]

    @property
    def resizes(self) -> bool:
        """Whether it has an op that makes images another size."""
        return any(op.name not in _STAYS | _TRUTH.keys() | FLIPS for op in self.ops[:-1])

    @property
    def boxes(self) -> bool:
        """Whether the string makes arrays of boxes."""
        return any(_TRUTH.get(op.name) == "boxes" for op in self.ops)

    @property
    def segments(self) -> bool:
        """Whether the string makes arrays of segments, in one way or another."""
        return any(_TRUTH.get(op.name) == "segments" for op in self.ops)

    def _with_truth(
        self, example: dict, boxes: Annotation | None, segments: Callable | None
    ) -> dict:
        example = targets.with_affine(example)
        if self.prediction:
            return example
        if self.boxes:
            example = targets.with_boxes(example, boxes)
            example = targets.without_objects(example) if self.evaluation else example
        if self.segments:
            # Read in an evaluation too: an image whose mask is broken is a broken example.
            known = targets.with_segments(example, segments())
            example = example if self.evaluation else known
        return example

    def _checked(self, image: Any) -> bytes | np.ndarray:
        if isinstance(image, bytes | bytearray | memoryview):
            if self.ops[0].name != "decode":
                raise InputError("preprocess: the image is encoded, so decode must be the first op")
            return image
        is_array = isinstance(image, np.ndarray)
        if not (is_array and image.dtype == np.uint8 and image.ndim in (2, 3) and image.size):
            found = f"{image.dtype}{list(image.shape)}" if is_array else type(image).__name__
            raise InputError(
                f"the image must be bytes or uint8[height, width(, channels)], not {found}"
            )
        return image[..., None] if image.ndim == 2 else image

    def __str__(self) -> str:
        """Gives the shortest string that parses to the same ops."""
        return "|".join(spell_op(op, (_OPS | _LAST_OPS)[op.name]) for op in self.ops)


def _undecoded(
    image: bytes | np.ndarray, following: Op, channels: int, max_pixels: int, shrink: bool
) -> Picture | np.ndarray:
    """What `decode` gives, but decoded only where the op that follows slices it."""
    if isinstance(image, np.ndarray):
        return image
    size = dict(following.arguments).get("size")
    least = (size if isinstance(size, tuple) else (size, size)) if shrink else None
    return Picture(bytes(image), channels, max_pixels, least)


def _check_truth(ops: tuple[Op, ...]) -> None:
    """That boxes and segments, where they are wanted, are moved with the image to the end."""
    names = [op.name for op in ops]
    truth = next((i for i, name in enumerate(names) if name in _TRUTH), None)
    if truth is not None:
        what = _TRUTH[names[truth]]
        for op in ops[:-1]:
            if op.name not in _MOVES | _STAYS | _TRUTH.keys():
                allowed = ", ".join(sorted(_MOVES | _STAYS - {"decode"}))
                raise InputError(
                    f"{op.where} cannot move {what}: beside {names[truth]} use {allowed}"
                )
        for i, op in enumerate(ops[truth + 1 : -1], truth + 1):
            if op.name not in _TRUTH or op.name in names[truth:i]:
                raise InputError(f"{op.where} cannot come after {names[i - 1]}")
            if op.name == "semantic" and "pad_segments" in names[truth:i]:
                raise InputError(f"{op.where} cannot come after pad_segments, but before it")
    pads = next((i for i, name in enumerate(names) if name in _PADS), len(ops))
    for op in ops[pads + 1 :]:
        if op.name in _MOVES - FLIPS:
            raise InputError(f"{op.where} cannot come after {names[pads]}, which pads")


def _float32(values: Any) -> np.ndarray:
    return np.asarray(values, np.float32)
