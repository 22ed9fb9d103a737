"""Curves of a run: what `metrics.jsonl` holds against the step, as one PNG."""

import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from vitlab.errors import InputError
from vitlab.evaluation.pictures import COLORS, FAINT, GREY, INK, nothing, style, write

_ALARM_COLOR = "#C00000"
# What each panel shows: lines, each by the last part of a metric's name, the first that occurs.
# Beside these accuracies are those of as many shots as there are.
_PANELS = {
    "loss": (("loss", "nll"),),
    "accuracy": tuple(
        (f"{kind}accuracy",) for kind in ("", "knn_", "linear_", "logistic_", "contrast_")
    ),
    "mean IoU": (("mIoU",),),
    "panoptic quality": (("PQ",),),
    "average precision": (("AP",), ("AP50",), ("AP75",)),
    "spread of the features (feature_std)": (("feature_std",),),
    "effective rank of the features": (("effective_rank",),),
}
_MAX_LINES = 4  # beside which their names have room
_SHOTS = re.compile(r".+/(\d+)_shot_accuracy")


def curves(records: Sequence[Mapping[str, float]], path: epath.PathLike) -> None:
    """Loss and accuracies, mIoU, PQ, AP against the step, of training and of each evaluator.

    Args:
      records: the rows of `metrics.jsonl`, such as `{"step": 100, "train/loss": 1.2}`; a row holds
        what was measured at its step. An evaluator without a loss shows its nll, one of features
        its accuracies. A step with an `"alarm"` is marked.
      path: of the PNG.

    Raises:
      InputError: a record has no "step".
    """
    for number, record in enumerate(records):
        if "step" not in record:
            raise InputError(f"curves: record {number} has no step: {dict(record)}")
    shots = {
        int(found[1]) for record in records for found in map(_SHOTS.fullmatch, record) if found
    }
    accuracies = (*_PANELS["accuracy"], *((f"{count}_shot_accuracy",) for count in sorted(shots)))
    lines = {**_PANELS, "accuracy": accuracies}
    panels = {title: _series(records, names) for title, names in lines.items()}
    panels = {title: series for title, series in panels.items() if series}
    if not panels:
        write(nothing("no loss and no accuracy was recorded"), path)
        return
    sources = list(dict.fromkeys(source for series in panels.values() for source in series))
    # Those with one line a panel come first, so that they have the plainest looks.
    sources.sort(key=lambda source: (source != "train", " " in source))
    evaluators = [source for source in sources if source != "train"]
    looks = {
        source: {"color": COLORS[i % len(COLORS)], "linestyle": "-" if i < len(COLORS) else "--"}
        for i, source in enumerate(evaluators)
    }
    looks["train"] = {"color": GREY}

    figure = Figure(figsize=(5.4 * len(panels), 3.9), layout="constrained")
    for axes, (title, series) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        style(axes, title=title, xlabel="step")
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        for step in {record["step"] for record in records if "alarm" in record}:
            axes.axvline(step, color=_ALARM_COLOR, linewidth=1, linestyle=(0, (2, 2)))
        for source in (source for source in sources if source in series):
            _curve(axes, *series[source], looks[source], source)
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 2}
        place = below if len(series) > _MAX_LINES else {}
        legend = axes.legend(frameon=False, fontsize=9, labelcolor=INK, **place)
        for text in legend.get_texts():
            text.set_parse_math(False)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    write(figure, path)


def _series(records, lines) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of each source ("train", "test") that has a metric of one of the lines."""
    series = {}
    sources = dict.fromkeys(key.rpartition("/")[0] for record in records for key in record)
    for source, names in itertools.product(filter(None, sources), lines):
        for name in names:
            points = [
                (record["step"], record[f"{source}/{name}"])
                for record in records
                if record.get(f"{source}/{name}") is not None
            ]
            if points:
                kind = name if name.startswith("AP") else ""
                if name.endswith("_accuracy"):
                    kind = name.removesuffix("_accuracy").replace("_", "-")
                series[f"{source} {kind}".strip()] = np.array(sorted(points), np.float64).T
                break
    return series


def _curve(axes: Axes, steps, values, look: Mapping[str, str], label: str) -> None:
    """Few points as they are; many as a running mean over a faint line of them all."""
    window = len(values) // 100
    if window < 2:
        marker = "o" if len(values) <= 30 else None
        axes.plot(steps, values, **look, linewidth=1.8, marker=marker, markersize=3.5)
    else:
        axes.plot(steps, values, **look, linewidth=0.6, alpha=0.3)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        values = smooth
        axes.plot(steps[window - 1 :], smooth, **look, linewidth=1.8)
    finite = values[np.isfinite(values)]
    last = f"  {finite[-1]:.4g}" if len(finite) else ""
    axes.lines[-1].set_label(label + last)
