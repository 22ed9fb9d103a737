"""The one training loop: restore, step, log, evaluate, save; and again until the end."""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
import signal
import threading
import time
from typing import Any

import jax
from rich.console import Console

from vitlab import checkpoints, distributed
from vitlab.errors import DivergedError, StoppedError
from vitlab.training import continuing, footprint, lock, parallelism, report
from vitlab.training.alarms import COLLAPSED
from vitlab.training.evaluator import Evaluator, FeatureEvaluator
from vitlab.training.feeding import FromDevice, FromHost
from vitlab.training.journal import Journal
from vitlab.training.memory import Memory
from vitlab.training.pictures import Pictures
from vitlab.training.profiling import Profile
from vitlab.training.progress import Progress, clock, metrics_table
from vitlab.training.setup import Setup
from vitlab.training.step import TrainState
from vitlab.training.throughput import Throughput


def train(
    config: dict[str, Any],
    workdir: pathlib.Path | None,
    name: str,
    console: Console,
    began: float | None = None,
) -> dict[str, Any]:
    """Runs a config to its end, from wherever its working directory stands.

    Args:
        config: nested plain dicts, see `vitlab.config.load`.
        workdir: the working directory; None means `runs/NAME-HASH`.
        name: of the run.
        console: where to print.
        began: `time.monotonic()` when the command did, if that was earlier.

    Returns:
        What `result.json` holds; nothing on processes other than the first.

    Raises:
        InputError: something in the config or the data is wrong.
        DivergedError: the loss, a gradient or what an update made is not finite.
        StoppedError: SIGTERM or SIGINT; a checkpoint was written.
        OSError: the final checkpoint could not be saved.
    """
    began = time.monotonic() if began is None else began
    setup = Setup(config)
    workdir = workdir or pathlib.Path("runs") / f"{name}-{setup.hash}"
    with lock.held(workdir):
        finished = continuing.claim(setup, workdir)
        if finished:
            console.print(
                f"{workdir} is finished at step {finished['step']}; nothing to do",
                soft_wrap=True,
                highlight=False,
            )
            return finished
        return _Run(setup, workdir, name, console, began).run()


