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

# Models around a backbone that find objects.
DETECTORS = {
    "detr": "vitlab.models.detr:DETR",
    "plain_detr": "vitlab.models.plain_detr:PlainDETR",
}

# Models around a backbone that give each pixel a class.
SEGMENTERS = {
    "segmenter": "vitlab.models.segmenter:Segmenter",
    "unet": "vitlab.models.unet:UNet",
}

# Models around a ViT that find segments of any kind.
UNIVERSAL_SEGMENTERS = {"eomt": "vitlab.models.eomt:EoMT"}

# Fields of a backbone that its feature maps know nothing of.
_OF_THE_HEAD = (
    "num_classes",
    "norm_after_pool",
    "rep_size",
    "head_init_std",
    "head_init_bias",
    "patch_dropout",
)

# Fields of a module that the framework sets, not the user.
_FRAMEWORK = ("parent", "name", "dtype", "axis_name")


def build_model(section: Mapping[str, Any], where: str = "config.model", **given: Any) -> nn.Module:
    """The module that `config.model` describes: its other keys are the module's fields.

    Args:
        section: `name` and any of the module's fields.
        where: the section's name, for errors.
        **given: fields that the framework sets, where the module has them.

    Raises:
        InputError: an unknown model, an unknown field, or a value of the wrong type.
    """
    cls, fields = _class(section, MODELS, where)
    return build_module(cls, fields, where, **given)


def build_around_backbone(
    section: Mapping[str, Any], table: Mapping[str, str], **given: Any
) -> nn.Module:
    """The model of a table that `config.model` describes by its name, `backbone` and the other
    fields.

    Arguments and errors as in `build_model`; a backbone with fields of a classifier's head, which
    would do nothing, is an InputError too.
    """
    cls, fields = _class(section, table, "config.model")
    model = build_with_backbone(cls, fields, **given)
    for field in dataclasses.fields(model.backbone):
        if field.name in _OF_THE_HEAD and getattr(model.backbone, field.name) != field.default:
            raise InputError(
                f"config.model.backbone.{field.name} is for classification: the feature maps that "
                f"{section['name']} is built on have no use for it; leave it out"
            )
    return model


def build_with_backbone(cls: type[nn.Module], section: Mapping[str, Any], **given: Any):
    """A module around a backbone, of a `config.model` with `backbone` and the module's own fields.

    Arguments and errors as in `build_model`.
    """
    fields = dict(section)
    backbone = fields.pop("backbone", None)
    if not isinstance(backbone, Mapping):
        raise InputError(
            "config.model.backbone is missing, such as dict(name='vit', variant='B/16')"
        )
    shared = {key: value for key, value in given.items() if key in _FRAMEWORK}
    backbone = build_model(backbone, "config.model.backbone", **shared)
    return build_module(cls, fields, "config.model", backbone=backbone, **given)


def build_module(
    cls: type[nn.Module], fields: Mapping[str, Any], where: str, **given: Any
) -> nn.Module:
    """A module of a class from fields that a config names; see `build_model`."""
    hints = typing.get_type_hints(cls)
    legal = [field for field in _fields(cls) if field not in given]
    values = {}
    for key, value in fields.items():
        if key not in legal:
            raise InputError(f"{where}.{key} does not exist{nearest(key, legal)}")
        values[key] = coerce(value, hints[key], f"{where}.{key}")
    return cls(**values, **{field: value for field, value in given.items() if field in hints})


def model_settings(model: nn.Module) -> dict[str, Any]:
    """The inverse of `build_model` and `build_with_backbone`, with every default written out."""
    tables = MODELS | DETECTORS | SEGMENTERS | UNIVERSAL_SEGMENTERS
    names = {path: name for name, path in tables.items()}
    name = names.get(f"{type(model).__module__}:{type(model).__name__}")
    settings = {"name": name} if name else {}
    for field in _fields(type(model)):
        value = getattr(model, field)
        settings[field] = model_settings(value) if isinstance(value, nn.Module) else value
    return settings


def _class(section: Mapping[str, Any], table: Mapping[str, str], where: str):
    """The class that a section names, and its other keys."""
    name = section.get("name")
    if name not in table:
        raise InputError(f"{where}.name: no model {name!r}{nearest(str(name), table)}")
    module, _, attribute = table[name].partition(":")
    cls = getattr(importlib.import_module(module), attribute)
    return cls, {k: v for k, v in section.items() if k != "name"}


def _fields(cls: type[nn.Module]) -> list[str]:
    return [f.name for f in dataclasses.fields(cls) if f.init and f.name not in _FRAMEWORK]
