"""How fast a config's step is on this machine, what limits a run, and how a peer compares."""

import contextlib
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from vitlab.data.pipeline import train_batches
from vitlab.training import flops, footprint, parallelism, peers
from vitlab.training.benchmark_data import Data, Log, prepare, random_batch
from vitlab.training.experiment import Experiment
from vitlab.training.feeding import FromDevice
from vitlab.training.report import versions
from vitlab.training.setup import Setup
from vitlab.training.throughput import matmul_rate, peak_flops

_WARM_UP = 2  # steps
_INPUT_SECONDS = 3.0
_INPUT_BATCH = 64  # at most: images a second hardly depend on it, and few images come soon
# Parameters of a peer that differ by more than this make another network of it.
ALIKE = 0.01


def benchmark(
    config: dict[str, Any],
    what: peers.What,
    data: Data,
    against: peers.Name | None,
    steps: int,
    pairs: int,
    log: Log,
) -> dict[str, Any]:
    """Measures one config.

    Args:
        config: nested plain dicts, see `vitlab.config.load`. Its evaluators, and what it starts
            from, do not matter and are left out.
        what: `train`, the training step; or `inference`, an evaluator's forward pass.
        data: `synthetic`, one batch of random pixels in the data's shapes, or in those of a
            `StandIn` where the data are not there; `real`, also batches of the data one after
            another, as a run has them.
        against: a peer to take turns with.
        steps: timed at each measurement.
        pairs: how often both take turns.
        log: told each finding as one line.

    Returns:
        All findings. Times are in seconds, rates in images or FLOP a second.

    Raises:
        InputError: something in the config is wrong, or the peer is not there.
        WorkerError: the peer fails.
    """
    if against:
        peers.check_packages(against)
    setup, source = prepare(config, data, log)
    exp, device = setup.experiment, setup.mesh.devices.flat[0]
    batch = random_batch(setup)
    spec = peers.specification(against, setup, what, batch) if against else None
    rows, *shape = batch["image"].shape
    found: dict[str, Any] = {
        "what": what,
        "task": exp.task,
        "data": data,
        "source": source,
        "device": device.device_kind,
        "devices": setup.mesh.size,
        "cores": os.cpu_count(),
        "precision": exp.dtype(),
        "batch_size": rows,
        "image": shape,
        "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(setup.target.params)),
        "versions": versions(),
    }
    log(
        f"{what} of {exp.task}: {rows} images of {' x '.join(map(str, shape))} ({source}), "
        f"{found['precision']}, {setup.mesh.size} x {device.device_kind}, {found['cores']} cores"
    )
    program = (_training if what == "train" else _forward)(setup, batch)
    found["compile_seconds"] = program.compile_seconds
    log(f"{found['parameters']:,} parameters; compiled in {program.compile_seconds:.1f} s")
    found["step"] = _timed(program, rows, steps, log)
    found["memory"] = _memory(program, device, log)
    found["arithmetic"] = _arithmetic(program, setup, rows, found["step"]["seconds"], log)
    given = Experiment.from_config(config).data  # of which synthetic data leave out a part
    if what == "train" and given.cache:
        log("the data are on the device, which alone limits a run")
    elif what == "train":
        found["input"] = _input(setup, program if data == "real" else None, steps, log)
        if given.presize and data == "synthetic":
            log("that is without config.data.presize, so --data real must say what limits a run")
        else:
            found["input"] |= _limit(found["input"], found["step"], log)
    if against:
        count = found["parameters"]
        found["against"] = _compared(program, against, spec, count, steps, pairs, log)
    return found


@contextlib.contextmanager
def _batches(setup: Setup, batch_size: int) -> Iterator[Iterator[dict[str, np.ndarray]]]:
    exp = setup.experiment
    batches = train_batches(
        setup.source,
        setup.preprocess,
        batch_size=batch_size,
        seed=exp.seed,
        repeats=exp.data.repeats,
        workers=exp.data.workers,
        on_error=exp.data.on_error,
    )
    with contextlib.closing(batches):
        yield batches


