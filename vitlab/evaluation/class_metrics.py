"""Metrics of each class as a file, beside the pictures of them."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence


def write_class_metrics(
    metrics: Mapping[str, Mapping[str, float]], class_names: Sequence[str], directory: pathlib.Path
) -> None:
    """Writes `classes.json`, `{metric: {class name: value}}`.

    Args:
        metrics: by class name, such as those of `detection.per_class_ap`. One that is nan or left
            out, as of a class that does not occur, becomes null.
        class_names: all of them, in the order of the labels.
        directory: of the file.
    """
    table = {}
    for metric, values in metrics.items():
        found = {name: values.get(name, math.nan) for name in class_names}
        table[metric] = {name: None if math.isnan(x) else x for name, x in found.items()}
    (directory / "classes.json").write_text(json.dumps(table, indent=1) + "\n")
