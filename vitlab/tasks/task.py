"""The contract between the training loop and a task: one of the table here, or of one's own.

A method of one's own needs no change to vitlab: `config.task` is the import path of a class that
keeps the contract, such as `my_package.my_module:BYOL`, and whoever loads its run imports it. A
subclass is least work: of `vitlab.tasks.pretraining.Pretraining`, whose docstring lists what is
left to do around any backbone, or of a task here such as `vitlab.tasks.simclr.Contrastive`, with
another model and loss.
"""

import dataclasses
import importlib
import inspect
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import jax
import numpy as np

from vitlab.config import nearest
from vitlab.data.annotations import Annotation
from vitlab.data.segments import Segments
from vitlab.errors import InputError
from vitlab.models.build import imported, is_import_path
from vitlab.tasks.predictions import Prediction

Arrays = Mapping[str, Any]


class Examples(Protocol):
    """The examples that an evaluation was of, by `id`."""

    def image(self, id: int) -> np.ndarray:
        """Pixels uint8[height, width, channels], as the model sees them."""

    def original(self, id: int) -> np.ndarray:
        """Pixels uint8[height, width, 3], as they are stored."""

    def annotation(self, id: int) -> Annotation:
        """The objects in the original image, of a source that has some."""

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The data set's own numbers of the classes, of a source that has boxes."""

    def segments(self, id: int) -> Segments:
        """The segments in the original image, of a source that has some."""

    @property
    def things(self) -> tuple[bool, ...]:
        """Which of the source's `segment_names` are of objects that can be counted."""

    def to_pixels(self, images: np.ndarray) -> np.ndarray:
        """Normalized images to uint8, the inverse of `normalize`."""


class Task(Protocol):
    """Pure functions in a frozen dataclass; the training loop knows nothing else of a task.

    A batch is a dict of arrays with a leading axis `[batch]`, always with `image` uint8 or f32
    `[batch, height, width, channels]`, `mask` bool, `id` i32 and `epoch` i32. Sums and counts are
    f32[] over the true rows of the batch that the function sees; the step adds up the devices'.
    """

    model: Any  # the Linen module, with a field `dtype`
    names: ClassVar[str]  # which names of a source it tells apart: class_names or segment_names
    # Legal values of `config.evaluators.NAME.kind`, besides "features".
    evaluators: ClassVar[tuple[str, ...]]
    # How many views of an image can be put together in a prediction; 0: it predicts nothing, and
    # has no need of `predict`, `predictions`, `in_pixels` and `judged`.
    views: ClassVar[int]
    classes: tuple[str, ...]  # what the head tells apart, or none
    some_metrics: ClassVar[tuple[str, ...]]  # that a split may lack: of sizes without an object
    # Regexes of the parameters that are about single classes, new where a run starts from one with
    # others; and the axis of the classes, None where one has none.
    class_parameters: ClassVar[Mapping[str, int | None]]

    @classmethod
    def from_config(
        cls,
        model: Arrays,
        loss: Arrays,
        augment: Arrays,
        classes: tuple[str, ...],
        dtype: Any,
        axis_name: str | None = None,
    ) -> "Task":
        """Reads the sections of the config that belong to the task.

        Args:
            model, loss, augment: those sections.
            classes: names of the classes of the training data.
            dtype: of computation.
            axis_name: None where `augment` and `loss` see the whole batch (`jit`), or the mapped
                axis where they see one device's rows (`pmap`): what needs the other rows reaches
                them with `vitlab.ops.collectives`.
        """

    def settings(self) -> dict[str, Any]:
        """The sections `model`, `loss` and `augment` with every default written out, of which
        `from_config` builds the same again."""

    def init(self, key: jax.Array, images: jax.Array) -> dict[str, Any]:
        """Fresh variables: `params` and the model's other collections."""

    def augment(self, batch: Arrays, normalize: Callable, seed: int, step: jax.Array) -> Arrays:
        """uint8 images to what `loss` takes, on the device; draws as in `ops/keys.py`.

        A training batch has `progress` f32[batch] besides: the part of the run that is done. Where
        it is a part of one, as `config.accumulate` cuts it, it has `before` too: a batch of the
        rows that come before its own.
        """

    def loss(self, params: Any, model_state: Any, batch: Arrays, key: jax.Array):
        """`({term: (sum, count, weight)}, {metric: (sum, count)}, new model state)`."""

    def features(self, variables: Arrays, images: jax.Array) -> Arrays:
        """The backbone's stages, such as `pre_logits`, for normalized images, not in training."""

    def predict(self, variables: Arrays, batch: Arrays, normalize: Callable) -> Arrays:
        """What the model says of each row's image alone: a dict of arrays `[batch, ...]`.

        Boxes and segments are told of the original image, by the batch's `affine` and `content`.
        """

    def predictions(
        self, views: Sequence[Arrays], sizes: Sequence[tuple[int, int]], things: Sequence[bool]
    ) -> list[Prediction]:
        """What `predict` gave, on the host, for a person.

        Args:
            views: outputs of the same images seen in one way, or in several.
            sizes: height and width of each original image.
            things: which of the classes are of objects that can be counted, where that is known.

        Raises:
            InputError: the task has to know `things`, and does not.
        """

    def in_pixels(self, outputs: Arrays, rows: jax.Array, columns: jax.Array) -> Arrays:
        """What `predict` gave for whole images of one size, as an exported model gives it.

        Args:
            outputs: of `predict`.
            rows, columns: 0, 1, ... of the original images: f32[height], f32[width].
        """

    def evaluate(self, variables: Arrays, batch: Arrays, normalize: Callable) -> Arrays:
        """Outputs for each row of a batch: a dict of arrays `[batch, ...]`."""

    def judged(self, outputs: Arrays, batch: Arrays) -> Arrays:
        """What `evaluate` gives, from what `predict` or `in_pixels` does."""

    def show(self, variables: Arrays, batch: Arrays, normalize: Callable) -> Arrays:
        """What `pictures` needs of a few rows besides: a dict of arrays `[batch, ...]`, or none."""

    def reduce(self, outputs: Mapping[str, np.ndarray], examples: Examples) -> Arrays:
        """What to keep of the outputs of some examples until those of all the split are there, on
        the host: arrays `[examples, ...]`, with their `id`."""

    def metrics(self, outputs: Mapping[str, np.ndarray], examples: Examples) -> dict[str, float]:
        """Metrics of a whole split, from the outputs of each of its examples exactly once."""

    def pictures(
        self,
        outputs: Mapping[str, np.ndarray],
        shown: Mapping[str, np.ndarray],
        examples: Examples,
        directory: pathlib.Path,
    ) -> None:
        """Draws what a person wants to see of an evaluation, after each.

        Args:
            outputs: of the whole split, as for `metrics`, with the examples' `id`.
            shown: what `show` gave, with the `id` of those examples.
            examples: of the split.
            directory: where to write PNG files, and `classes.json` where classes have numbers of
                their own.
        """

    def layer_of(self, path: str) -> int:
        """The layer of a parameter, for layer-wise decay: 0 is the embedding."""

    @property
    def num_layers(self) -> int:
        """The highest layer that `layer_of` gives."""


