"""From `config.model` to a Linen module: of the tables here, or one's own by its import path,
which is how a task of one's own is named too."""

import dataclasses
import functools
import importlib
import json
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import flax.linen as nn
from jax import Array

from vitlab.config import as_dict, coerce, nearest
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


class Backbone(Protocol):
    """What a Linen module offers that is `config.model` of a classifier, or a `backbone`.

    That it has the fields `num_classes` and `dtype` and can be called is all that classification,
    SimCLR and evaluators ask for. Its last layer is best called `head`: a run that starts from
    another's then makes it anew for other classes. A field `axis_name` is given where it is there,
    for a batch norm over devices.

    Attributes:
        num_classes: logits; None: no head.
        dtype: of the computation, `config.precision`; parameters and logits are f32.
        strides: of the feature maps in pixels, the last one the greatest.
        num_layers: how many layers lie between the first, 0, and the head's, num_layers + 1.
    """

    num_classes: int | None
    dtype: Any

    def __call__(self, images: Array, train: bool = False) -> tuple[Array, dict[str, Array]]:
        """Images f[batch, height, width, channels] to the logits f32[batch, num_classes], or
        without a head the pooled features f[batch, features], and the stages by name, of which
        "pre_logits" f[batch, features] is what evaluators of the kind `features` and `vitlab
        inspect` look at by default. With `train`, dropout draws from the rng "dropout"."""

    # For detection and segmentation.

    strides: tuple[int, ...]

    def feature_maps(self, images: Array, train: bool = False) -> dict[int, Array]:
        """By stride, f[batch, rows, columns, channels]. One more argument, `content` i32[batch, 2],
        height and width of what is no padding, is needed where images of a batch differ in size."""

    # For `config.optimizer.layer_decay` below 1.

    num_layers: int

    def layer_of(self, path: str) -> int:
        """The layer of a parameter, such as "block_3/mlp/kernel"."""


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
        section: `name` and any of the module's fields. A name such as `my_package.my_module:Mixer`
            is the import path of a `Backbone`: its module is imported, from where Python finds it.
        where: the section's name, for errors.
        **given: fields that the framework sets, where the module has them.

    Raises:
        InputError: an unknown model, an unknown field, or a value of the wrong type.
        NotImportableError: there is no class at an import path, or its module fails.
    """
    cls, fields = _class(section, MODELS, where)
    return build_module(cls, fields, where, **given)


def build_around_backbone(
    section: Mapping[str, Any], table: Mapping[str, str], **given: Any
) -> nn.Module:
    """The model of a table that `config.model` describes by its name, `backbone` and the other
    fields.

    Arguments and errors as in `build_model`; a backbone with fields of a classifier's head, which
    would do nothing, or without feature maps, is an InputError too. A model by its import path
    offers what those of the table do.
    """
    cls, fields = _class(section, table, "config.model")
    model = build_with_backbone(cls, fields, ("feature_maps", "strides"), **given)
    for field in dataclasses.fields(model.backbone):
        if field.name in _OF_THE_HEAD and getattr(model.backbone, field.name) != field.default:
            raise InputError(
                f"config.model.backbone.{field.name} is for classification: the feature maps that "
                f"{section['name']} is built on have no use for it; leave it out"
            )
    return model


def build_with_backbone(
    cls: type[nn.Module], section: Mapping[str, Any], needed: Sequence[str] = (), **given: Any
):
    """A module around a backbone, of a `config.model` with `backbone` and the module's own fields.

    Arguments and errors as in `build_model`, and `needed`: what the backbone must have.
    """
    fields = dict(section)
    backbone = fields.pop("backbone", None)
    if not isinstance(backbone, Mapping):
        raise InputError(
            "config.model.backbone is missing, such as dict(name='vit', variant='B/16')"
        )
    shared = {key: value for key, value in given.items() if key in _FRAMEWORK}
    backbone = build_model(backbone, "config.model.backbone", **shared)
    for each in needed:
        if not hasattr(backbone, each):
            raise InputError(
                f"config.model.backbone: a {type(backbone).__name__} has no {each}, which "
                f"{cls.__name__} is built on: see vitlab.models.build.Backbone"
            )
    return build_module(cls, fields, "config.model", backbone=backbone, **given)


def build_module(
    cls: type[nn.Module], fields: Mapping[str, Any], where: str, **given: Any
) -> nn.Module:
    """A module of a class from fields that a config names; see `build_model`.

    Raises:
        InputError: see `build_model`; or of what `model_settings` says of the module another one
            would be built, because the class changes its own fields.
    """
    hints = _hints(cls, where)
    legal = [field for field in _fields(cls) if field not in given]
    given = {field: value for field, value in given.items() if field in hints}
    values = {}
    for key, value in fields.items():
        if key not in legal:
            raise InputError(f"{where}.{key} does not exist{nearest(key, legal)}")
        values[key] = _value(cls, key, value, hints[key], f"{where}.{key}")
    for field in dataclasses.fields(cls):
        bare = field.default is field.default_factory is dataclasses.MISSING
        if bare and field.name in legal and field.name not in values:
            raise InputError(f"{where}.{field.name} is missing: {cls.__name__} has no default")
    module = cls(**values, **given)
    _check_reads_back(module, values, given, hints, where)
    return module


def _value(cls: type[nn.Module], key: str, value: Any, hint: Any, where: str) -> Any:
    """A field's value from a config. The field's default need not be as its annotation says."""
    try:
        return coerce(value, hint, where)
    except InputError:
        field = cls.__dataclass_fields__[key]
        made = field.default_factory is not dataclasses.MISSING
        default = field.default_factory() if made else field.default
        if _is_plain(value) and _is_plain(default) and _text(value) == _text(default):
            return default
        raise


def _check_reads_back(
    module: nn.Module,
    values: Mapping[str, Any],
    given: Mapping[str, Any],
    hints: Mapping[str, Any],
    where: str,
) -> None:
    """Refuses what a run's config.json would not give again, before the run."""
    cls = type(module)
    written = {key: value for key, value in _plain_fields(module).items() if key not in given}
    wrong = [key for key in values if key not in written]
    read = {}
    for key, value in written.items():
        try:
            read[key] = _value(cls, key, json.loads(_text(value)), hints[key], where)
        except InputError:
            wrong.append(key)
    if not wrong:
        again = _plain_fields(cls(**read, **given))
        wrong = [key for key in written if _text(again.get(key)) != _text(written[key])]
    if wrong:
        kind = type(getattr(module, wrong[0])).__name__
        raise InputError(
            f"{where}.{wrong[0]}: what {cls.__name__} makes of it, of type {kind}, config.json "
            "could not give it again; a module's fields must stay as they are given"
        )


