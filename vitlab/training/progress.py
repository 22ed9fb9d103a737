"""What a person sees while a run goes on: a live bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping

from rich import progress as rich_progress
from rich.console import Console
from rich.table import Table


class Progress:
    """Step, loss, accuracy, images a second and the time left.

    Args:
        console: where to print. One that is no terminal gets a line for each `update`.
        start, total: steps done, and steps of the whole training.
    """

    def __init__(self, console: Console, start: int, total: int):
        self.console = console
        self.start, self.total = start, total
        self._began = time.monotonic()
        self._live = None
        if console.is_terminal:
            self._live = rich_progress.Progress(
                rich_progress.TextColumn("step {task.completed}/{task.total}"),
                rich_progress.BarColumn(),
                rich_progress.TextColumn("{task.description}"),
                console=console,
                transient=True,
            )
            self._bar = self._live.add_task("starting", total=total, completed=start)
            self._live.start()

    def advance(self, step: int) -> None:
        """Moves the bar; costs nothing worth mentioning."""
        if self._live:
            self._live.update(self._bar, completed=step)

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the training metrics of a log step."""
        left = (time.monotonic() - self._began) / (step - self.start) * (self.total - step)
        parts = [f"loss {values['train/loss']:.4f}"]
        if "train/accuracy" in values:
            parts.append(f"accuracy {values['train/accuracy']:.2%}")
        parts += [f"{values['images_per_second']:,.0f} images/s", f"{clock(left)} left"]
        if self._live:
            self._live.update(self._bar, completed=step, description="  ".join(parts))
        else:
            self.line(f"step {step}/{self.total}  " + "  ".join(parts))

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Takes the bar away."""
        if self._live:
            self._live.stop()
            self._live = None


def metrics_table(metrics: Mapping[str, float]) -> Table:
    """`EVALUATOR/METRIC` values as a table, a row for each metric and a column an evaluator."""
    evaluators = list(dict.fromkeys(name.partition("/")[0] for name in metrics))
    names = list(dict.fromkeys(name.partition("/")[2] for name in metrics))
    table = Table("metric", *evaluators)
    for name in names:
        values = (metrics.get(f"{evaluator}/{name}") for evaluator in evaluators)
        table.add_row(name, *("" if v is None else f"{v:.4f}" for v in values))
    return table


def clock(seconds: float) -> str:
    """`75.2` as `1:15`, and hours where there are some."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
