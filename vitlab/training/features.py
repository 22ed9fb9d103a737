"""What the frozen features of a backbone are worth: the evaluators of the kind `features`."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitlab import config as config_lib
from vitlab import distributed
from vitlab.data.preprocess import Preprocess
from vitlab.errors import InputError
from vitlab.evaluation import collapse, pictures, probes
from vitlab.evaluation.neighbours import nearest_neighbours
from vitlab.tasks.task import Task
from vitlab.training.experiment import EvaluatorConfig, FeaturesConfig
from vitlab.training.split import Outputs, Split, Stop

# Examples of which neighbours are drawn, and how many of each.
SHOWN = 8
NEIGHBOURS = 5
# What each protocol measures, with the setting that it chose; few_shot has a number for each of its
# shots that a class has.
_METRICS = {
    "knn": ["knn_accuracy"],
    "linear": ["linear_accuracy", "linear_learning_rate"],
    "logistic": ["logistic_accuracy", "logistic_c"],
}


class FeatureEvaluator:
    """Judges the frozen features of a task's backbone: `kind="features"`, for any task."""

    def __init__(
        self,
        name: str,
        config: EvaluatorConfig,
        task: Task,
        test: Split,
        train: Split | None,
        options: dict[str, Any] | None = None,
    ):
        self.name, self.config, self._test, self._train = name, config, test, train
        self._settings: FeaturesConfig = config.features
        where = f"config.evaluators.{name}"
        if train is not None:
            self._check_labels(where, test, train)
        self._num_classes = len(test.source.class_names)

        def features(variables, batch):
            stages = task.features(variables, test.normalize(batch["image"]))
            if self._settings.layer not in stages:
                legal = config_lib.nearest(self._settings.layer, stages)
                raise InputError(f"{where}.features.layer: there is no such stage{legal}")
            labels = batch.get("label", jnp.zeros_like(batch["id"]))  # where there are boxes
            return {"features": pooled(stages, self._settings.layer), "label": labels}

        self._features = jax.jit(features, compiler_options=options)

    @property
    def split(self) -> Split:
        """What it measures on."""
        return self._test

    @property
    def splits(self) -> tuple[Split, ...]:
        """As in `Evaluator`."""
        return (self._test, self._train) if self._train else (self._test,)

    @property
    def preprocess(self) -> Preprocess:
        """Of both splits' images."""
        return self._test.preprocess

    def metric_names(self, variables: Any) -> set[str]:
        """As in `Evaluator`."""
        self._test.shapes(self._features, variables)
        names = ["feature_std", "effective_rank"]
        # Which of the shots a class has, the labels tell; none has more than there are examples.
        most = len(self._train) if self._train else 0
        shots = [f"{count}_shot_accuracy" for count in self._settings.shots if count <= most]
        for protocol in self._settings.protocols:
            names += _METRICS.get(protocol, shots)
        return {f"{self.name}/{name}" for name in names}

    def run(
        self, variables: Any, log: Callable[[str], None], stop: Stop = lambda: False
    ) -> tuple[dict[str, float], Outputs] | None:
        """As in `Evaluator`; the outputs are the neighbours of a few examples."""
        splits = [self._test] + ([self._train] if self._train else [])
        found = []
        for split in splits:
            outputs = split.run(self._features, variables, self.name, log, stop)
            if outputs is None:
                return None
            found.append(outputs)
        test, *train = found
        features = test["features"]
        metrics = {
            "feature_std": collapse.feature_std(features),
            # Of what differs between images: a large common mean is no collapse.
            "effective_rank": collapse.effective_rank(features - features.mean(axis=0)),
        }
        for protocol in self._settings.protocols:
            if stop():
                return None
            metrics |= self._protocol(protocol, *train, test)
        metrics = {f"{self.name}/{k}": float(v) for k, v in metrics.items()}
        return distributed.metrics_from_first(metrics), _neighbours(*train, test) if train else {}

    def draw(self, outputs: Outputs, directory: pathlib.Path) -> None:
        """Writes `neighbours.png`: examples, each with the training examples nearest to it."""
        if not outputs:
            return
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

    def _check_labels(self, where: str, test: Split, train: Split) -> None:
        classes = train.source.class_names
        if not (test.labelled and train.labelled):
            raise InputError(f"{where}: protocols judge features with labels; the source has none")
        if not classes and not test.source.class_names:
            raise InputError(
                f"{where}: protocols judge features with labels, which the images do not have: "
                "name some that have, as in --data folder:PATH --train_split train --split val"
            )
        if not classes or classes != test.source.class_names:
            raise InputError(
                f"{where}: protocols judge features with labels, of the same classes in split and "
                f"train_split; they have {few(test.source.class_names)} and {few(classes)}"
            )
        if train.overlaps(test):
            raise InputError(
                f"{where}: split and features.train_split have examples in common, on which "
                "everything would look right; name two that have none"
            )
        few_shot = "few_shot" in self._settings.protocols
        needed = max(2, min(self._settings.shots) if few_shot else 0)
        if len(train.source) < needed:
            raise InputError(
                f"{where}.features.train_split has {len(train.source)} examples, but its protocols "
                f"need {needed}: take more"
            )

    def _protocol(self, protocol: str, train: Outputs, test: Outputs) -> dict[str, float]:
        c, n = self._settings, self._num_classes
        data = (train["features"], train["label"], test["features"])
        if protocol == "few_shot":
            found = probes.few_shot(*data, test["label"], n, c.shots)
            return {f"{shots}_shot_accuracy": value for shots, value in found.items()}
        if protocol == "knn":
            predicted, chosen = probes.knn(*data, n, c.k, c.temperature), ()
        elif protocol == "linear":
            predicted, *chosen, _ = probes.linear_probe(*data, n)
        else:
            predicted, *chosen, _ = probes.logistic_probe(*data, n)
        values = [(predicted == test["label"]).mean(), *chosen]
        return dict(zip(_METRICS[protocol], values, strict=True))


def pooled(stages: dict[str, jax.Array], layer: str) -> jax.Array:
    """f32[batch, features] of a stage: the mean over its places, where it has some."""
    x = feature_map(stages, layer)
    x = stages[layer] if x is None else x
    return x.astype(np.float32).mean(axis=tuple(range(1, x.ndim - 1)))


def feature_map(stages: dict[str, jax.Array], layer: str) -> jax.Array | None:
    """f[batch, rows, columns, features] of a stage: a map as it is, or tokens of all patches, of
    which those before the patches are left out; None for any other."""
    x = stages[layer]
    if x.ndim == 3 and "with_position" in stages:
        _, rows, columns, _ = stages["with_position"].shape
        if x.shape[1] >= rows * columns:
            return x[:, -rows * columns :].reshape(len(x), rows, columns, -1)
    return x if x.ndim == 4 else None


def _neighbours(train: Outputs, test: Outputs) -> Outputs:
    """The `id` of a few test examples, and of the training examples nearest to each."""
    nearest, _ = nearest_neighbours(test["features"][:SHOWN], train["features"], NEIGHBOURS)
    return {"id": test["id"][:SHOWN], "neighbours": train["id"][nearest]}


def few(names: tuple[str, ...]) -> str:
    """The first names and how many there are, for a message."""
    shown = ", ".join(names[:4])
    return f"({shown}, ... {len(names)} in all)" if len(names) > 4 else f"({shown})"
