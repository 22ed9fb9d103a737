"""What a run writes down: `metrics.jsonl`, TensorBoard events, Weights & Biases."""

import contextlib
import json
import pathlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vitlab.training.event_file import EventFile
from vitlab.training.record_file import RecordFile

Record = dict[str, Any]


class Journal:
    """Records of a run, one JSON object a line, each with its `step`.

    A full disk does not end the run: what finds no room is left out, as a whole record.

    Args:
        workdir: the working directory.
        after_step: the run goes on from here.
        keep: which of the records that are there stay; the others belong to a run that was
            interrupted, and come again.
        tensorboard: whether to write TensorBoard events below `tensorboard/`.
        wandb: a Weights & Biases project, or empty.
        name: the run's name there, which runs of one config share; its id is of the working
            directory.
        config: the resolved config, shown there.
        log: told, once for each file, that it cannot be written.

    Raises:
        OSError: the files cannot be opened, or not cut.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        after_step: int,
        keep: Callable[[Record], bool],
        tensorboard: bool,
        wandb: str,
        name: str,
        config: Mapping[str, Any],
        log: Callable[[str], None],
    ):
        self._log, self._told = log, set()
        self._events = self._wandb = None
        if wandb:
            import wandb as wandb_lib

            self._wandb = wandb_lib.init(
                project=wandb,
                name=name,
                id=_wandb_id(workdir / "wandb" / "run_id"),
                config=dict(config),
                dir=workdir,
                resume="allow",
            )
        self.path = workdir / "metrics.jsonl"
        kept = [record for record in read(self.path) if keep(record)]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
        partial.replace(self.path)
        self._file = RecordFile(self.path)
        if tensorboard:
            self._events = EventFile(workdir / "tensorboard", after_step + 1)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one record. Values are numbers; `step` is the number of steps done."""
        self._append({"step": step, **values})
        if self._events:
            with self._going_on(self._events.path):
                self._events.scalars(step, values)
        if self._wandb:
            self._wandb.log(dict(values), step=step)

    def alarm(self, step: int, text: str) -> None:
        """Appends a record of an alarm."""
        self._append({"step": step, "alarm": text})
        if self._events:
            with self._going_on(self._events.path):
                self._events.text(step, "alarm", text)
        if self._wandb:
            self._wandb.log({"alarm": text}, step=step)

    def close(self) -> None:
        """Closes everything."""
        for file in filter(None, (self._file, self._events)):
            with self._going_on(file.path):
                file.close()
        if self._wandb:
            self._wandb.finish()

    def _append(self, record: Mapping[str, Any]) -> None:
        with self._going_on(self.path):
            self._file.append(json.dumps(record).encode() + b"\n")

    @contextlib.contextmanager
    def _going_on(self, path: pathlib.Path) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            if path not in self._told:
                self._told.add(path)
                self._log(f"{path}: {e.strerror or e}; training goes on, records are left out")


def _wandb_id(path: pathlib.Path) -> str:
    """The id in a file, made there the first time; one that a crash left empty counts as none."""
    id = path.read_text() if path.exists() else ""
    if not id:
        id = uuid.uuid4().hex
        path.parent.mkdir(exist_ok=True)
        path.write_text(id)
    return id


def read(path: pathlib.Path) -> list[Record]:
    """The records of a `metrics.jsonl`, up to one that a crash cut short or that is damaged."""
    records = []
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                break
            if not isinstance(record, dict) or "step" not in record:
                break
            records.append(record)
    return records
