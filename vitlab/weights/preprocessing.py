"""The pictures that published weights were made for, as preprocessing strings of vitlab.

torchvision's transforms cut the longer side's length down to whole pixels and round the middle's
place half to even; transformers does the first alone, big_vision neither. A pixel's shift would be
far more than a grey level.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitlab.data.preprocess import STATISTICS, Preprocess
from vitlab.errors import InputError

IMAGENET = STATISTICS["imagenet"]
_FILTERS = {"nearest": "nearest", "bilinear": "bilinear", "bicubic": "bicubic"}
_FILTERS |= {"lanczos": "lanczos", "random": "bilinear"}
# Pillow's numbers of them.
_NUMBERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def torchvision(
    size: tuple[int, int],
    resize: int,
    interpolation: str = "bicubic",
    statistics: tuple[Sequence[float], Sequence[float]] = IMAGENET,
) -> str:
    """torchvision's evaluation: the shorter side to `resize`, the middle of `size`, normalised.

    Args:
        size: (height, width) in pixels.
        resize: of the shorter side before the crop.
        interpolation: Pillow's filter.
        statistics: mean and deviation of the channels, in units of 0 to 1.
    """
    resize = max(resize, *size)
    filters = _filter(interpolation)
    crop = f"central_crop({_size(size)},rounding='even')"
    steps = f"resize_small({resize},{filters},rounding='down')|{crop}"
    return _string(steps, statistics)


def squash(
    size: tuple[int, int],
    interpolation: str,
    statistics: tuple[Sequence[float], Sequence[float]],
    antialias: bool = True,
) -> str:
    """The whole image to `size`, whatever its aspect ratio."""
    method = _filter(interpolation) if antialias else f"'{interpolation}'"
    return _string(f"resize({_size(size)},{method})", statistics)


def timm(config: Mapping[str, Any], size: tuple[int, int]) -> str:
    """That of timm's `transforms_imagenet_eval`, for a `pretrained_cfg`. Images that are no square
    it resizes by the side that is too short and cuts; here they are squeezed.

    Args:
        config: with `crop_pct`, `crop_mode`, `interpolation`, `mean`, `std`; each may be missing.
        size: (height, width) in pixels.

    Raises:
        InputError: a crop mode that is not there.
    """
    statistics = config.get("mean", (0.5,) * 3), config.get("std", (0.5,) * 3)
    interpolation, mode = config.get("interpolation", "bicubic"), config.get("crop_mode", "center")
    scaled = [math.floor(side / config.get("crop_pct", 0.9)) for side in size]
    if mode == "squash" or size[0] != size[1]:
        crop = f"central_crop({_size(size)},rounding='even')"
        return _string(f"resize({_size(scaled)},{_filter(interpolation)})|{crop}", statistics)
    if mode == "center":
        return torchvision(size, scaled[0], interpolation, statistics)
    if mode == "border":
        # timm pads on all sides, in the mean's colour.
        return _string(f"letterbox({_size(size)},{_filter(interpolation)})", statistics)
    raise InputError(f"config.json: crop_mode {mode!r} is not one of center, squash, border")


def hugging_face(config: Mapping[str, Any], size: tuple[int, int] | None) -> str:
    """That of an image processor of transformers, for its `preprocessor_config.json`.

    Args:
        config: what the file says; older files say less, and what their class has is meant.
        size: (height, width) in pixels of other images than the file's; None: the file's own.

    Returns:
        The string; "" for what no op here does, such as a rescaling to -1 to 1 or none at all.
    """
    kind = config.get("image_processor_type") or config.get("feature_extractor_type", "")
    steps = ("do_resize", "do_rescale", "do_normalize")
    rescale = config.get("rescale_factor", 1 / 255)
    if not all(config.get(step, True) for step in steps) or abs(rescale * 255 - 1) > 1e-3:
        return ""
    wanted, crop = _wanted(config, kind), _sides(config.get("crop_size", 224))
    if not config.get("do_center_crop", "crop_size" in config):
        crop = None
    bicubic = kind.startswith(("Bit", "CLIP", "DeiT", "Siglip", "ConvNext"))
    number = config.get("resample", 3 if bicubic else 2)
    if number not in _NUMBERS:
        return ""
    filters = _filter(_NUMBERS[number])
    statistics = config.get("image_mean", (0.5,) * 3), config.get("image_std", (0.5,) * 3)
    if "longest_edge" in wanted:  # DETR's: as large as fits, on a canvas that fits all
        longest = wanted["longest_edge"]
        canvas = size or (longest, longest)
        short = wanted["shortest_edge"] * max(canvas) // longest
        return _string(f"letterbox({_size(canvas)},{filters},shortest={short})", statistics)
    if "shortest_edge" in wanted:
        short = wanted["shortest_edge"]
        own = crop or (short, short)
        if size:
            short = short * max(size) // max(own)
        size = size or own
        resized = f"resize_small({max(short, *size)},{filters},rounding='down')"
        return _string(f"{resized}|central_crop({_size(size)})", statistics)
    squashed = wanted["height"], wanted["width"]
    own = crop or squashed
    size = size or own
    squashed = tuple(side * new // old for side, new, old in zip(squashed, size, own, strict=True))
    cut = f"|central_crop({_size(size)})" if squashed != tuple(size) else ""
    return _string(f"resize({_size(squashed)},{filters}){cut}", statistics)


def own_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) of what a processor of transformers makes, where that is always the same."""
    text = hugging_face(config, None) if config else ""
    sizes = [dict(op.arguments) for op in Preprocess.parse(text).ops] if text else []
    sizes = [_sides(arguments["size"]) for arguments in sizes if "size" in arguments]
    return sizes[-1] if sizes else None


