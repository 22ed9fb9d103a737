"""The evaluators of a config: every example of a split exactly once, metrics, pictures."""

import pathlib
from collections.abc import Callable
from typing import Any

import flax.errors
import jax
import numpy as np
from jax.sharding import Mesh

from vitlab import config as config_lib
from vitlab.data.pipeline import eval_batches, first_example
from vitlab.data.preprocess import Preprocess
from vitlab.data.sources import Source, open_source
from vitlab.errors import InputError
from vitlab.evaluation import collapse, pictures, probes
from vitlab.tasks.task import Task
from vitlab.training import parallelism
from vitlab.training.experiment import DataConfig, EvaluatorConfig, FeaturesConfig
from vitlab.training.step import normalizer

Outputs = dict[str, np.ndarray]
Stop = Callable[[], bool]

# Examples of which pictures are drawn, and neighbours of each.
SHOWN = 8
NEIGHBOURS = 5


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
        return _Split(where, open_source(source, name), config, size, data.workers, mesh)

    source = config.source or data.source
    test = split(source, config.split)
    if config.kind == "features":
        train = split(config.features.train_source or source, config.features.train_split)
        return FeatureEvaluator(name, config, task, train, test, options)
    if task.classes and tuple(test.source.class_names) != classes:
        raise InputError(
            f"{where}: its classes {_few(test.source.class_names)} are not "
            f"the training data's {_few(classes)}"
        )
    return Evaluator(name, config, task, test, options)


class Evaluator:
    """The task's own evaluation of a split."""

    def __init__(self, name: str, config: EvaluatorConfig, task: Task, split: "_Split", options):
        self.name, self.config, self._task, self._split = name, config, task, split

        def evaluate(variables, batch):
            return task.evaluate(variables, batch, split.normalize)

        def show(variables, batch):
            few = {key: rows[:SHOWN] for key, rows in batch.items()}
            shown = task.show(variables, few, split.normalize)
            return {**shown, "id": few["id"], "mask": few["mask"]} if shown else {}

        self._evaluate = jax.jit(evaluate, compiler_options=options)
        self._show = jax.jit(show, compiler_options=options)

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
        return {f"{self.name}/{k}" for k in self._task.metrics(zeros)}

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

        outputs = self._split.run(self._evaluate, variables, self.name, log, stop, look)
        if outputs is None:
            return None
        metrics = self._task.metrics(outputs)
        return {f"{self.name}/{k}": float(v) for k, v in metrics.items()}, outputs | shown

    def draw(self, outputs: Outputs, directory: pathlib.Path) -> None:
        """Writes the task's pictures of an evaluation."""
        of_all = {k: v for k, v in outputs.items() if not k.startswith("shown/")}
        shown = {k.removeprefix("shown/"): v for k, v in outputs.items() if k not in of_all}
        split = self._split
        self._task.pictures(of_all, shown, split.image, split.to_pixels, directory)

    def alarms(self, metrics: dict[str, float]) -> list[str]:
        """None: see `FeatureEvaluator.alarms`."""
        del metrics
        return []


