"""What a run must remember besides its arrays."""

import dataclasses
import math
from typing import Any

from vitlab.checkpoints import Checkpoint
from vitlab.errors import InputError
from vitlab.training.alarms import LossWatch
from vitlab.training.setup import Setup

LOWER_IS_BETTER = ("loss", "nll", "ece")


@dataclasses.dataclass
class Best:
    """The best value of a metric so far, and the step at which it was measured."""

    metric: str
    value: float | None = None
    step: int = 0

    def update(self, metrics: dict[str, float], step: int) -> None:
        """Keeps the metric's value if it is there and better; NaN never is."""
        value = metrics.get(self.metric, math.nan)
        sign = -1 if self.metric.rpartition("/")[2] in LOWER_IS_BETTER else 1
        if not math.isnan(value) and (self.value is None or sign * value > sign * self.value):
            self.value, self.step = value, step


@dataclasses.dataclass
class Memory:
    """The host's side of a run's state; saved with every checkpoint.

    Attributes:
        classes: names of the classes of the data, where the task is about classes.
        category_ids: the data set's own numbers of them, where it has such.
        things: which of them are of objects that can be counted, where it has segments.
        image_size: height and width of what the model is trained on, in pixels.
        examples: of the training split; with `classes` it tells whether the data are the same.
        best: of `config.checkpoint.best`.
        patience: of `config.early_stopping.metric`.
        seconds: of training so far, over all restarts.
        evaluated: whether the evaluators that were due at this step have run.
        stopped: whether patience has run out.
        metrics: the latest value of each `EVALUATOR/METRIC`.
        loss: what tells a training that falls apart.
        alarms: all that were given, `{"step": ..., "alarm": ...}`.
    """

    classes: list[str]
    examples: int
    best: Best
    patience: Best
    category_ids: list[int] = dataclasses.field(default_factory=list)
    things: list[bool] = dataclasses.field(default_factory=list)
    image_size: list[int] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    evaluated: bool = True
    stopped: bool = False
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    loss: LossWatch = dataclasses.field(default_factory=LossWatch)
    alarms: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, setup: Setup) -> "Memory":
        """Of a run that begins."""
        return cls(
            classes=list(setup.classes) if setup.task.classes else [],
            category_ids=list(getattr(setup.source, "category_ids", ())),
            things=list(getattr(setup.source, "things", ())),
            image_size=list(setup.image_size),
            examples=len(setup.source),
            best=Best(setup.experiment.checkpoint.best),
            patience=Best(setup.experiment.early_stopping.metric),
        )

    def check_data(self, meta: dict[str, Any], run: str, advice: str = "") -> None:
        """That the data are those of the run that wrote a checkpoint's `meta.json`.

        Raises:
            InputError: they are not; it names that run, and gives advice.
        """
        for what in ("classes", "examples"):
            if meta.get(what) != getattr(self, what):
                raise InputError(
                    f"config.data.source has changed since {run} began: {what} were "
                    f"{_short(meta.get(what))} and are {_short(getattr(self, what))}{advice}"
                )

    def go_on(self, origin: Checkpoint) -> None:
        """What a run knows of the other whose checkpoint it goes on from: since when to be patient,
        and the losses, as its own first one is far below that of a model that knows nothing."""
        self.patience.step = origin.step
        self.loss = LossWatch(**origin.meta().get("loss", {}))

    def restore(self, meta: dict[str, Any]) -> "Memory":
        """What a checkpoint's `meta.json` holds, for a run that begins with this memory.

        Raises:
            InputError: the data are not those of the run that wrote it.
        """
        self.check_data(meta, "this run", "; give another --workdir")
        best = {key: Best(**meta[key]) for key in ("best", "patience")}
        if best["best"].metric != self.best.metric:  # this key may change between restarts
            best["best"] = self.best
        return Memory(**{**meta, **best, "loss": LossWatch(**meta.get("loss", {}))})

    def knows(self, record: dict[str, Any], step: int) -> bool:
        """Whether a record of `metrics.jsonl` was made before this memory was saved at a step."""
        if record["step"] != step or self.evaluated:
            return record["step"] <= step
        # The evaluation of this step had not ended, and comes again.
        return record in self.alarms if "alarm" in record else "learning_rate" in record


def _short(value: Any) -> str:
    return f"{len(value)} ({', '.join(value[:5])} ...)" if isinstance(value, list) else str(value)
