"""The pictures of a run's evaluations, drawn so often as takes little of its time."""

import math
import pathlib
import time
from collections.abc import Callable

from vitlab.training.evaluator import Evaluator
from vitlab.training.features import FeatureEvaluator
from vitlab.training.split import Outputs

# The share of the time that the pictures of one evaluator may take.
_SHARE = 1 / 20


class Pictures:
    """Draws what evaluators gave, each into the directory of its name.

    Args:
        directory: `report/` of the working directory.
        log: told, once, that pictures cannot be written.
    """

    def __init__(self, directory: pathlib.Path, log: Callable[[str], None]):
        self._directory, self._log, self._told = directory, log, False
        # By the evaluator's name: what it gave since it was drawn; when that was, how long it took.
        self._undrawn: dict[str, tuple[Evaluator | FeatureEvaluator, Outputs]] = {}
        self._drawn: dict[str, tuple[float, float]] = {}

    def offer(self, evaluator: Evaluator | FeatureEvaluator, outputs: Outputs) -> None:
        """Draws an evaluator's outputs now, or keeps them for `finish`; so too on a full disk."""
        self._undrawn[evaluator.name] = (evaluator, outputs)
        when, took = self._drawn.get(evaluator.name, (-math.inf, 0.0))
        if time.monotonic() - when <= took / _SHARE:
            return
        try:
            self._draw(evaluator.name)
        except OSError as e:
            if not self._told:
                self._told = True
                self._log(f"{self._directory}: {e.strerror or e}; training goes on")

    def finish(self) -> None:
        """Draws what is not drawn yet.

        Raises:
            OSError: it cannot be written.
        """
        for name in list(self._undrawn):
            self._draw(name)

    def _draw(self, name: str) -> None:
        began = time.monotonic()
        evaluator, outputs = self._undrawn[name]
        directory = self._directory / name
        directory.mkdir(parents=True, exist_ok=True)
        evaluator.draw(outputs, directory)
        del self._undrawn[name]
        self._drawn[name] = (time.monotonic(), time.monotonic() - began)