class FeatureEvaluator:
    """Judges the frozen features of a task's backbone: `kind="features"`, for any task."""

    def __init__(
        self,
        name: str,
        config: EvaluatorConfig,
        task: Task,
        train: "_Split",
        test: "_Split",
        options,
    ):
        self.name, self.config, self._train, self._test = name, config, train, test
        self._settings: FeaturesConfig = config.features
        where = f"config.evaluators.{name}"
        classes = train.source.class_names
        if not classes or classes != test.source.class_names:
            raise InputError(
                f"{where}: features are judged with labels, of the same classes in train_split and "
                f"split; they have {_few(classes)} and {_few(test.source.class_names)}"
            )
        self._num_classes = len(classes)

        def features(variables, batch):
            stages = task.features(variables, test.normalize(batch["image"]))
            if self._settings.layer not in stages:
                legal = config_lib.nearest(self._settings.layer, stages)
                raise InputError(f"{where}.features.layer: there is no such stage{legal}")
            return {"features": _pooled(stages, self._settings.layer), "label": batch["label"]}

        self._features = jax.jit(features, compiler_options=options)

    @property
    def preprocess(self) -> Preprocess:
        """Of both splits' images."""
        return self._test.preprocess

    def metric_names(self, variables: Any) -> set[str]:
        """As in `Evaluator`."""
        self._test.shapes(self._features, variables)
        names = ["feature_std", "effective_rank"]
        for protocol in self._settings.protocols:
            names += [f"{p}_accuracy" for p in self._parts(protocol)]
        return {f"{self.name}/{name}" for name in names}

    def run(
        self, variables: Any, log: Callable[[str], None], stop: Stop = lambda: False
    ) -> tuple[dict[str, float], Outputs] | None:
        """As in `Evaluator`; the outputs are the neighbours of a few examples."""
        train = self._train.run(self._features, variables, self.name, log, stop)
        test = (
            None
            if train is None
            else self._test.run(self._features, variables, self.name, log, stop)
        )
        if test is None:
            return None
        metrics = {
            "feature_std": collapse.feature_std(test["features"]),
            "effective_rank": collapse.effective_rank(test["features"]),
        }
        for protocol in self._settings.protocols:
            metrics |= self._protocol(protocol, train, test)
        return {f"{self.name}/{k}": float(v) for k, v in metrics.items()}, _neighbours(train, test)

    def draw(self, outputs: Outputs, directory: pathlib.Path) -> None:
        """Writes `neighbours.png`: examples, each with the training examples nearest to it."""
        rows = [
            [self._test.image(query), *map(self._train.image, near)]
            for query, near in zip(outputs["id"], outputs["neighbours"], strict=True)
        ]
        titles = ["image", *(f"neighbour {i + 1}" for i in range(outputs["neighbours"].shape[1]))]
        pictures.contact_sheet(np.asarray(rows), titles, directory / "neighbours.png")

    def alarms(self, metrics: dict[str, float]) -> list[str]:
        """A line for each sign that all images get the same features."""
        c = self._settings
        limits = {"feature_std": c.alarm_std, "effective_rank": c.alarm_rank}
        return [
            f"collapse: {self.name}/{name} is {value:.3g}, below {limit:g}: "
            "all images are becoming alike to the backbone"
            for name, limit in limits.items()
            if (value := metrics[f"{self.name}/{name}"]) < limit
        ]

    def _parts(self, protocol: str) -> list[str]:
        if protocol == "few_shot":
            return [f"{n}_shot" for n in self._settings.shots]
        return [protocol]

    def _protocol(self, protocol: str, train: Outputs, test: Outputs) -> dict[str, float]:
        c, n = self._settings, self._num_classes
        data = (train["features"], train["label"], test["features"])
        if protocol == "few_shot":
            found = probes.few_shot(*data, test["label"], n, c.shots)
            return {f"{shots}_shot_accuracy": value for shots, value in found.items()}
        if protocol == "knn":
            predicted = probes.knn(*data, n, c.k, c.temperature)
        elif protocol == "linear":
            predicted = probes.linear_probe(*data, n).predictions
        else:
            predicted = probes.logistic_probe(*data, n).predictions
        return {f"{protocol}_accuracy": (predicted == test["label"]).mean()}


class _Split:
    """One pass over a split, in order, on the devices."""

    def __init__(
        self,
        where: str,
        source: Source,
        config: EvaluatorConfig,
        batch_size: int,
        workers: int,
        mesh: Mesh,
    ):
        self.where, self.source, self._mesh = where, source, mesh
        self._batch_size, self._workers, self._on_error = batch_size, workers, config.on_error
        self.preprocess = Preprocess.parse(config.preprocess)
        self.normalize = normalizer(self.preprocess.scale, self.preprocess.shift)
        self._example = first_example(source, self.preprocess, config.on_error)

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
    ) -> Outputs | None:
        """What `function(variables, batch)` gives for every example, with `id`; None if stopped.

        `look` is called with the first batch besides.
        """
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
        pieces = []
        try:
            for batch in batches:
                if stop():
                    return None
                placed = parallelism.to_devices(batch, self._mesh)
                if not pieces:
                    look(placed)
                outputs = function(variables, placed)
                pieces.append({**outputs, "id": placed["id"], "mask": placed["mask"]})
        finally:
            batches.close()
        if batches.broken:
            log(f"{name}: {batches.broken_report()}")
        rows = [parallelism.to_host(piece) for piece in pieces]
        return {
            k: np.concatenate([row[k][row["mask"]] for row in rows]) for k in rows[0] if k != "mask"
        }

    def image(self, index: int) -> np.ndarray:
        """Pixels uint8[height, width, channels] of an example, as the model sees them."""
        return self.preprocess(self.source[int(index)], np.random.default_rng(0))["image"]

    def to_pixels(self, images: np.ndarray) -> np.ndarray:
        """Normalized images to uint8, the inverse of `normalize`."""
        pixels = (images - self.preprocess.shift) / self.preprocess.scale
        return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def _pooled(stages: dict[str, jax.Array], layer: str) -> jax.Array:
    """f32[batch, features]: the mean over the patches, or over the places of a feature map."""
    x = stages[layer].astype(np.float32)
    if x.ndim == 3:  # tokens, of which those before the patches are not counted
        _, rows, columns, _ = stages["with_position"].shape
        x = x[:, -rows * columns :] if x.shape[1] >= rows * columns else x
    return x.mean(axis=tuple(range(1, x.ndim - 1))) if x.ndim > 2 else x


def _neighbours(train: Outputs, test: Outputs) -> Outputs:
    """The `id` of a few test examples, and of the training examples nearest to each."""
    queries, keys = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        for x in (test["features"][:SHOWN], train["features"])
    )
    nearest = np.argsort(-queries @ keys.T, axis=1, kind="stable")[:, :NEIGHBOURS]
    return {"id": test["id"][:SHOWN], "neighbours": train["id"][nearest]}


def _few(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:4])
    return f"({shown}, ... {len(names)} in all)" if len(names) > 4 else f"({shown})"
