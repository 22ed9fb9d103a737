"""Parameters of a run, or published ones, as the start of another, every one accounted for."""

import collections
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from vitlab import checkpoints
from vitlab.errors import InputError
from vitlab.models.build import model_settings
from vitlab.models.detr import DETR
from vitlab.models.mae import MAE
from vitlab.ops.positions import resize_position_embedding
from vitlab.weights.filling import names_of
from vitlab.weights.hub import find, is_published
from vitlab.weights.loading import load_found
from vitlab.weights.own import read_own


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a training starts from.

    Attributes:
        variables: by name, such as `encoder/block_0/mlp/fc1/kernel`; those that are no parameters
            start with their collection, as `batch_stats/stem_norm/mean` does. Of published weights
            without a head they are below `backbone/`, as those of a run that pretrained.
        model: settings of its model, as in `config.model`; {} where they are not known.
        task: what it was trained for; None where that is not known.
        classes: names of its classes; None where a file has none.
        normalization: of its images, the last op of their preprocessing; "" where that is not
            known.
        report: what became of the keys of a file; "" of a run.
        published: whether it is of others.
    """

    variables: dict[str, np.ndarray]
    model: dict[str, Any]
    task: str | None
    classes: tuple[str, ...] | None
    normalization: str
    report: str = ""
    published: bool = False


@dataclasses.dataclass(frozen=True)
class TransferReport:
    """What became of every parameter: names such as `encoder/block_0/mlp/fc1/kernel`.

    Attributes:
        loaded: taken as they are.
        resized: position embeddings, interpolated to another grid.
        new: of the model, not in the source (or of another shape there): freshly initialised.
        unused: of the source, not in the model.
        left: of the source, not of its backbone: a decoder or projector, which stays behind; so
            does a head for other classes.
    """

    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    left: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} parameters loaded"]
        if self.left:
            lines.append(f"{len(self.left)} left behind: {_by_part(self.left)}")
        for what in ("resized", "new", "unused"):
            names = getattr(self, what)
            if names:
                named = ", ".join(names) if len(names) <= 8 else _by_part(names)
                lines.append(f"{len(names)} {what}: {named}")
        return "\n".join(lines)


def read(name: os.PathLike | str, hints: Mapping[str, Any] | None = None) -> Origin:
    """What a run has learned, or published weights.

    The moving average of the parameters stands in for them where the run kept one.

    Args:
        name: a working directory (its newest checkpoint), a checkpoint, or what
            `vitlab.weights.load` takes; a file that vitlab exported is as the run was.
        hints: of `load`.

    Raises:
        InputError: no checkpoint there, or a damaged one, or config.json is; see also `load`.
    """
    if is_published(str(name)):
        return _published(str(name), hints or {})
    checkpoint = checkpoints.locate(name)
    _check_hints(name, hints or {}, "a run")
    try:
        state = checkpoints.restore(checkpoint, only=["ema", "params", "model_state"])
    except checkpoints.DamagedError as e:
        raise InputError(f"{checkpoint.path} is damaged: {e}") from e

    variables = state.get("ema") or {"params": state["params"], **state.get("model_state", {})}
    path = checkpoint.path.parents[1] / "config.json"
    config = checkpoints.read_json(path) if path.exists() else {}
    return Origin(
        names_of(variables),
        config.get("model", {}),
        config.get("task"),
        tuple(checkpoint.meta()["classes"]),
        _last_op(config.get("data", {}).get("preprocess", "")),
    )


def _published(name: str, hints: Mapping[str, Any]) -> Origin:
    found, part = find(name)
    if own := read_own(found.weights[0]):
        _check_hints(name, hints, "a model of vitlab's own")
        about = own.about
        classes, last = tuple(about["classes"]), _last_op(about["preprocess"])
        return Origin(own.variables, about["model"], about["task"], classes, last)
    loaded = load_found(found, part, **hints)
    variables, model = names_of(loaded.variables), loaded.module
    task = {MAE: "mae", DETR: "detection"}.get(type(model))
    if task is None and model.num_classes is not None:
        task = "classification"
    if task is None:
        variables = {
            key if _part(key) == "pre_logits" else _ROOT.sub(r"\1backbone/", key): value
            for key, value in variables.items()
        }
    last = _last_op(loaded.preprocessing) if loaded.normalization_stated else ""
    classes = loaded.classes or None
    return Origin(variables, model_settings(model), task, classes, last, str(loaded.report), True)


def _last_op(preprocess: str) -> str:
    return preprocess.rpartition("|")[2]


def _check_hints(name: os.PathLike | str, hints: Mapping[str, Any], what: str) -> None:
    for key in hints.keys() - {"image_size"}:
        raise InputError(f"config.init_hints.{key} is for published weights, and {name} is {what}")


def transfer(
    target: Mapping[str, np.ndarray],
    source: Mapping[str, np.ndarray],
    allow: Sequence[str] = (),
    other_classes: Sequence[str] = (),
    same_model: bool = False,
    where: str = "config.init_from",
    settings: str = "",
) -> tuple[dict[str, np.ndarray], TransferReport]:
    """Fills a model's variables from those of another run.

    Two models of the same parts are matched name by name. Of others, one pretrained by `mae` or
    `simclr` and a classifier, say, only the backbones are: the parameters below `backbone/`, or all
    of a model that has no such part. What else the source has is left behind, and what else the
    target has below other names than `backbone/` is new.

    Args:
        target: the model's own fresh variables, by name.
        source: what there is, by name.
        allow: regexes (matched whole) of names that may be new, unused, or of another shape.
        other_classes: regexes of names of parameters that tell classes apart, which are others in
            the source: they are left behind there, and new here.
        same_model: match name by name, even if one has a part that the other lacks.
        where: named in errors.
        settings: what the source's model has otherwise, for errors.

    Returns:
        The filled variables and the report.

    Raises:
        InputError: a name that is new, unused or of another shape, and not allowed.
    """
    for pattern in allow:
        try:
            re.compile(pattern)
        except re.error as e:
            raise InputError(f"config.init_allow: {pattern!r} is no regular expression: {e}") from e

    same = same_model or {_part(name) for name in target} == {_part(name) for name in source}
    heads = tuple(name for name in source if allowed(name, other_classes))
    source = {name: value for name, value in source.items() if name not in heads}
    source, left, own = (source, (), ()) if same else _aligned(target, source)
    own, left = {*own, *(name for name in target if allowed(name, other_classes))}, heads + left
    filled: dict[str, np.ndarray] = {}
    loaded, resized, new, problems = [], [], [], []
    for name, fresh in target.items():
        have = source.get(name)
        filled[name] = fresh
        if have is None:
            new.append(name)
            if name not in own and not allowed(name, allow):
                problems.append(f"{name} is not there")
        elif have.shape == fresh.shape:
            filled[name] = np.asarray(have, fresh.dtype)
            loaded.append(name)
        elif name.endswith("position_embedding/table") and have.shape[-1] == fresh.shape[-1]:
            filled[name] = _resize_position(have, fresh.shape)
            resized.append(name)
        else:
            new.append(name)
            if not allowed(name, allow):
                problems.append(f"{name} is {have.shape} there and {fresh.shape} here")
    unused = [name for name in source if name not in target]
    problems += [f"{name} is not in this model" for name in unused if not allowed(name, allow)]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        fit = f". {settings}: set the same" if settings else ""
        raise InputError(
            f"{where}: {'; '.join(problems[:3])}{more}{fit}. "
            "Name what may differ all the same in config.init_allow, such as ['head/.*']"
        )
    report = TransferReport(tuple(loaded), tuple(resized), tuple(new), tuple(unused), left)
    return filled, report


def allowed(name: str, allow: Sequence[str]) -> bool:
    """Whether one of the regexes matches the whole name."""
    return any(re.fullmatch(pattern, name) for pattern in allow)


def _aligned(
    target: Mapping[str, np.ndarray], source: Mapping[str, np.ndarray]
) -> tuple[Mapping[str, np.ndarray], tuple[str, ...], tuple[str, ...]]:
    """The source under the target's names; what it leaves behind; what only the target can have."""
    parts, theirs = {_part(name) for name in target}, {_part(name) for name in source}
    if "backbone" not in parts | theirs:
        return source, (), ()
    left = ()
    if "backbone" in theirs:
        left = tuple(name for name in source if _part(name) != "backbone")
        source = {_BACKBONE.sub(r"\1", k): v for k, v in source.items() if k not in left}
    own = ()
    if "backbone" in parts:
        own = tuple(name for name in target if _part(name) != "backbone")
        source = {_ROOT.sub(r"\1backbone/", name): value for name, value in source.items()}
    return source, left, own


# A model's state is below the name of its collection, its parameters are below none.
_ROOT = re.compile(r"^(batch_stats/|)")
_BACKBONE = re.compile(r"^(batch_stats/|)backbone/")


def _by_part(names: Sequence[str]) -> str:
    """How many there are of each part of the model, such as `decoder (16)`."""
    parts = collections.Counter(_part(name) for name in names)
    return ", ".join(f"{part} ({count})" for part, count in parts.items())


def _part(name: str) -> str:
    """The part of the model that a variable belongs to, such as `backbone`."""
    return _ROOT.sub("", name).partition("/")[0]


def _resize_position(table: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """f32[rows, columns, width] onto another grid."""
    rows, columns, width = table.shape
    resized = resize_position_embedding(
        jnp.asarray(table.reshape(1, -1, width)), shape[:2], old_grid=(rows, columns)
    )
    return np.asarray(resized).reshape(shape)