def _wanted(config: Mapping[str, Any], kind: str) -> dict[str, int]:
    """`size` as a dict of edges, or of height and width, which older files leave open."""
    wanted = config.get("size", 224)
    if isinstance(wanted, int) and "max_size" in config:
        return {"shortest_edge": wanted, "longest_edge": config["max_size"]}
    if isinstance(wanted, int):
        # By the class: the whole image squeezed, or the shorter side.
        small = kind.startswith(("Bit", "CLIP", "ConvNext"))
        return {"shortest_edge": wanted} if small else {"height": wanted, "width": wanted}
    return dict(wanted)


def _sides(size: Any) -> tuple[int, int]:
    if isinstance(size, Mapping):
        return size["height"], size["width"]
    return (size, size) if isinstance(size, int) else tuple(size)


def of_timm(default: Mapping[str, Any]):
    """`Format.preprocess` of files with timm's config.json, and what holds without one."""

    def preprocess(source, size):
        config = source.config.get("pretrained_cfg") or {}
        mode = config.get("crop_mode", "center")
        # No op here is timm's cut of images that are no square, nor its border.
        exact = mode == "squash" or (mode == "center" and size[0] == size[1])
        return timm({**default, **config}, size), "crop_pct" in config and exact

    return preprocess


def of_hugging_face(default: Mapping[str, Any]):
    """`Format.preprocess` of files with a preprocessor_config.json, and what holds without one."""

    def preprocess(source, size):
        config = source.preprocessor
        text = hugging_face(config or default, size)
        # One that is made for other images than the file's processor makes is nobody's word.
        return text, bool(text and config) and own_size(config) in (size, None)

    return preprocess


def as_timm(text: str) -> dict[str, Any]:
    """`pretrained_cfg` of a preprocessing string: mean and deviation, crop, interpolation.

    timm has nothing but Pillow's filters: `area` becomes bilinear there; see `alike`.

    Raises:
        InputError: timm has no such steps.
    """
    resize, crop, interpolation, mean, std = _parts(text)
    squashed = isinstance(resize, tuple)
    if crop and crop[0] != crop[1] and not squashed:
        raise InputError(f"timm has no cut of {crop[0]} x {crop[1]} like that of {text}")
    known = {"mean": mean, "std": std, "interpolation": interpolation}
    if crop is None:
        return known | {"crop_pct": 1.0, "crop_mode": "squash"}
    sides = list(zip(crop, resize if squashed else (resize, resize), strict=True))
    fraction = min(cut / side for cut, side in sides)
    if any(math.floor(cut / fraction) < side for cut, side in sides):  # timm rounds down
        fraction = min(cut / (side + 0.01) for cut, side in sides)
    return known | {"crop_pct": fraction, "crop_mode": "squash" if squashed else "center"}