class _Program(NamedTuple):
    """A compiled step.

    Attributes:
        compiled: the program.
        compile_seconds: that tracing and compiling took.
        flops: of one device, see `vitlab.training.flops.count`.
        begin: begins so many steps on what is on the devices, and gives what to wait for.
        on_batch: begins a step on another batch, where the host makes them.
    """

    compiled: jax.stages.Compiled
    compile_seconds: float
    flops: float
    begin: Callable[[int], Any]
    on_batch: Callable | None = None

    def seconds(self, steps: int) -> float:
        """Of a step, where only the last of so many is waited for."""
        began = time.perf_counter()
        jax.block_until_ready(self.begin(steps))
        return (time.perf_counter() - began) / steps


def _training(setup: Setup, batch: dict[str, np.ndarray]) -> _Program:
    with _without_cache():
        began = time.perf_counter()
        compiled = footprint.compile_to_fit(setup, lambda line: None)
        seconds = time.perf_counter() - began
    state, number = setup.fresh_state(lambda line: None), 0
    feed = FromDevice(setup, compiled) if setup.cache else None
    placed = None if feed else parallelism.to_devices(batch, setup.mesh)

    def on_batch(batch):
        nonlocal state
        state = compiled(state, batch)
        return state

    def begin(steps):
        nonlocal state, number
        last = number + steps
        while number < last:
            if feed:
                state, taken = feed(state, number, last - number)
            else:
                state, taken = compiled(state, placed), 1
            number += taken
        return state

    return _Program(compiled, seconds, setup.step_flops(), begin, None if feed else on_batch)


def _forward(setup: Setup, batch: dict[str, np.ndarray]) -> _Program:
    variables = setup.fresh_state(lambda line: None).variables()
    placed = parallelism.to_devices(batch, setup.mesh)

    def evaluate(variables, batch):
        return setup.task.evaluate(variables, batch, setup.normalize)

    with _without_cache():
        began = time.perf_counter()
        traced = jax.jit(evaluate).trace(variables, placed)
        compiled = traced.lower().compile(setup.options)
        seconds = time.perf_counter() - began
    count = flops.count(traced.jaxpr) / setup.mesh.size

    def begin(steps):
        for _ in range(steps):
            made = compiled(variables, placed)
        return made

    return _Program(compiled, seconds, count, begin)


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """So that what is compiled is compiled, whatever an earlier run has left on disk."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # which asks but once whether it is on
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _timed(program: _Program, rows: int, steps: int, log: Log) -> dict[str, Any]:
    """Each step waited for, which shows the spread; and all at a stretch, as a run has them."""
    program.seconds(_WARM_UP)
    each = sorted(program.seconds(1) for _ in range(steps))
    # Of one stretch, which a busy machine may disturb; waiting never makes a step shorter.
    seconds = min(program.seconds(steps), statistics.median(each))
    log(
        f"a step takes {_ms(statistics.median(each))}, {_ms(each[0])} to {_ms(each[-1])}, if each "
        f"is waited for; {_ms(seconds)} at a stretch: {rows / seconds:,.1f} images/s"
    )
    return {
        "median": statistics.median(each),
        "least": each[0],
        "most": each[-1],
        "seconds": seconds,
        "images_per_second": rows / seconds,
    }


def _arithmetic(
    program: _Program, setup: Setup, rows: int, seconds: float, log: Log
) -> dict[str, Any]:
    """FLOPs and model FLOPs utilisation, by a device's peak on paper and by what it does."""
    rate = program.flops / seconds
    measured, paper = matmul_rate(setup.experiment.dtype()), peak_flops()
    found = {
        "flops_per_image": program.flops * setup.mesh.size / rows,
        "xla_flops_per_step": (program.compiled.cost_analysis() or {}).get("flops"),
        "flops_per_second": rate,
        "matmul_rate": measured,
        "mfu_of_matmul_rate": rate / measured,
        "peak": paper or None,
        "mfu": rate / paper if paper else None,
    }
    of_paper = (
        f"MFU {rate / paper:.1%} of {_flops(paper)} (bfloat16, data sheet), " if paper else ""
    )
    log(
        f"{found['flops_per_image'] / 1e9:,.3f} GFLOP an image, {_flops(rate)} a device: {of_paper}"
        f"{rate / measured:.1%} of the measured matmul rate, {_flops(measured)} "
        f"({setup.experiment.dtype()})"
    )
    return found


