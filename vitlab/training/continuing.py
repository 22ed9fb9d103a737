"""Whose a working directory is, and how a run goes on from a checkpoint of another."""

import dataclasses
import json
import pathlib
from typing import Any

import jax

from vitlab import checkpoints, distributed
from vitlab import config as config_lib
from vitlab.errors import InputError
from vitlab.training.experiment import not_in_hash
from vitlab.training.setup import Setup
from vitlab.training.step import TrainState

# What a run has in common with the one that it goes on from: what the state means, and which
# examples come at which step.
_SHARED = (
    "task", "model", "ema_decay", "optimizer.name", "seed", "batch_size", "data.source",
    "data.split", "data.repeats",
)  # fmt: skip
# What alone tells a longer training, or one that is cooled down, from another.
_LENGTH = ("total_steps", "total_epochs", "total_examples", "schedule")
# Entries of the state that go on. The sums of metrics begin anew: the loss may be another.
_ENTRIES = tuple(f.name for f in dataclasses.fields(TrainState) if f.name != "totals")
_ABSENT = object()


def claim(setup: Setup, workdir: pathlib.Path) -> dict[str, Any] | None:
    """Makes a working directory (made already) this config's own; one where nothing ran yet is
    free.

    Returns:
        The `result.json` of a run that is finished, or None.

    Raises:
        InputError: the directory belongs to another config, cannot be written, or its files are
            damaged.
    """
    path = workdir / "config.json"
    result = workdir / "result.json"
    try:
        began = (workdir / "metrics.jsonl").exists()
        if began or checkpoints.list_checkpoints(workdir / "checkpoints"):
            differ = _differences(path, setup)
            if differ:
                longer = all(_within(key, _LENGTH) for key in differ)
                advice = f", and config.resume={workdir} to go on from what is there" * longer
                raise InputError(
                    f"{workdir} belongs to another config: "
                    f"{'; '.join(list(differ.values())[:3])}. Give another --workdir{advice}"
                )
        finished = checkpoints.read_json(result) if result.exists() else None
        if finished is not None and "step" not in finished:
            raise InputError(f"{result} is damaged: it lacks the key 'step'")
        distributed.wait_for_all("the working directory is read")
        if jax.process_index() == 0:
            partial = workdir / ".config.json"
            partial.write_text(json.dumps(setup.resolved, indent=1) + "\n")
            partial.replace(path)
    except OSError as e:
        raise InputError(f"--workdir {e.filename or workdir}: {e.strerror or e}") from e
    return finished


def origin(setup: Setup) -> checkpoints.Checkpoint | None:
    """The checkpoint that `config.resume` names, whole and fit for this run; None without one.

    Raises:
        InputError: there is none, it is damaged, of another model, data or optimizer, or of no
            earlier step than the last of this training.
    """
    name = setup.experiment.resume
    if not name:
        return None
    checkpoint = checkpoints.locate(name)
    differ = _differences(checkpoint.path.parents[1] / "config.json", setup)
    for key, text in differ.items():
        if _within(key, _SHARED):
            raise InputError(
                f"config.resume: {text}, and a run goes on with the same; config.init_from takes "
                "parameters alone"
            )
    if checkpoint.step >= setup.total:
        raise InputError(
            f"config.resume: {checkpoint.path} is of step {checkpoint.step}, and this training "
            f"ends at step {setup.total}; give it a larger total_steps (or _epochs, _examples)"
        )
    try:
        checkpoints.verify(checkpoint)
        checkpoints.check_fit(checkpoint, _target(setup), _ENTRIES)
    except checkpoints.DamagedError as e:
        raise InputError(f"config.resume: {checkpoint.path} is damaged: {e}") from e
    except InputError as e:
        cause = [text for key, text in differ.items() if _within(key, ("optimizer",))]
        raise InputError(f"config.resume: {'; '.join([*cause[:1], str(e)])}") from e
    return checkpoint


def state_of(checkpoint: checkpoints.Checkpoint, setup: Setup) -> TrainState:
    """All that `origin` found: parameters, other collections, optimizer, average and step.

    Raises:
        InputError: it is gone, as the other run went on and keeps later ones alone, or damaged.
    """
    try:  # again: compiling takes a while
        checkpoints.verify(checkpoint)
    except checkpoints.DamagedError as e:
        raise InputError(
            f"config.resume: {e} now; is that run still going? Start from a later one, or let it "
            "keep more: config.checkpoint.keep"
        ) from e
    return setup.reset_totals(checkpoints.read(checkpoint, _target(setup), _ENTRIES))


def _target(setup: Setup) -> TrainState:
    return setup.target.replace(totals={})


def _differences(path: pathlib.Path, setup: Setup) -> dict[str, str]:
    """What differs between the config of a run and ours and changes results: `{"a.b": "config.a.b
    is 1 there and 2 here"}`, sorted."""
    theirs, ours = (
        json.loads(config_lib.canonical(each, not_in_hash(each)))
        for each in (setup.completed(checkpoints.read_json(path)), setup.resolved)
    )
    return {
        key: f"config.{key} is {there} there and {here} here"
        for key, there, here in _differing(theirs, ours, "")
    }


def _differing(theirs: Any, ours: Any, where: str) -> list[tuple[str, str, str]]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        found = []
        for key in sorted(theirs.keys() | ours.keys()):
            found += _differing(theirs.get(key, _ABSENT), ours.get(key, _ABSENT), f"{where}.{key}")
        return found
    texts = ("not set" if each is _ABSENT else repr(each) for each in (theirs, ours))
    return [] if theirs == ours else [(where.removeprefix("."), *texts)]


def _within(key: str, sections: tuple[str, ...]) -> bool:
    """Whether a dotted key is one of these, or below one."""
    return any(f"{key}.".startswith(f"{section}.") for section in sections)
