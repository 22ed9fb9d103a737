"""A trained model on any image: files, arrays or Pillow images to predictions."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vitlab.data.decode import MAX_PIXELS, decode, pixels_of
from vitlab.data.folders import read_file
from vitlab.data.image_ops import grey_to_rgb, to_grey
from vitlab.data.op_strings import Op
from vitlab.data.preprocess import Preprocess
from vitlab.deploy.model import Model
from vitlab.errors import InputError
from vitlab.tasks.predictions import Prediction

# A file, encoded bytes, pixels uint8[height, width(, 1 or 3)], or a Pillow image of any mode.
Picture = os.PathLike | str | bytes | np.ndarray | Image.Image
Augmentation = Literal["flip"]
_END = object()  # of the pictures


class Predicted(NamedTuple):
    """What became of one picture.

    Attributes:
        picture: as it was given.
        image: its pixels uint8[height, width, channels], upright; None if it cannot be read.
        prediction: what the model says, or why it says nothing.
    """

    picture: Picture
    image: np.ndarray | None
    prediction: Prediction | InputError


class Predictor:
    """What a run has learned, applied: `vitlab.load("runs/flowers").predict("rose.jpg")`.

    Attributes:
        model: the model, its preprocessing and its classes.
        preprocess: of the images.
        channels: of the images that the preprocessing takes: 1 or 3.
        max_pixels: the most pixels that a file's image may have.

    Raises:
        InputError: the preprocessing is wrong, random, or not for this model.
    """

    def __init__(self, model: Model, max_pixels: int = MAX_PIXELS):
        self.model, self.max_pixels = model, max_pixels
        self.preprocess = model.parsed()
        self.channels = model.channels()
        self._variables = jax.device_put(model.variables, jax.devices()[0])
        task = model.task

        def predict(variables, batch):
            return task.predict(variables, batch, self._normalize)

        self._predict = jax.jit(predict)

    def predict(
        self, pictures: Picture | Sequence[Picture], tta: Augmentation | None = None
    ) -> Prediction | list[Prediction]:
        """Predictions of one picture, or of each of a list.

        Args:
            pictures: one or several, of any sizes.
            tta: test-time augmentation; `flip` also looks at the mirrored image.

        Raises:
            InputError: one of them cannot be read, or is nothing that the model can take.
        """
        several = isinstance(pictures, list | tuple)
        found = []
        for each in self.stream(pictures if several else [pictures], 8 if several else 1, tta):
            if isinstance(each.prediction, InputError):
                raise each.prediction
            found.append(each.prediction)
        return found if several else found[0]

    def outputs(self, pictures: Sequence[Picture]) -> dict[str, np.ndarray]:
        """What the task's `predict` gives, of pictures that the preprocessing makes of one size."""
        rng = np.random.default_rng(0)
        rows = [self.preprocess({"image": self.pixels(each)}, rng) for each in pictures]
        return self._outputs(rows)

    def stream(
        self,
        pictures: Iterable[Picture],
        batch_size: int = 8,
        tta: Augmentation | None = None,
    ) -> Iterator[Predicted]:
        """What `predict` gives, one after the other and in order, of as many as there are.

        Files are read and prepared by threads ahead of the model. Pictures that the preprocessing
        makes of one size share a batch. A broken picture has an error in its place.

        Raises:
            InputError: a batch of no size, or an augmentation that there is not.
        """
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size} but must be 1 or more")
        if tta not in (None, "flip"):
            raise InputError(f"tta is {tta!r}: it is 'flip' or None")
        views = [self.preprocess, *([_mirrored(self.preprocess)] if tta == "flip" else [])]
        if len(views) > self.model.task.views:
            raise InputError(
                f"tta='{tta}': two views of an image cannot be put together where each query is a "
                f"segment, as in {self.model.task_name}"
            )
        return self._streamed(pictures, batch_size, views)

    def _streamed(self, pictures, batch_size: int, views) -> Iterator[Predicted]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            waiting: list[Future] = []
            ready: list[tuple[Picture, np.ndarray | None, Any]] = []
            iterator = iter(pictures)
            while True:
                while len(waiting) < 2 * batch_size:
                    picture = next(iterator, _END)
                    if picture is _END:
                        break
                    waiting.append(pool.submit(self._prepared, picture, views))
                if not waiting:
                    break
                ready.append(waiting.pop(0).result())
                shapes = {_shape(seen) for _, _, seen in ready if not isinstance(seen, InputError)}
                if len(shapes) > 1:
                    yield from self._batch(ready[:-1], batch_size)
                    ready = ready[-1:]
                elif len(ready) == batch_size:
                    yield from self._batch(ready, batch_size)
                    ready = []
            yield from self._batch(ready, batch_size)

    def _prepared(self, picture: Picture, views: Sequence[Preprocess]):
        """The picture, its pixels, and what the model sees of it in each view, or an error."""
        image = None
        try:
            image = self.pixels(picture)
            rng = np.random.default_rng(0)
            seen = [view({"image": image}, rng) for view in views]
            self._check_size(seen[0]["image"])
            return picture, image, seen
        except InputError as error:
            return picture, image, _named(picture, error)

    def pixels(self, picture: Picture) -> np.ndarray:
        """A picture as uint8[height, width, channels], upright.

        Raises:
            InputError: it is no image, damaged or too large.
        """
        if isinstance(picture, Image.Image):
            try:
                return pixels_of(picture, self.channels)
            except InputError:
                raise
            except Exception as error:  # Pillow reads a file's pixels only now.
                raise InputError(f"the image is damaged or cut short: {error}") from None
        if isinstance(picture, bytes):
            return decode(picture, self.channels, self.max_pixels)
        if isinstance(picture, os.PathLike | str):
            data = read_file(os.fspath(pathlib.Path(picture).expanduser()))
            return decode(data, self.channels, self.max_pixels)
        image = np.asarray(picture)
        image = image[..., None] if image.ndim == 2 else image
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
            raise InputError(
                f"a picture {image.dtype}{list(np.shape(picture))} must be uint8[height, width] or "
                "uint8[height, width, 1 or 3], a file, or a Pillow image"
            )
        return grey_to_rgb(image) if self.channels == 3 else to_grey(image)

    def _check_size(self, image: np.ndarray) -> None:
        """That a preprocessing which leaves images as large as they are got some of the right size.

        A model may take others, but seldom as well; and a photograph is a thousand times what a
        model of small images can hold.
        """
        size = self.model.image_size
        if size and not self.preprocess.resizes and image.shape[:2] != size:
            height, width = size
            ops = str(self.preprocess).split("|")
            first = [ops.pop(0)] if ops[0].startswith("decode") else ["decode"]
            fit = "|".join([*first, f"resize(({height},{width}))", *ops])
            raise InputError(
                f"the image is {image.shape[1]} x {image.shape[0]}, but the model was trained on "
                f"{width} x {height} and its preprocessing leaves the size as it is: {fit} would "
                "make it fit"
            )

    def _normalize(self, images: jax.Array) -> jax.Array:
        return images.astype(jnp.float32) * self.preprocess.scale + self.preprocess.shift

    def _batch(self, ready, batch_size: int) -> Iterator[Predicted]:
        """Runs the model on what can be read of some pictures of one shape."""
        good = [each for each in ready if not isinstance(each[2], InputError)]
        found: Iterator[Prediction | InputError] = iter(())
        if good:
            found = iter(self._each(good, batch_size))
        for picture, image, seen in ready:
            error = isinstance(seen, InputError)
            yield Predicted(picture, image, seen if error else next(found))

    def _outputs(self, rows) -> dict[str, np.ndarray]:
        batch = {key: np.stack([np.asarray(row[key]) for row in rows]) for key in rows[0]}
        return jax.device_get(self._predict(self._variables, batch))

    def _each(self, ready, batch_size: int) -> list[Prediction | InputError]:
        """Predictions; where one cannot be made, the error of that picture alone."""
        try:
            return self._predictions(ready, batch_size)
        except InputError as error:
            if len(ready) == 1:
                return [_named(ready[0][0], error)]
            return [found for each in ready for found in self._each([each], batch_size)]

    def _predictions(self, ready, batch_size: int) -> list[Prediction]:
        outputs = []
        for view in range(len(ready[0][2])):
            rows = [seen[view] for _, _, seen in ready]
            # Always as many, so that a last batch is not compiled by itself.
            rows += rows[:1] * (batch_size - len(rows))
            outputs.append(self._outputs(rows))
        sizes = [image.shape[:2] for _, image, _ in ready]
        outputs = [{key: rows[: len(ready)] for key, rows in each.items()} for each in outputs]
        return self.model.task.predictions(outputs, sizes, self.model.things)


def _named(picture: Picture, error: InputError) -> InputError:
    """The error with the name of the picture, where it has one."""
    name = os.fspath(picture) if isinstance(picture, os.PathLike | str) else ""
    named = not name or str(error).startswith(f"{name}:")
    return error if named else InputError(f"{name}: {error}")


def _mirrored(preprocess: Preprocess) -> Preprocess:
    """With a mirror before the ops that end it."""
    last = [op for op in preprocess.ops if op.name in _LAST]
    before = [op for op in preprocess.ops[:-1] if op.name not in _LAST]
    mirror = Op("flip_lr", (("p", 1.0),), 0)
    return dataclasses.replace(preprocess, ops=(*before, mirror, *last, preprocess.ops[-1]))


_LAST = ("pad_boxes", "semantic", "pad_segments")


def _shape(seen: Sequence[dict[str, Any]]) -> tuple:
    return tuple(np.shape(view["image"]) for view in seen)
