"""A preprocessing string as a JAX function, to be part of an exported model.

The host's ops (`vitlab.data.preprocess`) take an image of one size; here they become a function of
uint8 images of any one size, which is not known when it is compiled. Every op that moves pixels is
a resize, a cut or a frame, so that a chain of them is one matrix for the rows and one for the
columns (`vitlab.ops.resampling`), whose entries are computed from the size.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from vitlab.data.preprocess import Preprocess
from vitlab.errors import InputError
from vitlab.ops.channels import grey_to_rgb, to_grey
from vitlab.ops.resampling import kind_of, resample, resampling_weights

# Ops that do nothing to the pixels of an image that is there already.
_NOTHING = frozenset({"decode", "pad_boxes", "semantic", "pad_segments"})


@dataclasses.dataclass(frozen=True)
class _Side:
    """One side of an image on its way: resized to `new`, and seen from `start` on for `seen`.

    Attributes:
        old, new: lengths f32[], the new one maybe computed.
        start: f32[], the first new pixel that is seen; negative where there is a frame before it.
        seen: how many pixels are, or None: all.
        fixed: `new` where it is known beforehand.
        least: the least that `new` can be, where that is known.
    """

    old: Any
    new: Any
    start: Any = 0.0
    seen: int | None = None
    fixed: int | None = None
    least: int | None = None

    @property
    def length(self) -> int | None:
        """Of what is seen, where it is known beforehand."""
        return self.fixed if self.seen is None else self.seen


class DevicePreprocess:
    """`(images, rows, columns) -> batch`, what `Preprocess` and `Split` do on the host.

    Attributes:
        channels: of the images that come in.
        size: (height, width) that the images must have, or None: any.

    Args:
        preprocess: the string's.
        channels: of the images that the model takes.
        size: (height, width) of what the model sees, where no op of the string says so.

    Raises:
        InputError: an op that it cannot do; or, when it is called, images of no certain size.
    """

    def __init__(self, preprocess: Preprocess, channels: int, size: tuple[int, int]):
        self._ops = [op for op in preprocess.ops[:-1] if op.name not in _NOTHING]
        for op in self._ops:
            if op.name not in (*_COLOURS, *_MOVES):
                raise InputError(
                    f"the preprocessing has {op.name}, which an exported model cannot do: it can "
                    f"{', '.join((*_COLOURS, *_MOVES))}"
                )
        colours = [op.name for op in self._ops if op.name in _COLOURS]
        first = {"to_grey": 3, "grey_to_rgb": 1}.get(colours[0], channels) if colours else channels
        decode = dict(preprocess.ops[0].arguments) if preprocess.ops[0].name == "decode" else {}
        self.channels = decode.get("channels", first)
        moves = [op for op in self._ops if op.name in _MOVES]
        self.size = None if moves else size
        self._pads = any(op.name in ("letterbox", "pad") for op in moves)
        self._place = preprocess.boxes or preprocess.segments

    def __call__(self, images: Array, rows: Array, columns: Array) -> dict[str, Array]:
        """What the model takes.

        Args:
            images: u8[batch, height, width, channels].
            rows, columns: 0, 1, ...: f32[height], f32[width].

        Returns:
            `image` f32[batch, *size, channels], grey levels of 0 to 255, not normalized; and for a
            string of boxes or segments `affine` f32[batch, 4], and where it pads `content`
            i32[batch, 2].
        """
        pixels = images.astype(jnp.float32)
        places, scale, offset = [rows, columns], [1.0, 1.0], [0.0, 0.0]  # rows first
        sides = [_whole(rows), _whole(columns)]
        kind = "nearest"

        def flush():
            """Makes the pixels of what was asked for so far."""
            nonlocal pixels, places, sides
            weights = []
            for i, side in enumerate(sides):
                if side.length is None:
                    raise InputError(
                        "the preprocessing gives images of no certain size, which an exported "
                        "model cannot have: let it end in resize, central_crop, letterbox or pad"
                    )
                new = jnp.arange(side.length, dtype=jnp.float32) + side.start
                weights.append(resampling_weights(new, places[i], side.old, side.new, kind))
                factor = side.new / side.old
                scale[i], offset[i] = scale[i] * factor, offset[i] * factor - side.start
                contents[i] = jnp.clip(side.new - side.start, 0, side.length)
            pixels = resample(pixels, *weights, kind)
            places = [jnp.arange(side.length, dtype=jnp.float32) for side in sides]
            sides = [_Side(float(n), float(n), fixed=n, least=n) for n in pixels.shape[1:3]]

        contents: list[Any] = [None, None]
        waiting = False
        for op in self._ops:
            arguments = dict(op.arguments)
            if op.name in _COLOURS:
                pixels = _COLOURS[op.name](pixels)
                continue
            cut = any(side.seen is not None for side in sides)
            if waiting and (op.name in _RESIZES or (op.name == "pad" and cut)):
                flush()
            if op.name in _RESIZES:
                kind = kind_of(arguments["method"], arguments["antialias"])
            sides, waiting = _MOVES[op.name](sides, **arguments), True
        if waiting:
            flush()
        batch = {"image": pixels}
        if self._place:
            like = jnp.zeros_like(pixels[:, 0, 0, :1])  # f32[batch, 1]
            place = [scale[1], scale[0], offset[1], offset[0]]
            batch["affine"] = jnp.concatenate([like + x for x in place], axis=1)
            if self._pads:
                content = [like + x for x in contents]
                batch["content"] = jnp.concatenate(content, axis=1).astype(jnp.int32)
        return batch


def _whole(places: Array) -> _Side:
    length = places.max() + 1.0
    return _Side(length, length)


def _resized(sides, new, fixed=(None, None)) -> list[_Side]:
    return [_Side(s.old, n, fixed=f, least=f) for s, n, f in zip(sides, new, fixed, strict=True)]


def _resize(sides, size, **_) -> list[_Side]:
    size = _pair(size)
    return _resized(sides, [float(n) for n in size], size)


def _resize_small(sides, size, rounding="nearest", **_) -> list[_Side]:
    old = [side.old for side in sides]
    short, long = jnp.minimum(*old), jnp.maximum(*old)
    if rounding == "down":
        # Half a unit above a quotient of whole numbers, which never reaches the next one.
        long = jnp.floor((size * long + 0.5) / short)
    else:
        long = jnp.maximum(jnp.round(long * (size / short)), size)
    new = [jnp.where(side == short, float(size), long) for side in old]
    return [dataclasses.replace(side, least=size) for side in _resized(sides, new)]


def _central_crop(sides, size=None, rounding="down") -> list[_Side]:
    if size is None:
        known = [side.length for side in sides]
        if None in known:
            raise InputError("central_crop needs a size to be part of an exported model")
        size = min(known)
    _check_room("central_crop", sides, _pair(size))
    half = jnp.round if rounding == "even" else jnp.floor
    return [
        dataclasses.replace(side, start=side.start + half((_length(side) - n) / 2), seen=n)
        for side, n in zip(sides, _pair(size), strict=True)
    ]


def _whole_patches(sides, size) -> list[_Side]:
    known = [side.length for side in sides]
    if None in known:
        raise InputError("whole_patches needs a resize before it to be part of an exported model")
    return [
        dataclasses.replace(side, seen=n // size * size)
        for side, n in zip(sides, known, strict=True)
    ]


def _letterbox(sides, size, shortest=None, **_) -> list[_Side]:
    canvas, old = _pair(size), [side.old for side in sides]
    if shortest is None:
        fit = jnp.minimum(*(room / side for room, side in zip(canvas, old, strict=True)))
        new = [jnp.maximum(jnp.round(side * fit), 1.0) for side in old]
    else:
        short, long = jnp.minimum(*old), jnp.maximum(*old)
        fit = jnp.minimum(*(room * short / side for room, side in zip(canvas, old, strict=True)))
        short_side = jnp.minimum(float(shortest), fit)
        of_long = jnp.maximum(jnp.floor(short_side * long / short + 1e-3), 1.0)
        of_short = jnp.maximum(jnp.round(short_side), 1.0)
        # A square has both sides short, but the width is computed as the long one.
        tall = old[0] > old[1]
        new = [jnp.where(tall, of_long, of_short), jnp.where(tall, of_short, of_long)]
    return _framed(_resized(sides, new), canvas)


def _pad(sides, size) -> list[_Side]:
    if any(side.fixed is None for side in sides):
        raise InputError("pad needs a resize before it to be part of an exported model")
    for side, room in zip(sides, _pair(size), strict=True):
        if side.fixed > room:
            raise InputError(f"pad({room}) is less than the {side.fixed} pixels before it")
    return _framed(sides, size)


def _check_room(name: str, sides, size) -> None:
    """That a cut is always within the image, as the host would check it for each."""
    for side, n in zip(sides, size, strict=True):
        if side.length is None and side.least is None:
            raise InputError(f"{name} needs a resize before it to be part of an exported model")
        if n > (side.length or side.least):
            raise InputError(f"{name}({n}) is more than what is there before it")


def _framed(sides, size) -> list[_Side]:
    return [dataclasses.replace(side, seen=n) for side, n in zip(sides, _pair(size), strict=True)]


def _length(side: _Side) -> Any:
    return side.new if side.seen is None else float(side.seen)


def _pair(size: Any) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


_COLOURS: dict[str, Callable] = {"grey_to_rgb": grey_to_rgb, "to_grey": to_grey}
_MOVES: dict[str, Callable] = {
    "resize": _resize,
    "resize_small": _resize_small,
    "central_crop": _central_crop,
    "whole_patches": _whole_patches,
    "letterbox": _letterbox,
    "pad": _pad,
}
_RESIZES = ("resize", "resize_small", "letterbox")
