"""What a run writes down: `metrics.jsonl`, TensorBoard events, Weights & Biases."""

import json
import pathlib
import uuid
from collections.abc import Mapping
from typing import Any


class Journal:
    """Records of a run, one JSON object a line, each with its `step`.

    Args:
        workdir: the working directory.
        after_step: records of later steps are cut: they belong to a run that was interrupted
            and whose steps come again.
        tensorboard: whether to write TensorBoard events below `tensorboard/`.
        wandb: a Weights & Biases project, or empty.
        name: the run's name there, which runs of one config share; its id is of the working
            directory.
        config: the resolved config, shown there.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        after_step: int,
        tensorboard: bool,
        wandb: str,
        name: str,
        config: Mapping[str, Any],
    ):
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
        kept = [r for r in read(self.path) if r["step"] <= after_step]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
        partial.replace(self.path)
        self._file = self.path.open("a", buffering=1)
        if tensorboard:
            import tensorboardX  # not at the top: it takes half a second

            self._events = tensorboardX.SummaryWriter(
                str(workdir / "tensorboard"), purge_step=after_step + 1 if after_step else None
            )

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one record. Values are numbers; `step` is the number of steps done."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        if self._events:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(dict(values), step=step)

    def alarm(self, step: int, text: str) -> None:
        """Appends a record of an alarm."""
        self._file.write(json.dumps({"step": step, "alarm": text}) + "\n")
        if self._events:
            self._events.add_text("alarm", text, step)
        if self._wandb:
            self._wandb.log({"alarm": text}, step=step)

    def close(self) -> None:
        """Flushes everything to disk."""
        self._file.close()
        if self._events:
            self._events.close()
        if self._wandb:
            self._wandb.finish()


def _wandb_id(path: pathlib.Path) -> str:
    """The id in a file, made there the first time; one that a crash left empty counts as none."""
    id = path.read_text() if path.exists() else ""
    if not id:
        id = uuid.uuid4().hex
        path.parent.mkdir(exist_ok=True)
        path.write_text(id)
    return id


def read(path: pathlib.Path) -> list[dict[str, Any]]:
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
