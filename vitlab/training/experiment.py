"""The sections of a config that the training loop reads, the same for every task."""

import dataclasses
import importlib.util
from collections.abc import Mapping
from typing import Any, Literal

import jax

from vitlab.config import Duration, check_unread, section
from vitlab.errors import InputError
from vitlab.training.optimizer import OptimizerConfig
from vitlab.training.parallelism import ParallelismConfig
from vitlab.training.schedules import ScheduleConfig

# Keys that do not change the result of a run, so that a run may be resumed with others.
NOT_IN_HASH = (
    "parallelism",
    "deterministic",
    "logging",
    "checkpoint",
    "profile",
    "data.workers",
    "model.remat",
    "model.scan",
    "model.backbone.remat",
    "model.backbone.scan",
)


# Keys that some runs are older than, with the value that leaves all as it was before them.
NEWER_KEYS = {"data.cache": "", "data.presize": 0, "resume": ""}


def not_in_hash(config: Mapping[str, Any]) -> tuple[str, ...]:
    """`NOT_IN_HASH`, and those of `NEWER_KEYS` that a resolved config does not make use of."""

    def value(key):
        section, _, name = key.rpartition(".")
        holder = (config.get(section) or {}) if section else config
        return holder.get(name, NEWER_KEYS[key])

    return (*NOT_IN_HASH, *(key for key, before in NEWER_KEYS.items() if value(key) == before))


def _check_interval(every: Duration) -> None:
    if not every.amount:
        raise InputError(f"every_{every.unit} is 0 but must be positive")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """`config.data`: what is trained on.

    Attributes:
        source: such as `digits`, `folder:PATH`, `idx:PATH`, `tfds:NAME`, or with boxes `coco:FILE`,
            `voc:PATH`, `yolo:FILE`.
        split: such as `train` or `train[:99%]`.
        preprocess: ops joined by `|`, the last one `value_range` or `normalize`.
        repeats: how often an image comes, augmented anew each time, before it is another's turn:
            repeated augmentation (1901.09335), 3 in DeiT. An epoch has as many steps as without.
        on_error: what a broken image does: `raise` ends the run, `skip` takes the next readable
            one in its place, up to 1 % of the split.
        workers: processes that read and preprocess; 0 uses threads of the main process.
        presize: pixels; larger images are reduced once so that their shorter side is this, and kept
            in the user's cache folder (`vitlab.data.presized`); 0 reads them as they are.
        cache: `device` keeps the split, as uint8, in the memory of the devices, and preprocesses
            there from the first random op on; see `vitlab.training.device_data`.
    """

    source: str
    preprocess: str
    split: str = "train"
    repeats: int = 1
    on_error: Literal["raise", "skip"] = "raise"
    workers: int = 0
    presize: int = 0
    cache: Literal["", "device"] = ""

    def __post_init__(self):
        if self.repeats < 1:
            raise InputError(f"repeats is {self.repeats} but must be 1 or more")
        if self.workers < 0:
            raise InputError(f"workers is {self.workers} but must be 0 or a number of processes")
        if self.presize < 0:
            raise InputError(f"presize is {self.presize} but must be 0 or a number of pixels")


Protocol = Literal["knn", "linear", "logistic", "few_shot"]


@dataclasses.dataclass(frozen=True)
class FeaturesConfig:
    """`config.evaluators.NAME.features`: how frozen features are judged, of any task's backbone.

    Attributes:
        protocols: of `vitlab.evaluation.probes`: `knn`; `linear`, many learning rates at once;
            `logistic`, L-BFGS; `few_shot`. Spread of the features, and effective rank of what
            differs between them, are always measured; without protocols no labels are needed.
        train_split: what the protocols learn from; `split` is what they are judged on.
        train_source: of `train_split`; empty means that of `split`.
        layer: the stage that gives the features; of tokens the mean over the patches is taken.
        k, temperature: of knn.
        shots: examples a class, of few_shot; those that no class has are left out.
        alarm_std, alarm_rank: `feature_std` or `effective_rank` below them is an alarm: the
            backbone gives all images the same features, or varies them in one way only. 0 turns
            it off.
    """

    protocols: tuple[Protocol, ...] = ("knn",)
    train_split: str = "train"
    train_source: str = ""
    layer: str = "pre_logits"
    k: int = 20
    temperature: float = 0.07
    shots: tuple[int, ...] = (1, 5, 10, 25)
    alarm_std: float = 0.01
    alarm_rank: float = 2.0

    def __post_init__(self):
        if self.k < 1 or self.temperature <= 0:
            raise InputError(
                f"k is {self.k} and temperature {self.temperature}: they must be positive"
            )
        if not self.shots or min(self.shots) < 1:
            raise InputError(f"shots is {list(self.shots)} but must hold positive numbers")


