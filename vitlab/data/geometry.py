"""Host-side geometry of an image together with the boxes of its objects.

An op here takes an example and gives a new one, whose boxes are where their objects now are. An
example without boxes is changed alike. While boxes travel with it, an example has

    boxes: f64[objects, 4], x0, y0, x1, y1 in pixels of the image as it now is, clipped to it
    affine: f64[4], scale and offset (x, y) that lead from the original image to this one:
        now = original * scale + offset
    content: (height, width) of what is image and not padding, from the upper left corner; only
        after an op that pads
"""

import dataclasses
from typing import Annotated

import numpy as np

from vitlab.data.annotations import Annotation
from vitlab.data.arguments import Between, Method, Probability, Side, Size
from vitlab.data.resize import resize as resize_image
from vitlab.errors import InputError

Scale = Annotated[float, Between(0.01, 10)]


def with_boxes(example: dict, objects: Annotation) -> dict:
    """The example with the boxes of its objects, at the original size.

    Raises:
      InputError: the image has another size than the annotation says.
    """
    height, width = example["image"].shape[:2]
    if (height, width) != (objects.height, objects.width):
        raise InputError(
            f"the image has {width} x {height} pixels but its annotation says "
            f"{objects.width} x {objects.height}"
        )
    affine = np.array([1.0, 1.0, 0.0, 0.0])
    return {**example, "objects": objects, "boxes": objects.boxes, "affine": affine}


def without_objects(example: dict) -> dict:
    """The example as one without any object."""
    none = slice(0, 0)
    objects: Annotation = example["objects"]
    fewer = {key: getattr(objects, key)[none] for key in ("boxes", "labels", "crowd")}
    objects = dataclasses.replace(objects, **fewer)
    return {**example, "objects": objects, "boxes": example["boxes"][none]}


def resize(example: dict, size: Size, method: Method = "bilinear", antialias: bool = False) -> dict:
    """Resizes to `size`, whatever the aspect ratio. See `vitlab.data.resize.resize`."""
    height, width = example["image"].shape[:2]
    image = resize_image(example["image"], size, method, antialias)
    return _moved(example, image, (image.shape[1] / width, image.shape[0] / height))


def flip_lr(example: dict, rng: np.random.Generator, p: Probability = 0.5) -> dict:
    """Mirrors the image left to right with probability `p`; padding stays where it is."""
    if rng.random() >= p:
        return example
    image = example["image"]
    width = example.get("content", image.shape)[1]
    mirrored = np.concatenate([image[:, :width][:, ::-1], image[:, width:]], axis=1)
    return _moved(example, mirrored, (-1.0, 1.0), (float(width), 0.0))


def letterbox(
    example: dict, size: Size, method: Method = "bilinear", antialias: bool = True
) -> dict:
    """Resizes to the largest size that fits, and pads on the right and below with black.

    Args:
      example: with or without boxes.
      size: of the canvas: the side of a square, or (height, width), in pixels.
      method, antialias: see `vitlab.data.resize.resize`.
    """
    return _on_canvas(example, _pair(size), 1.0, (0.0, 0.0), method, antialias)


def scale_jitter(
    example: dict,
    rng: np.random.Generator,
    size: Size,
    low: Scale = 0.1,
    high: Scale = 2.0,
    method: Method = "bilinear",
    antialias: bool = True,
) -> dict:
    """Large-scale jitter (Ghiasi et al., 2012.07177): a letterbox of a random scale.

    A larger image is cut to the canvas at a random place, a smaller one is padded. The plain
    `letterbox` has the scale 1.

    Args:
      example: with or without boxes.
      rng: the example's random numbers.
      size: of the canvas: the side of a square, or (height, width), in pixels.
      low: the least scale.
      high: the greatest.
      method, antialias: see `vitlab.data.resize.resize`.
    """
    scale, *place = rng.uniform(low, high), rng.random(), rng.random()
    return _on_canvas(example, _pair(size), scale, place, method, antialias)


