"""One pass over a split, in order and on the devices: every example of it exactly once."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import flax.errors
import jax
import numpy as np
from jax.sharding import Mesh

from vitlab.data.annotations import Annotation
from vitlab.data.decode import decode
from vitlab.data.image_ops import grey_to_rgb
from vitlab.data.pipeline import eval_batches, first_example
from vitlab.data.preprocess import Preprocess
from vitlab.data.segments import Segments
from vitlab.data.sources import open_source
from vitlab.errors import InputError
from vitlab.training import parallelism
from vitlab.training.experiment import EvaluatorConfig
from vitlab.training.step import normalizer

Outputs = dict[str, np.ndarray]
Stop = Callable[[], bool]


class Split:
    """A split of an evaluator.

    Args:
        where: the config's key, for errors.
        spec, name: the source string and the split.
        config: the evaluator's section.
        batch_size: over all devices.
        workers: processes that read.
        mesh: the devices.

    Attributes:
        counted: how many examples the last `run` counted.
        broken: how many it left out because they cannot be read.
        keep: whether its batches stay on the devices after the first `run`, for the next.

    Raises:
        InputError: a wrong source, split or preprocessing.
    """

    def __init__(
        self,
        where: str,
        spec: str,
        name: str,
        config: EvaluatorConfig,
        batch_size: int,
        workers: int,
        mesh: Mesh,
    ):
        self.where, self.spec, self._mesh = where, spec, mesh
        self.source = open_source(spec, name)
        self._batch_size, self._workers, self._on_error = batch_size, workers, config.on_error
        preprocess = Preprocess.parse(config.preprocess)
        self.preprocess = dataclasses.replace(preprocess, evaluation=True)
        self.normalize = normalizer(self.preprocess.scale, self.preprocess.shift)
        self._example = first_example(self.source, self.preprocess, config.on_error)
        self.counted = self.broken = 0
        self.keep = False
        self._kept: list[dict[str, jax.Array]] = []
        self._report = ""

    def __len__(self) -> int:
        """How many examples there are, broken ones too."""
        return len(self.source)

    @property
    def labelled(self) -> bool:
        """Whether each image has a label; one with boxes has none."""
        return "label" in self._example

    @property
    def first(self) -> dict[str, np.ndarray]:
        """A batch of the first example that can be read."""
        return self._example

    def shapes(self, function: Callable, variables: Any) -> Any:
        """What `function(variables, batch)` gives for one example, as shapes.

        Raises:
            InputError: the model cannot take the images.
        """
        try:
            return jax.eval_shape(function, variables, self._example)
        except flax.errors.ScopeParamShapeError as e:
            shape = self._example["image"].shape[1:]
            raise InputError(
                f"{self.where}.preprocess makes images {shape}, which do not fit the "
                "model that the training images made"
            ) from e

    def run(
        self,
        function: Callable,
        variables: Any,
        name: str,
        log: Callable[[str], None],
        stop: Stop,
        look: Callable[[Any], None] = lambda batch: None,
        reduce: Callable[[Outputs, "Split"], Outputs] = lambda outputs, split: outputs,
    ) -> Outputs | None:
        """What `function(variables, batch)` gives for every example, with `id`; None if stopped.

        `look` is called with the first batch besides; `reduce` keeps of each batch's outputs what
        is needed of it.
        """

        def fetched(piece):
            piece = parallelism.to_host(piece)
            rows = {k: v[piece["mask"]] for k, v in piece.items() if k != "mask"}
            return reduce(rows, self) if piece["mask"].any() else None  # all of them are broken

        pieces = []
        with closing(self._batches()) as batches:
            for placed in batches:
                if stop():
                    return None
                if not pieces:
                    look(placed)
                outputs = function(variables, placed)
                pieces.append({**outputs, "id": placed["id"], "mask": placed["mask"]})
                if len(pieces) > 1:  # one batch behind, so that the devices never wait for it
                    pieces[-2] = fetched(pieces[-2])
        if self._report:
            log(f"{name}: {self._report}")
        rows = [each for each in (*pieces[:-1], fetched(pieces[-1])) if each is not None]
        self.counted = sum(len(row["id"]) for row in rows)
        return {k: np.concatenate([row[k] for row in rows]) for k in rows[0]}

    @property
    def bytes_on_a_device(self) -> int:
        """What its batches take of each device's memory, all at once."""
        row = sum(x.nbytes for x in self._example.values())
        rows = -(-len(self) // self._batch_size) * self._batch_size
        return row * rows // parallelism.batch_shards(self._mesh)

    def _batches(self) -> Iterator[dict[str, jax.Array]]:
        """All batches on the devices."""
        if self._kept:
            yield from self._kept
            return
        index, count = parallelism.process_share(self._mesh)
        batches = eval_batches(
            self.source,
            self.preprocess,
            batch_size=self._batch_size,
            workers=self._workers,
            process_index=index,
            process_count=count,
            on_error=self._on_error,
        )
        kept = []
        with closing(batches):
            for batch in batches:
                placed = parallelism.to_devices(batch, self._mesh)
                if self.keep:
                    kept.append(placed)
                yield placed
        self._kept, self._report, self.broken = kept, batches.broken_report(), len(batches.broken)

    def image(self, index: int) -> np.ndarray:
        """Pixels uint8[height, width, channels] of an example, as the model sees them."""
        return self.preprocess(self.source[int(index)], np.random.default_rng(0))["image"]

    def original(self, index: int) -> np.ndarray:
        """Pixels uint8[height, width, 3] of an example, as they are stored."""
        return grey_to_rgb(decode(self.source[int(index)]["image"]))

    def annotation(self, index: int) -> Annotation:
        """The objects of an example, of a source that has some."""
        return self.source.annotation(int(index))

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The data set's own numbers of the classes, of a source that has boxes."""
        return self.source.category_ids

    def segments(self, index: int) -> Segments:
        """The segments of an example, in its original image, of a source that has some."""
        return self.source.segments(int(index))

    @property
    def things(self) -> tuple[bool, ...]:
        """Which of the source's `segment_names` are of objects that can be counted."""
        return self.source.things

    def to_pixels(self, images: np.ndarray) -> np.ndarray:
        """Normalized images to uint8, the inverse of `normalize`."""
        pixels = (images - self.preprocess.shift) / self.preprocess.scale
        return np.clip(np.round(pixels), 0, 255).astype(np.uint8)

    def overlaps(self, other: "Split") -> bool:
        """Whether the two have examples in common, as far as source strings tell."""
        return self.spec == other.spec and any(
            a.name == b.name and a.start < b.stop and b.start < a.stop
            for a in self.source.ranges
            for b in other.source.ranges
        )
