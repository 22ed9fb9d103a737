"""Files as their makers publish them, of the fixtures that reference implementations made."""

import json
import pathlib
import tempfile

import numpy as np
import safetensors.numpy

from vitlab.weights import load

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"


def reference(name):
    """Arrays of a fixture: `images`, `outputs/...`, and under `params/` those of the file."""
    arrays = dict(np.load(FIXTURES / f"{name}.npz", allow_pickle=False))
    # Older fixtures have their outputs beside everything else.
    found = {"mae": ("prediction", "mask"), "detr": ("memory", "logits", "boxes")}.get(name, ())
    if name in ("resnet_basic", "resnet_bottleneck", "convnext"):
        found = ("stage_1", "stage_2", "stage_3", "stage_4", "logits")
        arrays = {key.replace("param:", "params/"): array for key, array in arrays.items()}
    for key in found:
        arrays[f"outputs/{key}"] = arrays.pop(key)
    if name == "detr":  # of each layer; images are 1/32 of integers
        arrays["images"] = arrays["images"].astype(np.float32) / 32
        arrays |= {k: arrays[k][:, -1] for k in ("outputs/logits", "outputs/boxes")}
    return {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in arrays.items()}


def params(arrays):
    """The file's arrays by name; of a nested file those of the part that is the model."""
    found = {k.removeprefix("params/"): v for k, v in arrays.items() if k.startswith("params/")}
    parts = {name.partition("/")[0] for name in found if "/" in name}
    if parts in ({"model"}, {"teacher"}):
        (part,) = parts
        return {name.removeprefix(f"{part}/"): v for name, v in found.items()}
    return found


def write(folder, arrays, npz=False):
    """The file with its json files beside it, in a folder of its own; its path."""
    folder.mkdir(parents=True)
    for name, key in (("config", "config"), ("preprocessor_config", "preprocessor")):
        if str(arrays.get(key, "")):
            (folder / f"{name}.json").write_text(str(arrays[key]))
    if npz:
        np.savez(folder / "weights.npz", **params(arrays))
        return folder / "weights.npz"
    tensors = {name: np.ascontiguousarray(array) for name, array in params(arrays).items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


def variables(name, **hints):
    """What a fixture's file holds, in the model's own names."""
    with tempfile.TemporaryDirectory() as folder:
        return load(write(pathlib.Path(folder, name), reference(name)), **hints).variables


def renamed(arrays):
    """The same under the names that a model of transformers has in memory."""
    theirs = json.loads(str(arrays["memory_names"]))
    found = {k: v for k, v in arrays.items() if not k.startswith("params/")}
    for new, old in theirs.items():
        if old is None:  # one layer in the file, two in memory
            block, _, kind = new.rpartition(".mlp.")
            part, leaf = kind.split("_proj.")
            both = arrays[f"params/{block}.mlp.weights_in.{leaf}"]
            found[f"params/{new}"] = np.split(both, 2)[part == "up"]
        else:
            found[f"params/{new}"] = arrays[f"params/{old}"]
    return found


def assert_close(found, wanted):
    """Within 1e-4, and 1e-5 of the largest magnitude."""
    error = np.abs(np.asarray(found, np.float64) - wanted).max()
    assert np.shape(found) == wanted.shape
    assert error <= min(1e-4, 1e-5 * max(1, np.abs(wanted).max())), error
    return error