TASKS = {
    "classification": "vitlab.tasks.classification:Classification",
    "detection": "vitlab.tasks.detection:Detection",
    "mae": "vitlab.tasks.mae:MaskedAutoencoding",
    "segmentation": "vitlab.tasks.segmentation:Segmentation",
    "simclr": "vitlab.tasks.simclr:Contrastive",
    "universal_segmentation": "vitlab.tasks.universal_segmentation:UniversalSegmentation",
}


def task_class(name: str) -> type[Task]:
    """The task that `config.task` names: of the table, or one's own by its import path, from where
    Python finds it.

    Raises:
        InputError: there is no such task, or what is at an import path is none.
        NotImportableError: there is nothing at an import path, or its module fails.
    """
    if is_import_path(name):
        return _own_task(name)
    if name not in TASKS:
        raise InputError(f"config.task: no task {name!r}{nearest(name, TASKS)}")
    module, _, attribute = TASKS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _own_task(path: str) -> type[Task]:
    cls = imported(path, "config.task")
    if not dataclasses.is_dataclass(cls) or not isinstance(cls, type):
        raise InputError(f"config.task: {path} is no dataclass: see vitlab.tasks.task.Task")
    # Also what its bases leave to it, such as `model_class` of Pretraining.
    promised = [*Task.__annotations__, *vars(Task), *cls.__dataclass_fields__]
    there = {field.name for field in dataclasses.fields(cls)}
    if getattr(cls, "views", None) == 0:
        there |= {"predict", "predictions", "in_pixels", "judged"}
    lacking, nothing = [], object()
    for each in dict.fromkeys(promised):
        found = inspect.getattr_static(cls, each, nothing)
        missing = found is nothing or found is vars(Task).get(each)
        if missing and each not in there and not each.startswith("_"):
            lacking.append(each)
    if lacking:
        raise InputError(
            f"config.task: {path} lacks {', '.join(lacking)}: see vitlab.tasks.task.Task"
        )
    return cls
