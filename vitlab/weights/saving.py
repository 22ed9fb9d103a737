"""`save`: a model's variables as a file that others read, read back before it is called done."""

import dataclasses
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
import safetensors.numpy

from vitlab.errors import InputError
from vitlab.models.convnext import ConvNeXt
from vitlab.models.resnet import ResNet
from vitlab.models.vit import ViT
from vitlab.ops.positions import sincos_2d
from vitlab.weights.filling import TABLE, names_of
from vitlab.weights.formats import BIG_VISION, HF_VIT, RESNET, TIMM, TIMM_CONVNEXT, Format
from vitlab.weights.loading import load
from vitlab.weights.preprocessing import alike
from vitlab.weights.table import match

# What is written, by names of libraries and by what the model is.
WRITTEN: Mapping[str, Mapping[type, Format]] = {
    "timm": {ViT: TIMM, ResNet: RESNET, ConvNeXt: TIMM_CONVNEXT},
    "hf-vit": {ViT: HF_VIT},
    "big_vision": {ViT: BIG_VISION},
}


@dataclasses.dataclass(frozen=True)
class Saved:
    """What was written.

    Attributes:
        path: the file with the weights.
        notes: what the format could not say exactly, a line each.
    """

    path: pathlib.Path
    notes: tuple[str, ...]


def save(
    path: os.PathLike | str,
    module: nn.Module,
    variables: Mapping[str, Any],
    format: str,
    image_size: tuple[int, int],
    preprocessing: str = "",
    classes: Sequence[str] = (),
) -> Saved:
    """Writes a model in another library's format, and reads it back to see that no bit is lost.

    Args:
        path: a folder for `model.safetensors` and `config.json`, or for big_vision the npz file.
            What is there already is left alone.
        module: the model.
        variables: `params` and its other collections, f32.
        format: one of `WRITTEN`.
        image_size: (height, width) in pixels, for positions that are computed and not stored.
        preprocessing: how its images are made; goes into the folder's json files.
        classes: their names.

    Raises:
        InputError: something is there already, the variables have no `params`, or the format has
            no place for what the model is.
    """
    path = pathlib.Path(path)
    if format not in WRITTEN:
        raise InputError(f"format {format!r} is not one that can be written: {', '.join(WRITTEN)}")
    if type(module) not in WRITTEN[format]:
        kinds = ", ".join(kind.__name__ for kind in WRITTEN[format])
        raise InputError(f"{format} is written of {kinds}, and this is a {type(module).__name__}")
    if "params" not in variables:
        raise InputError(
            "variables must be {'params': ...} and its other collections, as a module's `init` "
            f"gives them: they have {', '.join([*variables][:3]) or 'nothing'}"
        )
    form = WRITTEN[format][type(module)]
    flat = {name: np.asarray(array, np.float32) for name, array in names_of(variables).items()}
    module, flat = _with_stored_positions(module, flat, image_size, form)
    classes = classes if len(classes) == getattr(module, "num_classes", None) else ()
    config = form.writes(module, {name: array.shape for name, array in flat.items()}, image_size)
    arrays = _theirs(form, module, flat)
    if path.exists():
        raise InputError(f"{path} exists already: name another")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".vitlab-") as folder:
            partial = pathlib.Path(folder, path.name)
            _write(partial, arrays, form.described(config, preprocessing, classes))
            notes = _check(partial, form, module, flat, preprocessing)
            partial.replace(path)
    except OSError as e:
        raise InputError(f"{e.filename or path}: {e.strerror or e}") from e
    return Saved(path if path.is_file() else path / "model.safetensors", tuple(notes))


def _with_stored_positions(
    module: nn.Module, flat: dict[str, np.ndarray], size: tuple[int, int], form: Format
) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """The same model with its positions in a table, where the format knows no others; a class
    token without one gets zeros."""
    if not isinstance(module, ViT):
        return module, flat
    zeros = {"cls_position": np.zeros((1, 1, module.width), np.float32)}
    bare = module.class_token and not module.class_position
    if form.name == "hf-vit" and module.pos_embed == "learned" and bare:
        return module.clone(class_position=True), {**flat, **zeros}
    if module.pos_embed not in ("sincos2d", "sincos2d_mae"):
        return module, flat
    if form.name == "big_vision" and module.pos_embed == "sincos2d":
        return module, flat
    grid = (size[0] // module.patch_size, size[1] // module.patch_size)
    table = sincos_2d(grid, module.width, endpoint=module.pos_embed == "sincos2d")
    flat = {**flat, TABLE: np.asarray(table)}
    if module.class_token:
        flat |= zeros
    return module.clone(pos_embed="learned", class_position=module.class_token), flat


def _theirs(form: Format, module: nn.Module, flat: Mapping[str, np.ndarray]):
    """Arrays under the file's names."""
    arrays, left = {}, dict.fromkeys(flat)
    for each in match(form.rules(module), tuple(flat), ours=True):
        values = each.rule.save([flat[name] for name in each.ours])
        for name, array in zip(each.theirs, values, strict=True):
            arrays[form.file_name(module, name)] = np.ascontiguousarray(array)
        for name in each.ours:
            del left[name]
    if left:
        raise InputError(f"the format {form.name} has no place for {', '.join(left)}")
    return arrays


def _write(path: pathlib.Path, arrays: Mapping[str, np.ndarray], files: Mapping[str, Any]) -> None:
    if not files:
        with path.open("wb") as file:
            np.savez(file, **arrays)
        return
    path.mkdir()
    safetensors.numpy.save_file(dict(arrays), path / "model.safetensors", {"format": "pt"})
    for name, content in files.items():
        (path / name).write_text(json.dumps(content, indent=2) + "\n")


def _check(
    path: pathlib.Path,
    form: Format,
    module: nn.Module,
    flat: Mapping[str, np.ndarray],
    preprocessing: str,
) -> list[str]:
    """That the file is read as the model that it was made of; what it says otherwise."""
    grid = flat[TABLE].shape[:2] if TABLE in flat else None
    heads = {"num_heads": module.num_heads} if isinstance(module, ViT) else {}
    again = load(path, format=form.name, grid=grid, **heads)
    names = names_of(again.variables)
    # A table of sines and cosines may be known for what it is.
    differ = [n for n, a in flat.items() if n in names and not np.array_equal(a, names[n])]
    differ += [n for n in flat if n not in names and n not in (TABLE, "cls_position")]
    if differ:
        raise RuntimeError(f"{path} does not hold what was written: {', '.join(differ[:3])}")
    notes = []
    for field in ("norm_eps", "mlp", "pool"):
        here, there = (getattr(m, field, None) for m in (module, again.module))
        if here != there:
            notes.append(f"{field} is {here!r}, and {form.name} has {there!r}")
    if path.is_dir() and not preprocessing:  # with json files, that is
        notes.append("preprocessing is not known, and the files do not say it")
    elif path.is_dir() and not alike(preprocessing, again.preprocessing):
        notes.append(f"preprocessing is {preprocessing}, and {form.name} has {again.preprocessing}")
    return notes
