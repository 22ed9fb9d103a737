"""Pictures of nothing, in the place of a data set that is not on this machine."""

import io
from typing import Any, Literal

import numpy as np
from PIL import Image

from vitlab.data.annotations import Annotation
from vitlab.data.segments import Segments
from vitlab.data.splits import Range

Truth = Literal["label", "objects", "segments"]
# Width and height in pixels of a common photograph of ImageNet, and how many of them there are.
WIDTH, HEIGHT = 500, 375
EXAMPLES = 1_281_167
# Objects in an image of COCO, on average.
_OBJECTS = 7


class StandIn:
    """A source (`vitlab.data.sources.Source`) of JPEG files of 500 x 375 pixels, smooth noise.

    Args:
        truth: what is known of each image: its label; seven objects; or five segments.
        classes: how many there are; 0 of images without labels.
        mnist: whether the images are not such files but uint8[28, 28], as `idx:` has them, with
            labels.
    """

    def __init__(self, truth: Truth, classes: int, mnist: bool = False):
        self.class_names = tuple(f"class {i}" for i in range(classes))
        self.segment_names, self.things = self.class_names, (True,) * classes
        self.category_ids = tuple(range(1, classes + 1))
        self.ranges = (Range("train", 0, EXAMPLES),)
        self._truth: Truth = truth
        self._images = [_digit(seed) if mnist else _jpeg(seed) for seed in range(8)]

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> dict[str, Any]:
        example: dict[str, Any] = {"image": self._images[index % len(self._images)]}
        if self._truth == "objects":
            return {**example, "objects": self.annotation(index)}
        if self._truth == "segments":
            return {**example, "segments": lambda: self.segments(index)}
        return {**example, "label": index % max(len(self.class_names), 1)}

    def describe(self, index: int) -> str:
        """Its place."""
        return f"stand-in[{index}]"

    def annotation(self, index: int) -> Annotation:
        """Boxes of many sizes, of any classes."""
        rng = np.random.default_rng(index)
        size = np.array([WIDTH, HEIGHT], np.float64)
        low = rng.uniform(0, 0.7, (_OBJECTS, 2)) * size
        high = low + rng.uniform(0.1, 0.3, (_OBJECTS, 2)) * size
        none = np.zeros(_OBJECTS, bool)
        labels = self._labels(rng, _OBJECTS)
        boxes = np.concatenate([low, high], axis=1)
        area = np.prod(high - low, axis=1)
        return Annotation(index, WIDTH, HEIGHT, boxes, labels, none, none, area)

    def segments(self, index: int) -> Segments:
        """Five upright stripes."""
        stripes = np.arange(WIDTH, dtype=np.int32) * 5 // WIDTH
        labels = self._labels(np.random.default_rng(index), 5)
        return Segments(np.tile(stripes, (HEIGHT, 1)), labels, np.zeros(5, bool))

    def _labels(self, rng: np.random.Generator, number: int) -> np.ndarray:
        return rng.integers(0, len(self.class_names), number, np.int32)


def _jpeg(seed: int) -> bytes:
    """About 90 kB: as smooth as a photograph, since noise of single pixels takes long to decode."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    grain = rng.integers(-12, 13, (HEIGHT, WIDTH, 1))
    pixels = np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def _digit(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (28, 28), np.uint8)
