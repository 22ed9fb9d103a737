"""The files that `vitlab export --format safetensors` writes: a model under its own names, and all
that is known of it in the metadata, which is how they are told from others."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vitlab.errors import InputError
from vitlab.models.build import (
    DETECTORS,
    SEGMENTERS,
    UNIVERSAL_SEGMENTERS,
    NotImportableError,
    build_around_backbone,
    build_model,
)
from vitlab.ops.positions import resize_position_embedding
from vitlab.weights.files import open_file
from vitlab.weights.filling import TABLE, shapes_of

FORMAT = KEY = "vitlab"  # The format's name, and what it has in a file's metadata.
_AROUND_BACKBONE = DETECTORS | SEGMENTERS | UNIVERSAL_SEGMENTERS


class OwnFile:
    """A file of a model that vitlab has exported.

    Attributes:
        where: its name.
        about: what it says of the model: `task`, `model` (as in `config.model`), `classes`,
            `preprocess`, `image_size`, ...
        variables: by name, f32.

    Raises:
        InputError: it is damaged, or of another version.
    """

    def __init__(self, path: os.PathLike | str, about: dict[str, Any], tensors: Mapping[str, Any]):
        self.where, self.about = os.fspath(path), about
        kinds = {"task": str, "model": dict, "classes": list, "preprocess": str, "image_size": list}
        for key, kind in kinds.items():
            if not isinstance(about.get(key), kind):
                raise self.other_version(f"it has no {key}")
        for name, tensor in tensors.items():
            if "float" not in tensor.dtype:
                raise self.other_version(f"{name} is {tensor.dtype}, and weights are floats")
        self.variables = {
            name: np.asarray(tensor.read(), np.float32) for name, tensor in tensors.items()
        }

    def module(self) -> nn.Module:
        """The model, computing in float32. One of a class of one's own is imported."""
        section, given = self.about["model"], self.about.get("given", {})
        try:
            if "backbone" in section:
                return build_around_backbone(section, _AROUND_BACKBONE, dtype=jnp.float32, **given)
            return build_model(section, dtype=jnp.float32)
        except NotImportableError as error:
            raise InputError(f"{self.where}: {error}") from error
        except (InputError, TypeError) as error:
            raise self.other_version(error) from error

    def filled(
        self, module: nn.Module, size: tuple[int, int], other_head: bool
    ) -> tuple[dict[str, np.ndarray], tuple[str, ...], tuple[str, ...]]:
        """The variables of a module.

        Args:
            module: that of the file, or with another head.
            size: (height, width) of its images in pixels.
            other_head: whether it has one.

        Returns:
            The variables by name; the names of those that were resized; and of those that are new,
            zeros.
        """
        head = "head/" if other_head else None
        found = [self._fit(shapes_of(module, size, channels), head) for channels in (3, 1)]
        flat, resized, new, problems = min(found, key=lambda fit: len(fit[-1]))
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise self.other_version(f"{'; '.join(problems[:3])}{more}")
        return flat, resized, new

    def _fit(self, expected: Mapping[str, Any], head: str | None):
        flat, resized, new, problems = {}, [], [], []
        for name in self.variables:
            if name not in expected and not (head and name.startswith(head)):
                problems.append(f"{name} is not in the model")
        for name, want in expected.items():
            have = self.variables.get(name)
            if have is not None and have.shape == want.shape:
                flat[name] = have
            elif have is not None and name.endswith(TABLE) and have.shape[2:] == want.shape[2:]:
                rows, columns, width = have.shape
                table = jnp.asarray(have).reshape(1, -1, width)
                table = resize_position_embedding(table, want.shape[:2], old_grid=(rows, columns))
                flat[name] = np.asarray(table).reshape(want.shape)
                resized.append(name)
            elif head and name.startswith(head):
                flat[name] = np.zeros(want.shape, np.float32)
                new.append(name)
            else:
                there = "not there" if have is None else have.shape
                problems.append(f"{name} is {there}, and the model has {want.shape}")
        return flat, tuple(resized), tuple(new), problems

    def other_version(self, reason: object) -> InputError:
        """The error of a file that does not hold what its model is."""
        return InputError(f"{self.where} is of another version of vitlab: {reason}")


def read_own(path: os.PathLike | str) -> OwnFile | None:
    """A file that vitlab has exported; None of any other.

    Raises:
        InputError: as `open_file`, or it is of another version.
    """
    path = pathlib.Path(path).expanduser()
    try:
        with path.open("rb") as file:
            if file.read(9)[8:] != b"{":  # No safetensors file, which begin with a length.
                return None
    except OSError:
        return None
    tensors, metadata = open_file(path)
    if KEY not in metadata:
        return None
    try:
        about = json.loads(metadata[KEY])
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: its metadata are no JSON ({error})") from error
    if not isinstance(about, dict):
        raise InputError(f"{path} is damaged: its metadata say nothing of a model")
    return OwnFile(path, about, tensors)
