"""The input pipeline: examples of a source to batches of arrays, the same on any machine.

A batch is a function of the seed and the step alone. The global batch of step s holds the global
positions s * batch_size, s * batch_size + 1, ..., and `vitlab.data.order` says which example is at
which. So the data position of a run is its integer step, and neither the number of processes,
workers and threads nor an interruption changes a single bit. Grain
(https://github.com/google/grain) loads the batches ahead of time in threads or worker processes;
the batch index is the element that is split over them.
"""

import dataclasses
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable
from typing import Any, Literal

import grain
import numpy as np
from absl import flags

from vitlab import allocator
from vitlab.data.order import Order
from vitlab.data.sources import Source
from vitlab.errors import InputError, NoRoomError, WorkerError

Example = dict[str, Any]
Batch = dict[str, np.ndarray]
Preprocess = Callable[[Example, np.random.Generator], Example]
OnError = Literal["raise", "skip"]

# Up to this share of a split may be broken images that are skipped (one is always allowed).
_BROKEN_SHARE = 0.01
# Smaller arrays go through the worker's pipe: a shared memory segment costs more than the copy.
_MIN_SHARED_BYTES = 1 << 16


class Batches:
    """Iterator over batches, loaded ahead of time; `close()` ends its threads and processes.

    Attributes:
        broken: {id: one line that names the example and its fault}, every distinct broken example
            that the batches handed out so far ran into. Only `on_error="skip"` fills it.

    Raises:
        InputError: from `next`, for a broken example (`on_error="raise"`) or when more than 1 % of
            the split, and more than one example, turned out to be broken.
        WorkerError: from `next`, when a worker process was killed.
    """

    def __init__(self, batches: grain.IterDataset, num_examples: int):
        self.broken: dict[int, str] = {}
        self._num_examples = num_examples
        self._iterator = iter(batches)
        # Also at the end of the interpreter, where worker processes would outlive what they need.
        self._finalizer = weakref.finalize(self, self._iterator.close)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        try:
            batch, broken = next(self._iterator)
        except Exception as error:  # StopIteration as well.
            # The other workers would go on loading batches that nobody takes.
            self.close()
            if isinstance(error, InputError):
                # Without the note about tracebacks that Grain adds to it.
                raise InputError(str(error)) from None
            if isinstance(error, RuntimeError):
                line = str(error).partition("\n")[0]
                raise WorkerError(f"a process that reads data failed: {line}") from error
            raise
        for index, fault in broken:
            self.broken.setdefault(index, fault)
        if len(self.broken) > _broken_limit(self._num_examples):
            self.close()
            raise _too_many_broken(self.broken, self._num_examples)
        return batch

    def broken_report(self) -> str:
        """One line with the number of broken examples and the first of them; "" without any."""
        return _broken_report(self.broken, self._num_examples) if self.broken else ""

    def close(self) -> None:
        """Stops loading; there are no more batches after it."""
        self._finalizer()
        # Grain's iterator would complain at the end of the interpreter, if it lived until then.
        self._iterator = iter(())


def train_batches(
    source: Source,
    preprocess: Preprocess,
    *,
    batch_size: int,
    seed: int,
    repeats: int = 1,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    threads: int = 2,
    prefetch: int = 2,
    on_error: OnError = "raise",
) -> Batches:
    """Endless batches of shuffled examples; without `repeats` every epoch visits each example once,
    in a new order.

    Batches run on across the borders of epochs, so nothing is left out. With
    b = batch_size // process_count a batch is a dict of
        image: uint8[b, height, width, channels]
        label: int32[b]
        id: int32[b], the index of the example in the source
        epoch: int32[b]
        mask: bool[b], all true
    and of whatever else the preprocessing leaves in the example, stacked.

    Args:
        source: the examples.
        preprocess: maps (example, generator) to the example as it goes into the batch. The
            generator is `example_rng(seed, epoch, id)`. It must not depend on anything else.
        batch_size: global, over all processes.
        repeats: how often an example comes, each time with draws of its own, before it is another's
            turn; `epoch` then counts these times too. See `Order`.
        start_step: the batches begin as those of a run from step 0 go on at this step.
        process_index, process_count: this process's consecutive rows of the global batch.
        workers: processes that load batches; 0 loads in this one.
        threads: threads that load batches, in each worker or in this process; 0 loads a batch when
            it is asked for.
        prefetch: batches that are kept ready, in each worker or in this process.
        on_error: what an InputError of the source or the preprocessing does. "raise" ends the run
            with the name of the example; "skip" puts the next readable example (id + 1, ...) in its
            place, so that batches stay full, until more than 1 % of the split is broken. A
            `NoRoomError` ends the run in any case.

    Raises:
        InputError: a size that does not divide, or see `Batches`.
    """
    rows = _rows(batch_size, process_index, process_count)
    order = Order(seed, len(source), repeats, batch_size)
    load = _TrainBatch(_Reader(source, preprocess, seed, on_error), order, batch_size, rows)
    # Any run ends before step 2**40; Grain wants a length.
    steps = grain.MapDataset.range(start_step, 2**40)
    return Batches(_load_ahead(steps.map(load), workers, threads, prefetch), len(source))


