"""One evaluator of a config: a split, every example of it exactly once, its metrics."""

from collections.abc import Callable
from typing import Any

import flax.errors
import jax
import numpy as np
from jax.sharding import Mesh

from vitlab.data.pipeline import eval_batches, first_example
from vitlab.data.preprocess import Preprocess
from vitlab.data.sources import Source, open_source
from vitlab.errors import InputError
from vitlab.tasks.task import Task
from vitlab.training import parallelism
from vitlab.training.experiment import EvaluatorConfig
from vitlab.training.step import normalizer


class Evaluator:
    """Runs the task's `evaluate` over a split.

    Args:
        name: its name in the config; metrics are `NAME/METRIC`.
        config: its section.
        source: the training data's source string.
        batch_size: the training batch's.
        classes: names of the training data's classes.
        task: what is evaluated.
        mesh: the devices.
        workers: processes that read.
        options: of XLA's compiler.

    Raises:
        InputError: a wrong source, split or preprocessing, other classes than in training, or a
            batch that the devices do not divide.
    """

    def __init__(
        self,
        name: str,
        config: EvaluatorConfig,
        source: str,
        batch_size: int,
        classes: tuple[str, ...],
        task: Task,
        mesh: Mesh,
        workers: int,
        options: dict[str, Any] | None = None,
    ):
        self.name, self.config, self.mesh, self.workers = name, config, mesh, workers
        self.where = f"config.evaluators.{name}"
        if config.kind not in task.evaluators:
            raise InputError(
                f"{self.where}.kind is {config.kind!r}: this task offers "
                f"{', '.join(task.evaluators)}"
            )
        self.source: Source = open_source(config.source or source, config.split)
        if tuple(self.source.class_names) != classes:
            raise InputError(
                f"{self.where}: its classes {_few(self.source.class_names)} are not "
                f"the training data's {_few(classes)}"
            )
        self.preprocess = Preprocess.parse(config.preprocess)
        self.batch_size = config.batch_size or batch_size
        shards = parallelism.batch_shards(mesh)
        if self.batch_size % shards:
            raise InputError(
                f"{self.where}.batch_size is {self.batch_size}, which {shards} "
                "devices do not divide"
            )
        self.task = task
        normalize = normalizer(self.preprocess.scale, self.preprocess.shift)

        def evaluate(variables, batch):
            return task.evaluate(variables, {**batch, "image": normalize(batch["image"])})

        self._evaluate = jax.jit(evaluate, compiler_options=options)
        self._shapes = first_example(self.source, self.preprocess, config.on_error)

    def metric_names(self, variables: Any) -> set[str]:
        """The names of its metrics, found without running the model.

        Args:
            variables: of the model, or their `jax.ShapeDtypeStruct`s.

        Raises:
            InputError: the model cannot take this evaluator's images.
        """
        try:
            outputs = jax.eval_shape(self._evaluate, variables, self._shapes)
        except flax.errors.ScopeParamShapeError as e:
            shape = self._shapes["image"].shape[1:]
            raise InputError(
                f"{self.where}.preprocess makes images {shape}, which do not fit the "
                "model that the training images made"
            ) from e
        zeros = {k: np.zeros(v.shape, v.dtype) for k, v in outputs.items()}
        return {f"{self.name}/{k}" for k in self.task.metrics(zeros)}

    def run(
        self, variables: Any, log: Callable[[str], None], stop: Callable[[], bool] = lambda: False
    ) -> tuple[dict[str, float], dict[str, np.ndarray]] | None:
        """Metrics `NAME/METRIC` and the outputs, with `id`, of every example of the split.

        Args:
            variables: of the model, on the devices.
            log: told of broken images.
            stop: asked between batches; True ends the evaluation, and the result is None.
        """
        index, count = parallelism.process_share(self.mesh)
        batches = eval_batches(
            self.source,
            self.preprocess,
            batch_size=self.batch_size,
            workers=self.workers,
            process_index=index,
            process_count=count,
            on_error=self.config.on_error,
        )
        pieces = []
        try:
            for batch in batches:
                if stop():
                    return None
                placed = parallelism.to_devices(batch, self.mesh)
                outputs = self._evaluate(variables, placed)
                pieces.append({**outputs, "id": placed["id"], "mask": placed["mask"]})
        finally:
            batches.close()
        if batches.broken:
            log(f"{self.name}: {batches.broken_report()}")
        rows = [parallelism.to_host(piece) for piece in pieces]
        outputs = {
            k: np.concatenate([row[k][row["mask"]] for row in rows]) for k in rows[0] if k != "mask"
        }
        metrics = self.task.metrics(outputs)
        return {f"{self.name}/{k}": float(v) for k, v in metrics.items()}, outputs

    def image(self, index: int) -> np.ndarray:
        """Pixels uint8[height, width, channels] of an example, as the model sees them."""
        return self.preprocess(self.source[index], np.random.default_rng(0))["image"]


def _few(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:4])
    return f"({shown}, ... {len(names)} in all)" if len(names) > 4 else f"({shown})"
