"""The evaluators of a config: every example of a split exactly once, metrics, pictures."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vitlab.data.preprocess import Preprocess
from vitlab.errors import InputError
from vitlab.tasks.task import Task
from vitlab.training import parallelism
from vitlab.training.experiment import DataConfig, EvaluatorConfig
from vitlab.training.features import SHOWN, FeatureEvaluator, few
from vitlab.training.split import Outputs, Split, Stop


def make_evaluator(
    name: str,
    config: EvaluatorConfig,
    data: DataConfig,
    batch_size: int,
    classes: tuple[str, ...],
    task: Task,
    mesh: Mesh,
    options: dict[str, Any] | None = None,
) -> "Evaluator | FeatureEvaluator":
    """The evaluator of a section `config.evaluators.NAME`.

    Args:
        name: its name in the config; metrics are `NAME/METRIC`.
        config: its section.
        data: what is trained on.
        batch_size: the training batch's.
        classes: names of the training data's classes.
        task: what is evaluated.
        mesh: the devices.
        options: of XLA's compiler.

    Raises:
        InputError: a wrong kind, source, split or preprocessing, other classes than in training, or
            a batch that the devices do not divide.
    """
    where = f"config.evaluators.{name}"
    if config.kind not in (*task.evaluators, "features"):
        raise InputError(
            f"{where}.kind is {config.kind!r}: this task offers "
            f"{', '.join((*task.evaluators, 'features'))}"
        )
    size = config.batch_size or batch_size
    shards = parallelism.batch_shards(mesh)
    if size % shards:
        raise InputError(f"{where}.batch_size is {size}, which {shards} devices do not divide")

    def split(source, name):
        return Split(where, source, name, config, size, data.workers, mesh)

    source = config.source or data.source
    test = split(source, config.split)
    if config.kind == "features":
        train = None
        if config.features.protocols:
            train = split(config.features.train_source or source, config.features.train_split)
        return FeatureEvaluator(name, config, task, test, train, options)
    found = tuple(getattr(test.source, task.names, ()))
    if task.classes and found != classes:
        raise InputError(
            f"{where}: its classes {few(found)} are not the training data's {few(classes)}"
        )
    return Evaluator(name, config, task, test, options)


class Evaluator:
    """The task's own evaluation of a split."""

    def __init__(self, name: str, config: EvaluatorConfig, task: Task, split: Split, options):
        self.name, self.config, self._task, self._split = name, config, task, split

        def evaluate(variables, batch):
            return task.evaluate(variables, batch, split.normalize)

        def show(variables, batch):
            first = {key: rows[:SHOWN] for key, rows in batch.items()}
            shown = task.show(variables, first, split.normalize)
            return {**shown, "id": first["id"], "mask": first["mask"]} if shown else {}

        self._evaluate = jax.jit(evaluate, compiler_options=options)
        self._show = jax.jit(show, compiler_options=options)

    @property
    def split(self) -> Split:
        """What it measures on."""
        return self._split

    @property
    def splits(self) -> tuple[Split, ...]:
        """All that it reads."""
        return (self._split,)

    @property
    def preprocess(self) -> Preprocess:
        """Of the split's images."""
        return self._split.preprocess

    def metric_names(self, variables: Any) -> set[str]:
        """The names of its metrics, found without running the model.

        Args:
            variables: of the model, or their `jax.ShapeDtypeStruct`s.

        Raises:
            InputError: the model cannot take this evaluator's images.
        """
        outputs = self._split.shapes(self._evaluate, variables)
        zeros = {k: np.zeros(v.shape, v.dtype) for k, v in outputs.items()}
        first = self._split.first
        # Which example it is of, and where its pixels come from, as they really are.
        zeros |= {key: first[key] for key in ("id", "affine") if key == "id" or key in zeros}
        zeros = self._task.reduce(zeros, self._split)
        names = {*self._task.metrics(zeros, self._split), *self._task.some_metrics}
        return {f"{self.name}/{name}" for name in names}

    def run(
        self, variables: Any, log: Callable[[str], None], stop: Stop = lambda: False
    ) -> tuple[dict[str, float], Outputs] | None:
        """Metrics `NAME/METRIC`, and what `draw` takes: the outputs of every example with its `id`,
        and those of the task's `show` as `shown/...`.

        Args:
            variables: of the model, on the devices.
            log: told of broken images.
            stop: asked between batches; True ends the evaluation, and the result is None.
        """
        shown: Outputs = {}

        def look(batch):
            found = parallelism.to_host(self._show(variables, batch))
            shown.update({f"shown/{k}": v[found["mask"]] for k, v in found.items() if k != "mask"})

        outputs = self._split.run(
            self._evaluate, variables, self.name, log, stop, look, self._task.reduce
        )
        if outputs is None:
            return None
        metrics = self._task.metrics(outputs, self._split)
        return {f"{self.name}/{k}": float(v) for k, v in metrics.items()}, outputs | shown

    def run_through(self, predict: Callable[[bytes | np.ndarray], Outputs]) -> dict[str, float]:
        """The metrics `NAME/METRIC` of what another function says of the same images.

        Args:
            predict: from one image as it is stored, a file's bytes or its pixels, to the arrays
                `[1, ...]` that the task's `in_pixels` gives.
        """
        rows = []
        for index in range(len(self._split)):
            try:
                example = self._split.source[index]
                outputs = predict(example["image"])
            except InputError:
                if self.config.on_error == "raise":
                    raise
                continue
            known = {"label": np.array([example.get("label", 0)], np.int32)}
            judged = jax.device_get(self._task.judged(outputs, known))
            rows.append(self._task.reduce({**judged, "id": np.array([index])}, self._split))
        outputs = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
        metrics = self._task.metrics(outputs, self._split)
        return {f"{self.name}/{k}": float(v) for k, v in metrics.items()}

    def draw(self, outputs: Outputs, directory: pathlib.Path) -> None:
        """Writes the task's pictures of an evaluation."""
        of_all = {k: v for k, v in outputs.items() if not k.startswith("shown/")}
        shown = {k.removeprefix("shown/"): v for k, v in outputs.items() if k not in of_all}
        self._task.pictures(of_all, shown, self._split, directory)

    def alarms(self, metrics: dict[str, float]) -> list[str]:
        """None: see `FeatureEvaluator.alarms`."""
        del metrics
        return []
