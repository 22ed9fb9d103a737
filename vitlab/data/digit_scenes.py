"""Scenes of handwritten digits as a TFDS data set: 64 x 64 in colour, 1 to 5 digits in each.

Real digits, scikit-learn's, are painted 10 to 40 pixels high on textured backgrounds. The
scenes for testing are of other digits than those for training. Boxes are tight around the pixels of
a digit that are seen, to the pixel. Everything is drawn from fixed seeds: no network, no files.
"""

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from vitlab.data.digits import split_digits
from vitlab.data.embedded import EmbeddedBuilder, png

SIZE = 64
_SCENES = {"train": 8000, "test": 1000}
_DESCRIPTION = "1 to 5 handwritten digits on a textured background, with boxes and masks."


class DigitScenes(EmbeddedBuilder):
    """Builds the splits train (8000) and test (1000), the same every time.

    `instances` holds at each pixel the number of the object, from 1 in the order of `objects`, and
    0 for the background; `semantic` the digit plus one.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        def image(channels):
            return tfds.features.Image(shape=(SIZE, SIZE, channels), encoding_format="png")

        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": image(3),
                    "image/id": np.int64,
                    "objects": tfds.features.Sequence(
                        {
                            "bbox": tfds.features.BBoxFeature(),
                            "label": tfds.features.ClassLabel(num_classes=10),
                            "area": np.int64,
                        }
                    ),
                    "instances": image(1),
                    "semantic": image(1),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        train, test = split_digits()
        return {
            "train": self._generate_examples("train", train, seed=1),
            "test": self._generate_examples("test", test, seed=2),
        }

    def _generate_examples(self, split, indices, seed) -> Iterator[tuple[int, dict]]:
        digits = load_digits()
        ink = digits.images[indices].astype(np.float32) / 16
        for index in range(_SCENES[split]):
            rng = np.random.default_rng([seed, index])
            image, instances, labels = draw_scene(rng, ink, digits.target[indices])
            objects = []
            for number, label in enumerate(labels, 1):
                rows, columns = np.nonzero(instances == number)
                sides = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
                box = tfds.features.BBox(*(float(side) / SIZE for side in sides))
                objects.append({"bbox": box, "label": int(label), "area": len(rows)})
            semantic = np.array([0, *(label + 1 for label in labels)], np.uint8)[instances]
            yield (
                index,
                {
                    "image": png(image),
                    "image/id": index + 1,
                    "objects": objects,
                    "instances": png(instances),
                    "semantic": png(semantic),
                },
            )


def draw_scene(
    rng: np.random.Generator, ink: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Draws one scene.

    Args:
        rng: of all its draws.
        ink: f32[digits, 8, 8] in 0 to 1.
        labels: int[digits].

    Returns:
        The image uint8[64, 64, 3]; which object each pixel belongs to, uint8[64, 64], 0 for none;
        the label of each object.
    """
    paper = rng.uniform(0.1, 0.9, 3)
    image = paper + _texture(rng, 4) * rng.uniform(0.02, 0.12) + _texture(rng, 16) * 0.04
    image += rng.normal(0, 0.02, image.shape)
    instances, found = np.zeros((SIZE, SIZE), np.uint8), []
    taken: list[tuple[int, int, int, int]] = []
    wanted = rng.integers(1, 6)
    for _ in range(40):  # tries; a crowded scene may end with fewer than were wanted
        if len(found) == wanted:
            break
        which = rng.integers(len(ink))
        alpha = _resized(ink[which], rng)
        height, width = alpha.shape
        top, left = rng.integers(SIZE - height + 1), rng.integers(SIZE - width + 1)
        box = (top, left, top + height, left + width)
        if any(_overlap(box, other) > 0.15 for other in taken):
            continue
        here = image[top : top + height, left : left + width]
        # Any tint, at a brightness that stands out from the paper's.
        away = rng.uniform(0.35, 0.6) * (1 if rng.random() > here.mean() else -1)
        color = (here.mean() + away + rng.uniform(-0.2, 0.2, 3)).clip(0, 1)
        alpha = alpha[..., None] * rng.uniform(0.8, 1.0)
        here[:] = here * (1 - alpha) + color * alpha
        taken.append(box)
        found.append(int(labels[which]))
        instances[top : top + height, left : left + width][alpha[..., 0] > 0.4] = len(found)
    return (image.clip(0, 1) * 255).round().astype(np.uint8), instances, found


def _resized(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """f32[height, width] of a digit of random size, cut to what is inked."""
    size = round(float(np.exp(rng.uniform(np.log(12), np.log(40)))))
    width = max(8, round(size * rng.uniform(0.8, 1.2)))
    picture = Image.fromarray(digit).resize((width, size), Image.Resampling.BICUBIC)
    alpha = np.asarray(picture).clip(0, 1)
    rows, columns = np.nonzero(alpha > 0.4)
    return alpha[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def _texture(rng: np.random.Generator, cells: int) -> np.ndarray:
    """f64[64, 64, 3]: smooth noise with `cells` bumps a side."""
    planes = rng.normal(size=(3, cells, cells)).astype(np.float32)
    method = Image.Resampling.BICUBIC
    planes = [np.asarray(Image.fromarray(p).resize((SIZE, SIZE), method)) for p in planes]
    return np.stack(planes, axis=-1).astype(np.float64)


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """The part of the smaller box that both cover."""
    rows = min(a[2], b[2]) - max(a[0], b[0])
    columns = min(a[3], b[3]) - max(a[1], b[1])
    if rows <= 0 or columns <= 0:
        return 0.0
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return rows * columns / min(areas)
