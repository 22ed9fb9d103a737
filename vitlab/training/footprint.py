"""How much memory a run takes on a device, known before its first step."""

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from vitlab.errors import InputError
from vitlab.training import parallelism
from vitlab.training.layout import bytes_on_a_device
from vitlab.training.setup import Setup
from vitlab.training.step import TrainState


def step_bytes(compiled: Any) -> int:
    """Bytes on one device while a compiled step runs, by XLA's own plan; 0 where it gives none.

    The state and the batch that come in, what the step makes, and its scratch space; the new state
    takes the old one's place.
    """
    plan = compiled.memory_analysis()
    if plan is None:
        return 0
    made = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return plan.argument_size_in_bytes + plan.temp_size_in_bytes + made


def compile_to_fit(setup: Setup, log: Callable[[str], None]) -> jax.stages.Compiled:
    """The compiled step, and a line on what the run holds and needs on a device.

    Raises:
        InputError: a step needs more than there is; the message names settings under which it
            would fit, each compiled to see. Or the data set of `config.data.cache` alone does.
    """
    limit = parallelism.device_memory() or math.inf
    data = setup.cache.examples if setup.cache else None
    if bytes_on_a_device(data) > limit:
        raise InputError(
            f"config.data.cache: the data set takes {size_text(bytes_on_a_device(data))} on each "
            f"device, which holds {size_text(limit)}; leave cache empty"
        )
    compiled, needed = _compile(setup)
    if compiled is not None and needed <= limit:
        log(describe(setup.target, data, needed, limit))
        if data:
            _keep_evaluations(setup, limit - needed)
        return compiled
    log("a step does not fit into the memory of a device; looking for settings that do")
    found = [f"{name} ({size_text(size)})" for name, size in _smaller(setup, needed, limit)]
    advice = f"it would fit with {'; or '.join(found)}" if found else "take a smaller model"
    much = f"{size_text(needed)} on each device, which holds {size_text(limit)}"
    raise InputError(f"a step needs {much if needed else 'more than a device holds'}; {advice}")


def _keep_evaluations(setup: Setup, room: float) -> None:
    """Lets the evaluators keep their data on the devices too, where half of the room is enough: the
    other half is for what they compute."""
    for evaluator in setup.evaluators:
        for split in evaluator.splits:
            split.keep = 2 * split.bytes_on_a_device <= room
            room -= split.bytes_on_a_device * split.keep


def _compile(setup: Setup) -> tuple[jax.stages.Compiled | None, int]:
    """A compiled step and its bytes; None where the compiler itself finds that it is too large."""
    try:
        compiled = setup.compile_step()
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        return None, 0
    return compiled, step_bytes(compiled)


def _smaller(setup: Setup, needed: int, limit: float) -> Iterator[tuple[str, int]]:
    """Up to three settings under which a step fits, each with its bytes on a device."""
    exp, resolved, shards = setup.experiment, setup.resolved, parallelism.batch_shards(setup.mesh)
    # A smaller part of the batch takes about that part of the memory, or a little more.
    first = max(int(needed / limit).bit_length(), 1)
    parts = [2**i for i in range(first, first + 4) if exp.batch_size % (2**i * shards) == 0]
    tries: list[list[dict[str, Any]]] = [[{"data.cache": ""}]] if exp.data.cache else []
    model = resolved["model"]
    for where, part in (("model", model), ("model.backbone", model.get("backbone", {}))):
        if part.get("remat") == "none":
            tries.append([{f"{where}.remat": "full"}])
    if not jax.tree.leaves(setup.target.model_state):
        tries.append([{"accumulate": exp.accumulate * part} for part in parts])
    if exp.parallelism.mode == "jit" and setup.mesh.shape["data"] == setup.mesh.size > 1:
        tries.append([{"parallelism.mesh": {"data": 1, "fsdp": setup.mesh.size, "tensor": 1}}])
    tries.append([{"batch_size": exp.batch_size // part} for part in parts])
    found = 0
    for choices in tries:
        for choice in choices:
            try:
                compiled, size = _compile(Setup(_replaced(resolved, choice)))
            except InputError:  # it is no legal setting for this model
                continue
            if compiled is not None and size <= limit:
                yield ", ".join(f"config.{key}={value}" for key, value in choice.items()), size
                found += 1
                break
        if found == 3:
            return


def _replaced(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    config = copy.deepcopy(dict(config))
    for key, value in values.items():
        *sections, last = key.split(".")
        functools.reduce(dict.__getitem__, sections, config)[last] = value
    return config


def describe(state: TrainState, data: Any, step: int, limit: float) -> str:
    """One line on what a device holds.

    Args:
        state: `jax.ShapeDtypeStruct`s with shardings.
        data: those of the data that lie on the device, or None.
        step: see `step_bytes`.
        limit: see `vitlab.training.parallelism.device_memory`.
    """
    parts: Mapping[str, Any] = {
        "parameters": state.params,
        "optimizer": state.opt_state,
        "average": state.ema,
        "data set": data,
    }
    sizes = {name: bytes_on_a_device(tree) for name, tree in parts.items()}
    held = ", ".join(f"{name} {size_text(size)}" for name, size in sizes.items() if size)
    there = f" of {size_text(limit)}" if limit < math.inf else ""
    return f"on each device: {held}; a step needs {size_text(step)}{there}"


def size_text(size: float) -> str:
    """Bytes as `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