class _Run:
    def __init__(
        self, setup: Setup, workdir: pathlib.Path, name: str, console: Console, began: float
    ):
        self.setup, self.workdir, self.console, self.began = setup, workdir, console, began
        self.experiment = setup.experiment
        self.memory = Memory.of(setup)
        self.evaluated_at: dict[str, int] = {}  # the step of an evaluator's last run
        self.pictures = Pictures(workdir / "report", self.log)
        self.signum: int | None = None
        self.leader = jax.process_index() == 0
        self.progress: Progress | None = None
        self.name = name

    def log(self, text: str, everywhere: bool = False) -> None:
        if self.progress:
            self.progress.line(text)
        elif self.leader or everywhere:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def run(self) -> dict[str, Any]:
        setup = self.setup
        devices = list(setup.mesh.devices.flat)
        self.log(
            f"working directory {self.workdir}; {len(devices)} x {devices[0].device_kind}; "
            f"{len(setup.source):,} examples, {setup.total:,} steps"
        )
        for line in setup.oddities():
            self.log(line)
        if self.experiment.data.presize:
            setup.source.store(self.log)
        if self.experiment.deterministic and devices[0].platform == "gpu":
            self.log("deterministic: this run repeats to the bit, and takes longer for it")
        began = time.monotonic()
        directory = self.workdir / "checkpoints"
        origin = None
        if not checkpoints.list_checkpoints(directory):
            setup.read_initial()
            origin = continuing.origin(setup)
            if origin:
                self.memory.check_data(origin.meta(), self.experiment.resume)
        self.step_fn = footprint.compile_to_fit(setup, self.log)
        self.writer = checkpoints.Writer(directory, self.experiment.checkpoint.keep, self.log)
        restored = checkpoints.latest_intact(directory, setup.target, self.log)
        if restored:
            state, self.memory = restored[0], self.memory.restore(restored[1])
        elif origin:
            self.log(f"resume: all of {origin.path}; what differs in the config holds from here")
            state = continuing.state_of(origin, setup)
            self.memory.go_on(origin)
        else:
            state = setup.fresh_state(self.log)
        step = int(state.step)
        self.throughput = Throughput(self.experiment.batch_size, setup.step_flops())
        if setup.cache:
            self.log(f"reading {len(setup.source):,} examples onto the devices")
            self.feed = FromDevice(setup, self.step_fn)
        else:
            self.feed = FromHost(setup, self.step_fn, step, self.throughput)
        count = sum(x.size for x in jax.tree.leaves(state.params))
        self.log(
            f"{count:,} parameters; ready in {clock(time.monotonic() - began)}; "
            f"{'going on from' if restored or origin else 'starting at'} step {step}"
        )
        with self._signals():
            return self._train(state, step, step if restored else None)

    def _train(self, state: TrainState, step: int, saved: int | None) -> dict[str, Any]:
        setup, exp = self.setup, self.experiment
        every_log = setup.steps(exp.logging.every)
        every_save = setup.steps(exp.checkpoint.every)
        if self.leader:
            self.journal = Journal(
                self.workdir,
                step,
                functools.partial(self.memory.knows, step=step),
                exp.logging.tensorboard,
                exp.logging.wandb,
                f"{self.name}-{setup.hash}",
                setup.resolved,
                self.log,
            )
            self.progress = Progress(self.console, step, setup.total)
        others_alive, begins = True, step
        profile = Profile(setup.profiled, self.workdir / "profile", self.log)
        try:
            self.clock_from = time.monotonic() - self.memory.seconds
            self.throughput.reset()
            logged = step
            if step and saved is None:  # config.resume, which later starts need no more
                self._save(state, step)
                saved = step
            if not self.memory.evaluated:
                self._evaluate(state, step)
            done = self.memory.stopped or step >= setup.total
            calls = itertools.count()
            while not done:
                if distributed.preempted(next(calls)):
                    self.signum = signal.SIGTERM
                if self.signum is not None:
                    self._save_and_stop(state, step, saved)
                state, taken = self.feed(state, step, self._until_next_stop(step))
                if step == begins:
                    state.step.block_until_ready()
                    self.log(f"first step after {time.monotonic() - self.began:.1f} s")
                step += taken
                profile.after(step, state.nonfinite_step)
                done = step == setup.total
                if self.progress:
                    self.progress.advance(step)
                if step % every_log == 0 or done:
                    state = self._log_training(state, step, step - logged)
                    logged = step
                    if news := self.feed.news():
                        self.log(news, everywhere=True)
                improved = False
                if self._due(step):
                    self.memory.evaluated = False
                    best = self.memory.best.step
                    self._evaluate(state, step)
                    done = done or self.memory.stopped
                    improved = self.memory.best.step != best
                if improved or done or step % every_save == 0:
                    self._save(state, step)
                    saved = step
            return self._finish(state, step)
        except _InterruptedEvaluationError:
            self._save_and_stop(state, step, saved)
        except jax.errors.JaxRuntimeError:
            others_alive = jax.process_count() == 1
            raise
        finally:
            profile.close()
            self.feed.close()
            if others_alive:  # a save that waits for a process that is gone would never end
                self.writer.close()
            if self.progress:
                self.progress.close()
                self.progress = None
                self.journal.close()

    def _until_next_stop(self, step: int) -> int:
        """Steps from here to the next after which something else is to be done."""
        exp, steps = self.experiment, self.setup.steps
        every = [exp.logging.every, exp.checkpoint.every]
        every += [evaluator.config.every for evaluator in self.setup.evaluators]
        left = [interval - step % interval for interval in map(steps, every)]
        left += [edge - step for edge in self.setup.profiled if edge > step]
        return min(self.setup.total - step, *left)

    def _log_training(self, state: TrainState, step: int, steps: int) -> TrainState:
        totals = jax.device_get(state.totals)
        self._check_finite(state, updated=False)
        # No value where nothing was counted: no object in all the batches, say.
        values = {f"train/{k}": float(total / n) for k, (total, n) in totals.items() if n}
        values["learning_rate"] = float(self.setup.schedule(step - 1))
        values |= self.throughput.measure(steps)
        self.throughput.reset()
        if self.progress:
            self.journal.write(step, values)
            self.progress.update(step, values)
        self._alarm(step, self.memory.loss.update(values["train/loss"]))
        if values.get("train/feature_std", 1.0) < COLLAPSED:
            self._alarm(step, "collapse: the projections of all images are becoming alike")
        return self.setup.reset_totals(state)

    def _due(self, step: int) -> list[Evaluator | FeatureEvaluator]:
        return [
            e
            for e in self.setup.evaluators
            if step == self.setup.total or step % self.setup.steps(e.config.every) == 0
        ]

    def _evaluate(self, state: TrainState, step: int) -> None:
        """Runs the evaluators that are due at this step, and all where patience runs out."""
        self._check_finite(state)
        began = time.monotonic()
        metrics: dict[str, float] = {}
        memory, early = self.memory, self.experiment.early_stopping
        for evaluator in self._due(step):
            metrics |= self._run_evaluator(evaluator, state, step)
        memory.best.update(metrics, step)
        memory.patience.update(metrics, step)
        if early.metric in metrics:
            memory.stopped = step - memory.patience.step >= self.setup.steps(early.patience)
        if memory.stopped:
            self.log(f"{early.metric} was best at step {memory.patience.step}; stopping early")
            for evaluator in self._not_run_at(step):
                metrics |= self._run_evaluator(evaluator, state, step)
        if self.progress:
            self.journal.write(step, metrics)
        self.log(
            f"step {step}/{self.setup.total}  "
            + "  ".join(f"{k} {v:.4f}" for k, v in metrics.items())
        )
        memory.metrics |= metrics
        memory.evaluated = True
        self.throughput.paused(time.monotonic() - began)

    def _not_run_at(self, step: int) -> list[Evaluator | FeatureEvaluator]:
        return [e for e in self.setup.evaluators if self.evaluated_at.get(e.name) != step]

    def _run_evaluator(
        self, evaluator: Evaluator | FeatureEvaluator, state: TrainState, step: int
    ) -> dict[str, float]:
        variables = state.variables(evaluator.config.wants_ema(self.experiment.ema_decay))
        log = functools.partial(self.log, everywhere=True)
        result = evaluator.run(variables, log, lambda: self.signum is not None)
        if result is None:
            raise _InterruptedEvaluationError
        metrics, outputs = result
        self.evaluated_at[evaluator.name] = step
        self._alarm(step, *evaluator.alarms(metrics))
        if self.leader:
            self.pictures.offer(evaluator, outputs)
        return metrics

    def _alarm(self, step: int, *texts: str | None) -> None:
        for text in filter(None, texts):
            alarm = {"step": step, "alarm": text}
            if alarm in self.memory.alarms:  # an evaluation that was interrupted comes again
                continue
            self.log(f"ALARM at step {step}: {text}")
            self.memory.alarms.append(alarm)
            if self.progress:
                self.journal.alarm(step, text)

    def _check_finite(self, state: TrainState, updated: bool = True) -> None:
        """Looks at what the step noted, and unless told otherwise at what the updates made."""
        step, what = int(state.nonfinite_step), "the loss or a gradient was"
        if step < 0 and updated and not state.is_finite():  # a gradient of 0 and an eps of 0, say
            step, what = int(state.step), "what the optimizer made of finite gradients was"
        if step >= 0:
            self._saved()
            saved = checkpoints.list_checkpoints(self.writer.directory)
            kept = f"the checkpoint of step {saved[-1].step} is good" if saved else "none was saved"
            raise DivergedError(
                f"{what} not finite at step {step}; {kept}; "
                "try a lower learning rate, a longer warm-up or clip_norm"
            )

    def _save(self, state: TrainState, step: int) -> None:
        self._check_finite(state)
        began = time.monotonic()
        self.memory.seconds = began - self.clock_from
        best = self.memory.best.step if self.memory.best.value is not None else None
        self.writer.save(step, state, dataclasses.asdict(self.memory), best)
        self.throughput.paused(time.monotonic() - began)

    def _saved(self) -> bool:
        """Waits until the last checkpoint is on disk, manifest and all; False if it failed."""
        return distributed.all_of(self.writer.wait())

    def _save_and_stop(self, state: TrainState, step: int, saved: int | None) -> None:
        if step != saved:
            self._save(state, step)
        if not self._saved():
            raise OSError(f"step {step} could not be saved")
        raise StoppedError(self.signum, step)

    def _finish(self, state: TrainState, step: int) -> dict[str, Any]:
        memory = self.memory
        seconds = time.monotonic() - self.clock_from
        if not self._saved():
            raise OSError(f"the final checkpoint, of step {step}, could not be saved")
        for evaluator in self._not_run_at(step):  # the run was killed after its last checkpoint
            memory.metrics |= self._run_evaluator(evaluator, state, step)
        params = parallelism.to_host(state.params)
        if not self.leader:
            return {}
        self.pictures.finish()
        report.draw_curves(self.workdir)
        best = dataclasses.asdict(memory.best) if memory.best.value is not None else {}
        saved = {c.step: c for c in checkpoints.list_checkpoints(self.writer.directory)}
        if best and memory.best.step not in saved:
            self.log(f"the best step, {memory.best.step}, could not be saved: it has no checkpoint")
        result = report.write_result(
            self.workdir,
            memory.metrics,
            best,
            memory.alarms,
            step,
            seconds,
            self.setup.hash,
            params,
            list(self.setup.mesh.devices.flat),
        )
        self.progress.close()
        self.console.print(metrics_table(memory.metrics))
        last = memory.metrics.get(memory.best.metric)
        if memory.best.step in saved and memory.best.value != last:
            told = f"best {memory.best.metric} {memory.best.value:.4f} at step {memory.best.step}"
            self.log(f"{told}: {self.workdir / 'checkpoints' / saved[memory.best.step].path.name}")
        self.log(f"{step:,} steps in {clock(seconds)}; report in {self.workdir / 'report'}")
        return result

    @contextlib.contextmanager
    def _signals(self):
        """SIGTERM and the first SIGINT ask the loop to save and stop; a second SIGINT kills."""

        def on_signal(signum, frame):
            del frame
            self.signum = signum
            signal.signal(signal.SIGINT, signal.default_int_handler)

        several = jax.process_count() > 1  # which must stop at one step, see `preempted`
        if several or threading.current_thread() is not threading.main_thread():
            yield  # a notebook's worker thread cannot, and need not, handle signals
            return
        old = {s: signal.signal(s, on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for signum, handler in old.items():
                signal.signal(signum, handler)


class _InterruptedEvaluationError(Exception):
    pass