def _memory(program: _Program, device: jax.Device, log: Log) -> dict[str, int | None]:
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    planned = footprint.step_bytes(program.compiled)
    peaked = f"{footprint.size_text(peak)} of memory at most; " if peak else ""
    log(f"{peaked}{footprint.size_text(planned)} on a device by XLA's plan")
    return {"peak_bytes": peak, "planned_bytes": planned}


def _input(setup: Setup, program: _Program | None, steps: int, log: Log) -> dict[str, Any]:
    """The host's rate alone, and with `program` that of both together."""
    exp = setup.experiment
    with _batches(setup, min(exp.batch_size, _INPUT_BATCH)) as batches:
        next(batches)
        began, images = time.perf_counter(), 0
        while (seconds := time.perf_counter() - began) < _INPUT_SECONDS:
            images += len(next(batches)["image"])
    alone = images / seconds
    found: dict[str, Any] = {"images_per_second": alone, "workers": exp.data.workers}
    together = ""
    if program:
        with _batches(setup, exp.batch_size) as batches:
            found["together"] = _fed(program, batches, setup, steps)
        together = f"; {found['together']:,.1f} together"
    log(f"input alone {alone:,.1f} images/s, {exp.data.workers} workers{together}")
    return found


def _limit(host: dict[str, Any], step: dict[str, Any], log: Log) -> dict[str, Any]:
    """Which of them limits a run."""
    rates = {"input": host["images_per_second"], "device": step["images_per_second"]}
    limit, other = sorted(rates, key=rates.get)
    factor = rates[other] / rates[limit]
    log(f"the {limit} limits a run: the other is {factor:,.1f} times as fast")
    return {"limit": limit, "factor": factor}


def _fed(program: _Program, batches: Iterator, setup: Setup, steps: int) -> float:
    """Images a second of the training loop: the next batch is fetched while the device works."""
    made, rows, began = None, 0, 0.0
    for number in range(_WARM_UP + steps):
        batch = parallelism.to_devices(next(batches), setup.mesh)
        if made is not None:
            jax.block_until_ready(made)
        if number == _WARM_UP:
            began = time.perf_counter()
        made = program.on_batch(batch)
        rows += len(batch["image"]) * (number >= _WARM_UP)
    jax.block_until_ready(made)
    return rows / (time.perf_counter() - began)


def _compared(
    program: _Program,
    name: peers.Name,
    spec: dict[str, Any],
    parameters: int,
    steps: int,
    pairs: int,
    log: Log,
) -> dict[str, Any]:
    """Turns of both, pair by pair, each beginning every other time.

    The first step of a turn is not timed: caches and memory are the other's until then, as they
    never are in a run.
    """

    def our_seconds():
        program.seconds(1)
        return program.seconds(steps)

    turns = []
    with peers.Peer(name, spec) as peer:
        theirs = peer.about["parameters"]
        alike = abs(theirs / parameters - 1) <= ALIKE
        log(
            f"against {name} ({', '.join(f'{k} {v}' for k, v in peers.versions(name).items())}, "
            f"{peer.about['form']}): {theirs:,} parameters"
            + ("" if alike else f", ANOTHER NETWORK: vitlab's has {parameters:,}")
        )
        for number in range(pairs):
            if number % 2:
                peers_seconds, ours = peer.seconds(steps), our_seconds()
            else:
                ours, peers_seconds = our_seconds(), peer.seconds(steps)
            turns.append({"vitlab": ours, "peer": peers_seconds, "ratio": peers_seconds / ours})
            log(
                f"  pair {number + 1}: vitlab {_ms(ours)}, {name} {_ms(peers_seconds)}: "
                f"ratio {peers_seconds / ours:.3f}"
            )
    ratio = statistics.median(turn["ratio"] for turn in turns)
    log(f"median ratio {ratio:.3f}: {name}'s time over vitlab's, above 1 vitlab is faster")
    return {
        "name": name,
        "versions": peers.versions(name),
        **peer.about,
        "alike": alike,
        "pairs": turns,
        "ratio": ratio,
    }


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ms"


def _flops(rate: float) -> str:
    return f"{rate / 1e12:,.1f} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:,.1f} GFLOP/s"