def eval_batches(
    source: Source,
    preprocess: Preprocess,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    threads: int = 2,
    prefetch: int = 2,
    on_error: OnError = "raise",
) -> Batches:
    """Every example exactly once, in order; the same number of batches on every process.

    The batches are those of `train_batches` with epoch 0 and generators `example_rng(0, 0, id)`.
    Rows past the last example are zero, with mask false. So is, with `on_error="skip"`, the row of
    a broken example (it keeps its id).

    Raises:
        InputError: a size that does not divide, or see `Batches`.
    """
    load = _EvalBatch(
        _Reader(source, preprocess, seed=0, on_error=on_error),
        batch_size=batch_size,
        rows=_rows(batch_size, process_index, process_count),
    )
    steps = grain.MapDataset.range(-(-len(source) // batch_size))
    return Batches(_load_ahead(steps.map(load), workers, threads, prefetch), len(source))


def example_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of all host-side draws for one example in one epoch.

    Philox is keyed by its 128 bits as they are (Salmon et al. 2011), which takes half the time of
    hashing a seed sequence.
    """
    key = [int(seed) % 2**64, (int(epoch) % 2**32) << 32 | int(index)]
    return np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))


def first_example(source: Source, preprocess: Preprocess, on_error: OnError) -> Batch:
    """A batch of one: the first example that can be read, for the shapes of all others.

    Raises:
        InputError: it cannot be read (`on_error="raise"`), or too much of the split cannot.
    """
    reader = _Reader(source, preprocess, seed=0, on_error=on_error)
    return _stack([reader.first_readable(0, 0, {})], source)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads and preprocesses single examples."""

    source: Source
    preprocess: Preprocess
    seed: int
    on_error: OnError

    def __post_init__(self):
        if self.on_error not in ("raise", "skip"):
            raise InputError(f"on_error {self.on_error!r} is not known: it is 'raise' or 'skip'")

    def __call__(self, index: int, epoch: int) -> Example:
        """The example with `id`, `epoch` and `mask`; an InputError names it in one line."""
        try:
            example = self.preprocess(self.source[index], example_rng(self.seed, epoch, index))
        except InputError as error:
            where, fault = self.source.describe(index), " ".join(str(error).split())
            named = fault if fault.startswith(f"{where}:") else f"{where}: {fault}"
            raise type(error)(named) from error
        return {**example, "id": index, "epoch": epoch, "mask": True}

    def first_readable(self, index: int, epoch: int, broken: dict[int, str]) -> Example:
        """The example at `index`, or the next after it that can be read.

        Adds what it found to be broken to `broken`; an InputError if that is too much of the split.
        """
        size = len(self.source)
        found: dict[int, str] = {}
        while len(found) <= _broken_limit(size):
            try:
                return self(index, epoch)
            except InputError as error:
                if self.on_error == "raise" or isinstance(error, NoRoomError):
                    raise
                found[index] = broken[index] = str(error)
                index = (index + 1) % size
        raise _too_many_broken(found, size)


class _TrainBatch:
    """Maps a step to this process's rows of the global batch, and to what was broken."""

    def __init__(self, reader: _Reader, order: Order, batch_size: int, rows: range):
        self._reader, self._order = reader, order
        self._batch_size, self._rows = batch_size, rows

    def __call__(self, step: int) -> tuple[Batch, tuple[tuple[int, str], ...]]:
        broken: dict[int, str] = {}
        first = step * self._batch_size
        order = self._order(range(first + self._rows.start, first + self._rows.stop))
        examples = [
            self._reader.first_readable(index, epoch, broken)
            for index, epoch in zip(*(x.tolist() for x in order), strict=True)
        ]
        return _stack(examples, self._reader.source), tuple(broken.items())


class _EvalBatch:
    """Maps a batch index to this process's rows of the batch, and to what was broken."""

    def __init__(self, reader: _Reader, *, batch_size: int, rows: range):
        self._reader, self._batch_size, self._rows = reader, batch_size, rows

    def __call__(self, step: int) -> tuple[Batch, tuple[tuple[int, str], ...]]:
        broken: dict[int, str] = {}
        examples: list[Example | int] = []  # An int is the id of a row without an example.
        for row in self._rows:
            index = step * self._batch_size + row
            if index >= len(self._reader.source):
                examples.append(0)
                continue
            try:
                examples.append(self._reader(index, 0))
            except InputError as error:
                if self._reader.on_error == "raise" or isinstance(error, NoRoomError):
                    raise
                broken[index] = str(error)
                examples.append(index)
        readable = [example for example in examples if isinstance(example, dict)]
        # Only a real example knows the shapes of an empty row.
        like = readable[0] if readable else self._reader.first_readable(0, 0, broken)
        empty = {key: np.zeros_like(value) for key, value in like.items()}
        filled = [{**empty, "id": x} if isinstance(x, int) else x for x in examples]
        return _stack(filled, self._reader.source), tuple(broken.items())


def _rows(batch_size: int, process_index: int, process_count: int) -> range:
    if batch_size < 1 or batch_size % process_count:
        raise InputError(
            f"batch_size {batch_size} does not share out evenly over {process_count} processes"
        )
    rows = batch_size // process_count
    return range(process_index * rows, (process_index + 1) * rows)


def _load_ahead(
    batches: grain.MapDataset, workers: int, threads: int, prefetch: int
) -> grain.IterDataset:
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(prefetch, threads) if threads else 0
    )
    loaded = batches.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            # Grain asks for flags of its own, which absl refuses before `app.run` or this.
            flags.FLAGS.mark_as_parsed()
        loaded = grain.experimental.WithOptionsIterDataset(
            loaded, grain.experimental.DatasetOptions(min_shm_size=_MIN_SHARED_BYTES)
        )
        options = grain.MultiprocessingOptions(num_workers=workers)
        loaded = loaded.mp_prefetch(options, worker_init_fn=_start_worker)
    return loaded


def _start_worker(worker_index: int, worker_count: int) -> None:
    """What is sent to all processes of a run is for the main one, which ends its workers itself."""
    del worker_index, worker_count
    threading.Thread(target=_end_with_the_main_process, daemon=True).start()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    allocator.keep_freed_memory()


def _end_with_the_main_process() -> None:
    """One that was killed could not end its workers."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _stack(examples: list[Example], source: Source) -> Batch:
    """Stacks the examples key by key; Python numbers become int32, float32 and bool."""
    batch = {}
    for key in examples[0]:
        values = [np.asarray(example[key]) for example in examples]
        for value, example in zip(values, examples, strict=True):
            if value.shape != values[0].shape:
                a, b = (source.describe(x["id"]) for x in (examples[0], example))
                raise InputError(
                    f"one batch cannot hold {key} of shape {values[0].shape} ({a}) and of "
                    f"{value.shape} ({b}): add a resize or a crop to the preprocessing"
                )
        stacked = np.stack(values)
        if isinstance(examples[0][key], (int, float)) and stacked.dtype.itemsize == 8:
            stacked = stacked.astype(np.int32 if stacked.dtype.kind == "i" else np.float32)
        batch[key] = stacked
    image = batch["image"]
    if image.dtype != np.uint8 or image.ndim != 4:
        found = f"{image.dtype}{list(image.shape[1:])}" if image.ndim > 1 else "a file's bytes"
        raise InputError(
            f"the preprocessing leaves {found} as the image, not uint8[height, width, channels]: "
            "let it begin with decode"
        )
    return batch


def _broken_limit(num_examples: int) -> int:
    return max(1, int(num_examples * _BROKEN_SHARE))


def _broken_report(broken: dict[int, str], num_examples: int) -> str:
    first = "; ".join(fault for _, fault in zip(range(3), broken.values(), strict=False))
    return f"{len(broken)} of {num_examples} images are broken: {first}"


def _too_many_broken(broken: dict[int, str], num_examples: int) -> InputError:
    report = _broken_report(broken, num_examples)
    return InputError(f"more than 1 % of the split cannot be read, {report}")
