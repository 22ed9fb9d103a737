"""How the training loop takes its steps: on batches from the host, or on data on the devices."""

import gc
import time
from collections import deque
from collections.abc import Iterator

import jax

from vitlab import distributed
from vitlab.data.order import Order
from vitlab.data.pipeline import train_batches
from vitlab.training import parallelism
from vitlab.training.setup import Setup
from vitlab.training.step import TrainState
from vitlab.training.throughput import Throughput

# Seconds of work that may be under way when the run is told to stop.
_AHEAD = 1.0


class FromHost:
    """Steps on batches that the host makes, one a call.

    Args:
        setup: of the run.
        step_fn: compiled, see `Setup.compile_step`.
        start: the first step.
        throughput: told how long there was nothing to do but to wait for a batch.
    """

    def __init__(
        self, setup: Setup, step_fn: jax.stages.Compiled, start: int, throughput: Throughput
    ):
        self._step_fn, self._throughput, self._mesh = step_fn, throughput, setup.mesh
        exp, (index, count) = setup.experiment, parallelism.process_share(setup.mesh)
        self._batches = train_batches(
            setup.source,
            setup.preprocess,
            batch_size=exp.batch_size,
            seed=exp.seed,
            repeats=exp.data.repeats,
            start_step=start,
            process_index=index,
            process_count=count,
            workers=exp.data.workers,
            on_error=exp.data.on_error,
        )
        self._on_device, self._busy, self._told = self._ahead(), None, 0

    def __call__(self, state: TrainState, step: int, limit: int) -> tuple[TrainState, int]:
        """The state after one step more, and 1."""
        del step, limit
        batch = next(self._on_device)
        with jax.transfer_guard("disallow"):  # nothing but the batch goes to the devices
            state = self._step_fn(state, batch)
        self._busy = state.nonfinite_step
        return state, 1

    def news(self) -> str:
        """A line on broken images, if there are more than at the last call; else nothing."""
        told, self._told = self._told, len(self._batches.broken)
        return self._batches.broken_report() if self._told > told else ""

    def close(self) -> None:
        """Ends what reads."""
        # Batches that lie in a worker's shared memory must be let go before that worker ends. JAX
        # does so when garbage is collected.
        self._on_device.close()
        gc.collect()
        self._batches.close()

    def _ahead(self) -> Iterator[dict[str, jax.Array]]:
        """Batches on the devices, the next one on its way while this one is used."""
        ahead: deque = deque()
        while True:
            while len(ahead) < 2:
                began = time.monotonic()
                batch = next(self._batches)
                # Else the device had work to do meanwhile.
                if self._busy is None or self._busy.is_ready():
                    self._throughput.waited(time.monotonic() - began)
                ahead.append(parallelism.to_devices(batch, self._mesh))
            yield ahead.popleft()


class FromDevice:
    """Steps on data that lie on the devices, several a call: see `vitlab.training.device_data`.

    How many a call takes depends on how fast they are, and changes no result.

    Args:
        setup: of a run with `config.data.cache`.
        step_fn: compiled, see `Setup.compile_step`.
    """

    def __init__(self, setup: Setup, step_fn: jax.stages.Compiled):
        self._step_fn, self._data = step_fn, setup.cache
        self._batch_size = setup.experiment.batch_size
        self._examples, self._following, self._broken = setup.cache.read()
        exp = setup.experiment
        self._order = Order(exp.seed, len(setup.source), exp.data.repeats, exp.batch_size)
        # Steps since the devices were last waited for, the most of them, and when that was.
        self._under_way, self._most, self._since = 0, 1, time.monotonic()

    def __call__(self, state: TrainState, step: int, limit: int) -> tuple[TrainState, int]:
        """The state after some steps more, at most `limit` of them, and how many.

        Args:
            state: it is used up.
            step: steps done before.
            limit: see above.
        """
        if self._under_way >= self._most:
            state.step.block_until_ready()
            now = time.monotonic()
            most = int(_AHEAD * self._under_way / max(now - self._since, 1e-6))
            self._most = max(distributed.from_first(most), 1)
            self._under_way, self._since = 0, now
        count = min(limit, self._data.max_steps, self._most - self._under_way)
        size = self._batch_size
        ids, epochs = self._order(range(step * size, (step + count) * size))
        index = (x.reshape(count, size) for x in (self._following[ids], epochs))
        placed = self._data.to_devices(*index)
        with jax.transfer_guard("disallow"):
            state = self._step_fn(state, self._examples, *placed)
        self._under_way += count
        return state, count

    def news(self) -> str:
        """Once, a line on broken images, if there are some."""
        news, self._broken = self._broken, ""
        return news

    def close(self) -> None:
        """Nothing is left to end."""
