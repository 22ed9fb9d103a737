"""What a run leaves behind for people and scripts: `report/` and `result.json`."""

import hashlib
import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vitlab.evaluation.curves import curves
from vitlab.training import journal
from vitlab.training.rules import path_string


def fingerprint(params: Any) -> str:
    """sha256 over the parameters: name, shape, dtype and bytes of each, in the order of names.

    Two runs with the same fingerprint ended with the same bits.

    Args:
        params: a tree of NumPy arrays.
    """
    digest = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for name, leaf in sorted((path_string(path), np.asarray(leaf)) for path, leaf in leaves):
        digest.update(f"{name} {leaf.shape} {leaf.dtype}\n".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Of Python and of every package that can change a result."""
    packages = (
        "vitlab",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "grain",
        "numpy",
        "pillow",
        "scikit-learn",
        "tensorflow-datasets",
    )
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # run from a checkout that was never installed
    return found


def write_result(
    workdir: pathlib.Path,
    metrics: Mapping[str, float],
    best: Mapping[str, Any],
    alarms: Sequence[Mapping[str, Any]],
    step: int,
    seconds: float,
    config_hash: str,
    params: Any,
    devices: list[jax.Device],
) -> dict[str, Any]:
    """Writes `result.json`, whose presence says that the run is finished, and returns it."""
    result = {
        "metrics": dict(metrics),
        "best": dict(best),
        "alarms": list(alarms),
        "step": step,
        "seconds": round(seconds, 2),
        "config_hash": config_hash,
        "versions": versions(),
        "devices": {"count": len(devices), "kind": devices[0].device_kind},
        "fingerprint": fingerprint(params),
    }
    partial = workdir / ".result.json"
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(workdir / "result.json")
    return result


def draw_curves(workdir: pathlib.Path) -> None:
    """Draws `report/curves.png` from `metrics.jsonl`."""
    (workdir / "report").mkdir(exist_ok=True)
    curves(journal.read(workdir / "metrics.jsonl"), workdir / "report" / "curves.png")
