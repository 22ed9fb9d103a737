"""From a config to what a run needs: data, task, evaluators, optimizer, compiled step."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitlab import config as config_lib
from vitlab.data.folders import left_out
from vitlab.data.masks import MaskSource
from vitlab.data.pipeline import first_example
from vitlab.data.preprocess import Preprocess
from vitlab.data.presized import Presized
from vitlab.data.sources import Source, open_source
from vitlab.data.targets import check_room
from vitlab.errors import InputError
from vitlab.models.build import has_layers
from vitlab.ops import keys
from vitlab.ops.backend import left_to_cublas
from vitlab.tasks.task import Task, task_class
from vitlab.training import flops, parallelism, profiling
from vitlab.training.device_data import DeviceData
from vitlab.training.evaluator import make_evaluator
from vitlab.training.experiment import Experiment, not_in_hash
from vitlab.training.initial_weights import InitialWeights
from vitlab.training.layout import lay_out, lay_out_like
from vitlab.training.optimizer import frozen_parameters, make_optimizer
from vitlab.training.schedules import make_schedule
from vitlab.training.step import TrainState, make_train_step, normalizer

# XLA's options that make a program on a GPU repeat to the bit.
DETERMINISTIC = {"xla_gpu_deterministic_ops": True}
# And that leave all products to cuBLAS, which adds biases and residuals and has GELU's tanh form: a
# ViT-B/16's step is 9 % faster on an H200 (experiments/speed/gpu.md).
# Small products of the same array, query, key and value say, stay apart, as one of all three has no
# place for the biases. Older versions of JAX get such sums wrong (openxla/xla issues 46110, 46897).
CUBLAS = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_dot_merger_threshold_mb": 0}


class Setup:
    """Everything that a config determines. Building it checks it, and reads one example a split.

    Args:
        config: nested plain dicts, see `vitlab.config.load`.
        source: of the training data, in the place of the config's.

    Attributes:
        experiment: the typed config; `resolved` is the same as nested dicts with every default.
        hash: names the config, see `not_in_hash`.
        mesh, source, preprocess, task, evaluators, schedule: what they are called.
        options: of XLA's compiler.
        example: a batch of the first training example that can be read.
        normalize: the last op of the preprocessing, see `vitlab.training.step.normalizer`.
        cache: the training data on the devices, or None.
        classes: names of what the task tells apart in the source.
        total: optimizer steps of the whole training.
        profiled: the steps to trace, see `vitlab.training.profiling`.
        target: the `TrainState` as `jax.ShapeDtypeStruct`s with shardings.
        initial: what `config.init_from` names, once it is read.

    Raises:
        InputError: anything in the config is wrong, or does not fit the data.
    """

    def __init__(self, config: dict[str, Any], source: Source | None = None):
        exp = self.experiment = Experiment.from_config(config)
        self.options = dict(DETERMINISTIC) if exp.deterministic else {}
        if jax.default_backend() == "gpu" and jax.__version_info__ >= (0, 11, 2):
            self.options |= CUBLAS
        self._axis_name = parallelism.PMAP_AXIS if exp.parallelism.mode == "pmap" else None
        self.mesh = parallelism.make_mesh(exp.parallelism, exp.batch_size)
        parts = exp.accumulate * parallelism.batch_shards(self.mesh)
        if exp.batch_size % parts:
            raise InputError(
                f"config.batch_size is {exp.batch_size}: accumulate {exp.accumulate} on "
                f"{parallelism.batch_shards(self.mesh)} devices cuts it into {parts} equal parts"
            )
        self.source = source or open_source(exp.data.source, exp.data.split)
        self.preprocess = Preprocess.parse(exp.data.preprocess)
        if exp.data.presize:
            if self.preprocess.boxes or self.preprocess.segments:
                raise InputError(
                    "config.data.presize is for images alone: boxes and masks would not fit them"
                )
            self.source = Presized(self.source, exp.data.presize)
        names = task_class(exp.task).names
        self.classes = classes = tuple(getattr(self.source, names, ()))
        self.task, self.resolved = self._resolve(exp)
        self.hash = config_lib.hash_of(self.resolved, not_in_hash(self.resolved))
        self.evaluators = [
            make_evaluator(
                name,
                section,
                exp.data,
                exp.batch_size,
                classes,
                self.task,
                self.mesh,
                self.options,
            )
            for name, section in exp.evaluators.items()
        ]
        self.total = self.steps(exp.total)
        self.profiled = profiling.window(exp.profile, self.total)
        self.schedule = make_schedule(
            exp.schedule, exp.optimizer.lr, self.total, exp.batch_size, len(self.source)
        )
        self.normalize = normalizer(self.preprocess.scale, self.preprocess.shift)
        check_room(self.preprocess.ops, self.source)
        if isinstance(self.source, MaskSource):
            self.source.check_classes()
        self.example = first_example(self.source, self.preprocess, exp.data.on_error)
        self.cache: DeviceData | None = None
        if exp.data.cache:
            self.cache = DeviceData(self.source, self.preprocess, exp.data, exp.seed, self.mesh)
        params = jax.eval_shape(self._variables)["params"]
        layered = exp.optimizer.layer_decay < 1 and has_layers(self.task.model)
        layers = (self.task.layer_of, self.task.num_layers) if layered else ()
        self._optimizer = make_optimizer(exp.optimizer, self.schedule, params, *layers)
        self._step = make_train_step(
            self.task,
            self._optimizer,
            self.normalize,
            exp.seed,
            exp.accumulate,
            exp.ema_decay,
            frozen_parameters(exp.optimizer, params),
            self._axis_name,
            self.total,
        )
        shape = jax.eval_shape(lambda: self._state(self._variables()))
        shape = shape.replace(totals=self._totals(shape))
        self._zero_totals = jax.tree.map(lambda t: np.zeros(t.shape, t.dtype), shape.totals)
        layout = lay_out(exp.parallelism.rules, params, self.mesh)
        self.target: TrainState = jax.tree.map(
            lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
            shape,
            lay_out_like(shape, params, layout, self.mesh),
        )
        self._check_metric_names(shape)
        self.initial: InitialWeights | None = None

    def _resolve(self, exp: Experiment) -> tuple[Task, dict[str, Any]]:
        """Its task, and the config as nested dicts with every default."""
        task = task_class(exp.task).from_config(
            exp.model, exp.loss, exp.augment, self.classes, jnp.dtype(exp.dtype()), self._axis_name
        )
        return task, {**config_lib.as_dict(exp), **task.settings()}

    def completed(self, resolved: dict[str, Any]) -> dict[str, Any]:
        """The resolved config of a run of an earlier vitlab, with the keys that are new since then
        at their defaults; as it is where it says what vitlab does not know any more."""
        try:
            return self._resolve(Experiment.from_config(resolved))[1]
        except InputError:
            return resolved

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of a training image as the model sees it."""
        return self.example["image"].shape[1:3]

    def steps(self, duration: config_lib.Duration) -> int:
        """A duration in optimizer steps of this run."""
        return duration.steps(self.experiment.batch_size, len(self.source))

    @functools.cached_property
    def traced_step(self) -> jax.stages.Traced:
        """The `(state, batch) -> state` before it is compiled; with `config.data.cache` see
        `DeviceData.several_steps`."""
        mode = self.experiment.parallelism.mode
        step, inputs = parallelism.over_devices(self._step, self.mesh, mode), (self.batch,)
        if self.cache:
            inputs = self.cache.inputs(self.experiment.batch_size)
            step = self.cache.several_steps(step)
        with left_to_cublas(CUBLAS.items() <= self.options.items()):
            return parallelism.trace_step(step, self.mesh, mode, self.target, inputs)

    def compile_step(self) -> jax.stages.Compiled:
        """`traced_step`, compiled."""
        return self.traced_step.lower().compile(self.options)

    def step_flops(self) -> float:
        """FLOPs of a step on one device, by `vitlab.training.flops.count`."""
        return flops.count(self.traced_step.jaxpr) / self.mesh.size

    def oddities(self) -> list[str]:
        """Lines on what is odd about the data and no error: files that are not read as images,
        annotations that say little."""
        splits = (split for each in self.evaluators for split in each.splits)
        lines = [left_out(each.source for each in (self, *splits))]
        if notes := getattr(self.source, "notes", ()):
            lines.append(
                f"{len(notes)} annotations are odd, such as {notes[0]}; "
                f"vitlab data check {self.experiment.data.source} lists them"
            )
        return [line for line in lines if line]

    def fresh_state(self, log: Callable[[str], None]) -> TrainState:
        """The state at step 0: initialised, or taken from `config.init_from`."""
        shardings = jax.tree.map(lambda x: x.sharding, self.target)
        placed = {"params": shardings.params, **shardings.model_state}
        variables = jax.jit(self._variables, out_shardings=placed)()
        if self.experiment.init_from:
            if self.initial is None:  # there were checkpoints, but all were damaged
                self.read_initial()
            filled = self.initial.filled(parallelism.to_host(variables), log)
            variables = jax.device_put(filled, placed)
        without_totals = shardings.replace(totals={})
        state = jax.jit(self._state, out_shardings=without_totals)(variables)
        return self.reset_totals(state)

    def reset_totals(self, state: TrainState) -> TrainState:
        """The state with its metric sums at zero."""
        whole = parallelism.replicated(self.mesh)
        return state.replace(totals=jax.device_put(self._zero_totals, whole))

    def _totals(self, shape: TrainState) -> Any:
        """Shapes of the metric sums that a step leaves in the state."""

        def totals(state, batch):
            return self._step(state, batch).totals

        step = parallelism.over_devices(totals, self.mesh, self.experiment.parallelism.mode)
        return jax.eval_shape(step, shape, self.batch)

    def _variables(self) -> dict[str, Any]:
        images = self.normalize(jnp.zeros_like(self.example["image"]))
        return self.task.init(keys.batch_key(self.experiment.seed, "init", 0), images)

    def _state(self, variables: dict[str, Any]) -> TrainState:
        params = variables["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            model_state={k: v for k, v in variables.items() if k != "params"},
            opt_state=self._optimizer.init(params),
            ema=jax.tree.map(jnp.copy, variables) if self.experiment.ema_decay else None,
            totals={},
            nonfinite_step=jnp.full((), -1, jnp.int32),
        )

    @property
    def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What a step takes of the data, with shardings."""
        rows, split = self.experiment.batch_size, parallelism.split_by_example(self.mesh)
        return {
            k: jax.ShapeDtypeStruct((rows, *v.shape[1:]), v.dtype, sharding=split)
            for k, v in self.example.items()
        }

    def _check_metric_names(self, shape: TrainState) -> None:
        """Finds a misspelt metric now rather than after the first epoch."""
        names = set()
        for evaluator in self.evaluators:
            names |= evaluator.metric_names(shape.variables())
        exp = self.experiment
        for key, metric in (
            ("checkpoint.best", exp.checkpoint.best),
            ("early_stopping.metric", exp.early_stopping.metric),
        ):
            if metric and metric not in names:
                raise InputError(
                    f"config.{key}: no evaluator computes {metric!r}"
                    f"{config_lib.nearest(metric, names)}"
                )

    def read_initial(self) -> None:
        """Reads `config.init_from`: before the step is compiled, as this may find that it does not
        fit.

        Raises:
            InputError: there is nothing to start from, or a parameter that nothing accounts for.
        """
        if self.experiment.init_from:
            self.initial = InitialWeights(self)