def random_size_crop(
    example: dict,
    rng: np.random.Generator,
    least: Side = 384,
    greatest: Side = 600,
    shortest: Side | tuple[Side, ...] = (400, 500, 600),
    p: Probability = 0.5,
    method: Method = "bilinear",
    antialias: bool = True,
) -> dict:
    """DETR's crop (2005.12872, appendix A.4): with probability `p` a piece of random sides.

    The image is first resized so that its shorter side is one of `shortest`. An object of which
    nothing remains is left out, one that is cut keeps the box of its rest.

    Args:
      example: with or without boxes.
      rng: the example's random numbers.
      least: of the piece's sides, in pixels.
      greatest: of the piece's sides, or the image's side where that is shorter.
      shortest: lengths to choose from.
      p: how often.
      method, antialias: see `vitlab.data.resize.resize`.
    """
    if rng.random() >= p:
        return example
    choices = shortest if isinstance(shortest, tuple) else (shortest,)
    height, width = example["image"].shape[:2]
    scale = choices[rng.integers(len(choices))] / min(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    example = resize(example, size, method, antialias)
    sides = [int(rng.integers(min(side, least), min(side, greatest) + 1)) for side in size]
    top, left = (int(rng.integers(side - new + 1)) for side, new in zip(size, sides, strict=True))
    piece = example["image"][top : top + sides[0], left : left + sides[1]]
    return _moved(example, piece, offset=(-float(left), -float(top)))


def check_scale_jitter(low: float, high: float, **_) -> None:
    """Checks what no argument of `scale_jitter` can tell alone.

    Raises:
      InputError: the least value is greater than the greatest.
    """
    if low > high:
        raise InputError(f"needs low <= high, not {low:g} and {high:g}")


def check_random_size_crop(least: int, greatest: int, **_) -> None:
    """Checks what no argument of `random_size_crop` can tell alone.

    Raises:
      InputError: the least value is greater than the greatest.
    """
    if least > greatest:
        raise InputError(f"needs least <= greatest, not {least} and {greatest}")


def pad_boxes(example: dict, max_boxes: Annotated[int, Between(1, 10_000)]) -> dict:
    """Makes arrays of one shape of the boxes: what a detector is trained with.

    Crowds, and boxes of which the geometry has left nothing, are left out.

    Args:
      example: has boxes.
      max_boxes: the rows of the arrays.

    Returns:
      The example with
        boxes: f32[max_boxes, 4], x0, y0, x1, y1 in pixels, those of objects first
        box_label: i32[max_boxes], the index of the class name
        box_mask: bool[max_boxes], true for objects
        affine: f32[4], see above
        content: i32[2], see above, where an op has padded.

    Raises:
      InputError: the image has more objects.
    """
    objects: Annotation = example["objects"]
    boxes = example["boxes"]
    kept = ~objects.crowd & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    count = int(kept.sum())
    if count > max_boxes:
        raise InputError(
            f"pad_boxes({max_boxes}): the image has {count} objects: make room for the most that "
            "an image has"
        )
    padded = {
        "boxes": np.zeros((max_boxes, 4), np.float32),
        "box_label": np.zeros(max_boxes, np.int32),
        "box_mask": np.arange(max_boxes) < count,
        "affine": example["affine"].astype(np.float32),
    }
    padded["boxes"][:count] = boxes[kept]
    padded["box_label"][:count] = objects.labels[kept]
    if "content" in example:
        padded["content"] = np.array(example["content"], np.int32)
    rest = {key: value for key, value in example.items() if key not in ("objects", *padded)}
    return {**rest, **padded}


def _on_canvas(example, canvas, scale, place, method, antialias) -> dict:
    """Resizes by `scale` times what fits the canvas, then cuts at `place` (0 to 1) or pads."""
    height, width = example["image"].shape[:2]
    fit = scale * min(canvas[0] / height, canvas[1] / width)
    example = resize(
        example, (max(1, round(height * fit)), max(1, round(width * fit))), method, antialias
    )
    image = example["image"]
    beyond = [max(side - room, 0) for side, room in zip(image.shape, canvas, strict=False)]
    top, left = (round(p * (extra)) for p, extra in zip(place, beyond, strict=True))
    image = image[top : top + canvas[0], left : left + canvas[1]]
    example = _moved(example, image, offset=(-float(left), -float(top)))
    lacking = [(0, room - side) for side, room in zip(image.shape, canvas, strict=False)]
    example["content"] = image.shape[:2]
    return {**example, "image": np.pad(image, [*lacking, (0, 0)])}


def _moved(example: dict, image: np.ndarray, scale=(1.0, 1.0), offset=(0.0, 0.0)) -> dict:
    """The example with another image, on which a point is at old (x, y) * scale + offset."""
    moved = {**example, "image": image}
    if "boxes" in example:
        scale, offset = np.array(scale), np.array(offset)
        corners = example["boxes"].reshape(-1, 2, 2) * scale + offset
        height, width = moved.get("content", image.shape)[:2]
        corners = np.sort(corners, axis=1).clip(0, [width, height])
        moved["boxes"] = corners.reshape(-1, 4)
        before = example["affine"]
        moved["affine"] = np.concatenate([before[:2] * scale, before[2:] * scale + offset])
    return moved


def _pair(size: Side | tuple[Side, Side]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)