@dataclasses.dataclass(frozen=True)
class EvaluatorConfig:
    """`config.evaluators.NAME`: its metrics are named `NAME/METRIC`; no name is `train`.

    Attributes:
        preprocess: as for the training data.
        split: of `source`.
        source: empty means the training data's.
        kind: what is computed: the task's own (`classification`; `detection`;
            `reconstruction` of mae; `contrast` of simclr), or `features`.
        features: of the kind `features`.
        every: interval; every evaluator also runs at the end.
        params: `model`, `ema` (needs `ema_decay`), or `auto`: the average where there is one.
        batch_size: global; 0 means the training batch's.
        on_error: a broken image ends the run, or with `skip` is left out and counted.
    """

    preprocess: str
    split: str
    source: str = ""
    kind: str = "classification"
    features: FeaturesConfig | None = None
    every: Duration = Duration(1, "epochs")
    params: Literal["auto", "model", "ema"] = "auto"
    batch_size: int = 0
    on_error: Literal["raise", "skip"] = "raise"

    def __post_init__(self):
        _check_interval(self.every)
        if self.batch_size < 0:
            raise InputError(f"batch_size is {self.batch_size} but must be positive, or 0")
        if self.kind == "features" and self.features is None:
            object.__setattr__(self, "features", FeaturesConfig())
        if self.kind != "features" and self.features is not None:
            raise InputError(f"features is for kind 'features' but kind is {self.kind!r}")

    def wants_ema(self, ema_decay: float | None) -> bool:
        """Whether it looks at the moving average, of a run with this `ema_decay`."""
        return self.params == "ema" or (self.params == "auto" and ema_decay is not None)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """`config.checkpoint`.

    Attributes:
        every: interval; the last step is always saved.
        keep: how many of the latest are kept.
        best: a metric such as `test/accuracy`; its best checkpoint is kept besides.
    """

    every: Duration = Duration(1, "epochs")
    keep: int = 2
    best: str = ""

    def __post_init__(self):
        _check_interval(self.every)
        if self.keep < 1:
            raise InputError(f"keep is {self.keep} but must be at least 1")


@dataclasses.dataclass(frozen=True)
class EarlyStoppingConfig:
    """`config.early_stopping`: ends the training when `metric` has not improved for `patience`."""

    metric: str = ""
    patience: Duration = Duration(10, "epochs")

    def __post_init__(self):
        if not self.metric:
            check_unread(self, ("patience",), "without a metric, such as test/accuracy")
        if not self.patience.amount:
            raise InputError(f"patience_{self.patience.unit} is 0 but must be positive")


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    """`config.logging`.

    Attributes:
        every: interval of the training metrics, which are means over it.
        tensorboard: whether to write TensorBoard events.
        wandb: a Weights & Biases project; needs the `wandb` extra.
    """

    every: Duration = Duration(50, "steps")
    tensorboard: bool = True
    wandb: str = ""

    def __post_init__(self):
        _check_interval(self.every)
        if self.wandb and not importlib.util.find_spec("wandb"):
            raise InputError(
                "wandb needs the wandb extra: pip install -e '.[wandb]' where vitlab is"
            )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A whole config.

    Attributes:
        task: what is learned: a name of `vitlab.tasks.task.TASKS`, or the import path of a class
            of one's own, such as `my_package.my_module:BYOL`.
        model, loss, augment: sections that the task reads.
        data: what is trained on.
        total: length of the training.
        batch_size: global, over all devices.
        seed: of every random draw.
        optimizer, schedule, evaluators, parallelism, checkpoint, early_stopping, logging: see
            their classes.
        accumulate: parts a batch is cut into to save memory.
        ema_decay: of the moving average of the parameters, a step; None keeps none.
        init_from: a working directory, a checkpoint, a file of `vitlab export --format safetensors`
            or published weights to take parameters from.
        init_hints: of `vitlab.weights.load`, for published weights.
        init_allow: regexes of the parameters that may stay new, go unused or change shape.
        resume: a working directory or a checkpoint to go on from, in another working directory and
            to another length: from its parameters, optimizer, average and step, under this config.
            That must be of the same task, model, seed, batch size, examples in their order, kind of
            optimizer and `ema_decay`; all else may differ, such as the schedule.
        precision: of computation; `auto` is bfloat16 on accelerators and float32 on CPU.
        deterministic: whether a run on a GPU repeats to the bit, for a price in speed; on a CPU it
            always does.
        profile: steps to trace, such as 100:110; see `vitlab.training.profiling`.
    """

    task: str
    model: dict[str, Any]
    data: DataConfig
    total: Duration
    batch_size: int
    seed: int = 0
    loss: dict[str, Any] = dataclasses.field(default_factory=dict)
    augment: dict[str, Any] = dataclasses.field(default_factory=dict)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    evaluators: dict[str, EvaluatorConfig] = dataclasses.field(default_factory=dict)
    accumulate: int = 1
    ema_decay: float | None = None
    init_from: str = ""
    init_hints: dict[str, Any] = dataclasses.field(default_factory=dict)
    init_allow: tuple[str, ...] = ()
    resume: str = ""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    deterministic: bool = False
    profile: str = ""
    parallelism: ParallelismConfig = ParallelismConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    logging: LoggingConfig = LoggingConfig()

    def __post_init__(self):
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size} but must be at least 1")
        if self.total.amount <= 0:
            raise InputError("total_steps, total_epochs or total_examples must be positive")
        if not 0 <= self.seed < 2**31:
            raise InputError(f"seed is {self.seed} but must be in [0, 2**31)")
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise InputError(
                f"accumulate is {self.accumulate}: it must divide batch_size {self.batch_size}"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise InputError(f"ema_decay is {self.ema_decay} but must be between 0 and 1")
        if self.init_from and self.resume:
            raise InputError(
                "init_from and resume are both set: resume takes parameters and all else from a "
                "run; leave init_from empty"
            )
        for name, evaluator in self.evaluators.items():
            if name == "train" or "/" in name:
                raise InputError(
                    f"evaluators.{name}: metrics are EVALUATOR/METRIC, and train/METRIC those of "
                    "the training itself; give it another name, without /"
                )
            if evaluator.params == "ema" and self.ema_decay is None:
                raise InputError(f"evaluators.{name}.params is 'ema' but ema_decay is not set")

    def dtype(self) -> str:
        """Of computation, on the devices that there are."""
        if self.precision != "auto":
            return self.precision
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Experiment":
        """Reads nested plain dicts strictly.

        Raises:
            InputError: an unknown or missing key, a wrong type, or a value out of range.
        """
        return section(config, cls, "config")