def model_settings(model: nn.Module) -> dict[str, Any]:
    """The inverse of `build_model` and `build_with_backbone`, with every default written out that a
    config can hold."""
    tables = MODELS | DETECTORS | SEGMENTERS | UNIVERSAL_SEGMENTERS
    names = {path: name for name, path in tables.items()}
    path = f"{type(model).__module__}:{type(model).__qualname__}"
    # Those of vitlab's own methods of pretraining are their tasks', and no config names them.
    name = names.get(path, "" if path.startswith("vitlab.") else path)
    settings = {"name": name} if name else {}
    plain = _plain_fields(model)
    for field in _fields(type(model)):
        if field == "backbone":
            settings[field] = model_settings(model.backbone)
        elif field in plain:
            settings[field] = plain[field]
    return settings


def has_layers(model: nn.Module) -> bool:
    """Whether a model, or its backbone, tells the layer of each parameter."""
    backbone = getattr(model, "backbone", model)
    return hasattr(backbone, "layer_of") and hasattr(backbone, "num_layers")


def _class(section: Mapping[str, Any], table: Mapping[str, str], where: str):
    """The class that a section names, and its other keys."""
    name = section.get("name")
    fields = {k: v for k, v in section.items() if k != "name"}
    if is_import_path(name):
        return _own_class(name, where), fields
    if not isinstance(name, str) or name not in table:
        raise InputError(f"{where}.name: no model {name!r}{nearest(str(name), table)}")
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute), fields


class NotImportableError(InputError):
    """What is named by an import path is not there."""


def is_import_path(name: Any) -> bool:
    """Whether a name is one such as `my_package.my_module:Mixer`."""
    return isinstance(name, str) and bool(re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", name))


def imported(path: str, where: str) -> Any:
    """What is at an import path; its module is imported, from where Python finds it.

    Args:
        path: see `is_import_path`.
        where: the key of the config that names it, for errors.

    Raises:
        NotImportableError: there is nothing, or the module fails.
    """
    module, _, attribute = path.partition(":")
    try:
        found = importlib.import_module(module)
    except Exception as error:  # Whatever it does wrong.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        hint = ""
        if isinstance(error, ModuleNotFoundError) and module.startswith(error.name or module):
            hint = ": its folder must be on PYTHONPATH, or its package installed"
        reason = f"{path!r} cannot be imported ({reason}){hint}"
        raise NotImportableError(f"{where}: {reason}") from error
    try:
        return functools.reduce(getattr, attribute.split("."), found)
    except AttributeError:
        raise NotImportableError(f"{where}: {module} has no {attribute}") from None


def _own_class(path: str, where: str) -> type[nn.Module]:
    """The module's class at an import path."""
    cls = imported(path, f"{where}.name")
    if not isinstance(cls, type) or not issubclass(cls, nn.Module):
        raise InputError(f"{where}.name: {path} is no flax.linen.Module")
    for needed in ("num_classes", "dtype"):
        if needed not in (field.name for field in dataclasses.fields(cls)):
            raise InputError(
                f"{where}.name: {path} has no field {needed}: see vitlab.models.build.Backbone"
            )
    return cls


def _hints(cls: type[nn.Module], where: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except Exception as error:  # Of a module of one's own, which may name anything.
        raise InputError(
            f"{where}: annotations of {cls.__name__} cannot be read: {error}"
        ) from error


def _plain_fields(module: nn.Module) -> dict[str, Any]:
    values = {field: getattr(module, field) for field in _fields(type(module))}
    return {field: value for field, value in values.items() if _is_plain(value)}


def _text(value: Any) -> str:
    """As config.json has it."""
    return json.dumps(as_dict(value), sort_keys=True)


def _is_plain(value: Any) -> bool:
    """Whether a config can hold a value."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) for key in value) and all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _fields(cls: type[nn.Module]) -> list[str]:
    return [f.name for f in dataclasses.fields(cls) if f.init and f.name not in _FRAMEWORK]