def as_hugging_face(text: str) -> dict[str, Any]:
    """`preprocessor_config.json` of a preprocessing string; see `as_timm`."""
    resize, crop, interpolation, mean, std = _parts(text)
    number = {name: number for number, name in _NUMBERS.items()}[interpolation]
    config = {
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        "resample": number,
        "image_mean": mean,
        "image_std": std,
    }
    if isinstance(resize, tuple) and crop in (None, resize):
        size = {"height": resize[0], "width": resize[1]}
        return {**config, "image_processor_type": "ViTImageProcessor", "size": size}
    if isinstance(resize, tuple) or crop is None:
        raise InputError(f"transformers has no image processor for {text}")
    return {
        **config,
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": resize},
        "do_center_crop": True,
        "crop_size": {"height": crop[0], "width": crop[1]},
    }


def _parts(text: str) -> tuple[Any, tuple[int, int] | None, str, list[float], list[float]]:
    """Of a preprocessing string: the size after `resize` (a pair) or `resize_small` (a number), the
    crop's, the interpolation, mean and deviation of three channels in units of 0 to 1.

    Raises:
        InputError: it has other steps than a resize, and behind it perhaps a crop.
    """
    parsed = Preprocess.parse(text)
    resize, crop, interpolation = None, None, "bilinear"
    for op in parsed.ops[:-1]:
        arguments = dict(op.arguments)
        if op.name in ("resize", "resize_small") and resize is None:
            resize = arguments["size"]
            if op.name == "resize" and isinstance(resize, int):
                resize = (resize, resize)
            interpolation = arguments["method"]
        elif op.name == "central_crop" and arguments["size"] and resize and not crop:
            crop = arguments["size"]
            crop = (crop, crop) if isinstance(crop, int) else crop
        elif op.name not in ("decode", "grey_to_rgb"):
            raise InputError(
                f"{op.where} has no equal elsewhere, where images are resized and then cut"
            )
    interpolation = {"area": "bilinear"}.get(interpolation, interpolation)
    scale = np.broadcast_to(parsed.scale, 3).astype(float)
    shift = np.broadcast_to(parsed.shift, 3).astype(float)
    std = 1 / (255 * scale)
    mean = -shift * std
    return resize, crop, interpolation, *([round(float(v), 6) for v in x] for x in (mean, std))


def alike(one: str, other: str) -> bool:
    """Whether two preprocessing strings make the same pixels of any image of three channels."""
    (steps, scale, shift), theirs = _essence(one), _essence(other)
    same = np.allclose(scale, theirs[1], rtol=1e-4) and np.allclose(shift, theirs[2], atol=1e-4)
    return steps == theirs[0] and same


def _essence(text: str) -> tuple[list[Any], np.ndarray, np.ndarray]:
    """The steps that change pixels, with sizes as pairs; scale and shift."""
    parsed = Preprocess.parse(text)
    steps: list[Any] = []
    for op in parsed.ops[:-1]:
        arguments = dict(op.arguments)
        if arguments.get("size") is not None and op.name != "resize_small":
            arguments["size"] = _sides(arguments["size"])
        whole = op.name == "central_crop" and steps and steps[-1][0] == "resize"
        if op.name in ("decode", "grey_to_rgb") or (
            whole and steps[-1][1]["size"] == arguments["size"]
        ):
            continue
        steps.append((op.name, arguments))
    return steps, parsed.scale, parsed.shift


def _filter(interpolation: str) -> str:
    """Arguments of `resize`: Pillow's filter."""
    if interpolation not in _FILTERS:
        raise InputError(f"interpolation {interpolation!r} is not one of {', '.join(_FILTERS)}")
    method = _FILTERS[interpolation]
    return f"'{method}'" + ",antialias=True" * (method in ("bilinear", "bicubic"))


def _size(size: Sequence[int]) -> str:
    return f"({size[0]},{size[1]})" if size[0] != size[1] else f"{size[0]}"


def _string(steps: str, statistics: tuple[Sequence[float], Sequence[float]]) -> str:
    mean, std = (tuple(float(value) for value in values) for values in statistics)
    names = [name for name, values in STATISTICS.items() if values == (mean, std)]
    if {*mean, *std} == {0.5}:
        last = "value_range(-1,1)"
    else:
        last = f"normalize('{names[0]}')" if names else f"normalize(mean={mean},std={std})"
    return str(Preprocess.parse(f"decode|{steps}|{last}"))
