"""From `config.model` to a Linen module."""

import dataclasses
import importlib
import typing
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from vitlab.config import coerce, nearest
from vitlab.errors import InputError

MODELS = {
    "vit": "vitlab.models.vit:ViT",
    "resnet": "vitlab.models.resnet:ResNet",
    "bit": "vitlab.models.bit:BiT",
    "convnext": "vitlab.models.convnext:ConvNeXt",
}

# Fields of a module that the framework sets, not the user.
_FRAMEWORK = ("parent", "name", "dtype", "axis_name")


def build_model(section: Mapping[str, Any], **given: Any) -> nn.Module:
    """The module that `config.model` describes: its other keys are the module's fields.

    Args:
        section: `name` and any of the module's fields.
        **given: fields that the framework sets, where the module has them.

    Raises:
        InputError: an unknown model, an unknown field, or a value of the wrong type.
    """
    fields = dict(section)
    name = fields.pop("name", None)
    if name not in MODELS:
        raise InputError(f"config.model.name: no model {name!r}{nearest(str(name), MODELS)}")
    module, _, attribute = MODELS[name].partition(":")
    cls = getattr(importlib.import_module(module), attribute)
    hints = typing.get_type_hints(cls)
    legal = [f.name for f in dataclasses.fields(cls) if f.init and f.name not in _FRAMEWORK]
    for key, value in fields.items():
        if key not in legal:
            raise InputError(f"config.model.{key} does not exist{nearest(key, legal)}")
        fields[key] = coerce(value, hints[key], f"config.model.{key}")
    return cls(**fields, **{field: value for field, value in given.items() if field in hints})


def model_settings(name: str, model: nn.Module) -> dict[str, Any]:
    """The inverse of `build_model`, with every default written out."""
    fields = [f.name for f in dataclasses.fields(model) if f.init and f.name not in _FRAMEWORK]
    return {"name": name, **{field: getattr(model, field) for field in fields}}
