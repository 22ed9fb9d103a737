"""Strict configs: `ml_collections` files in, typed and frozen dataclasses out.

A config file defines `get_config(arg)`. `load` runs it and applies the command line's overrides;
`section` turns a part of it into the dataclass of the code that reads it. A key that nothing
reads, or a value of the wrong type, is an `InputError` that names the nearest legal key.
"""

import ast
import collections.abc
import contextlib
import dataclasses
import difflib
import hashlib
import importlib.util
import json
import pathlib
import sys
import traceback
import types
import typing
from typing import Any

import ml_collections

from vitlab.errors import InputError

UNITS = ("steps", "epochs", "examples")


@dataclasses.dataclass(frozen=True)
class Duration:
    """An amount of training: written `NAME_steps`, `NAME_epochs` or `NAME_examples` in a config.

    A dataclass field `warmup: Duration` is filled from any one of `warmup_steps`,
    `warmup_epochs`, `warmup_examples`. Fractions are allowed.
    """

    amount: float = 0
    unit: str = "steps"

    def steps(self, batch_size: int, examples: int) -> int:
        """The duration in optimizer steps, rounded to the nearest; never 0 unless the amount is.

        Args:
            batch_size: examples a step, over all devices.
            examples: examples an epoch.
        """
        in_examples = {"steps": batch_size, "epochs": examples, "examples": 1}[self.unit]
        steps = self.amount * in_examples / batch_size
        return max(1, round(steps)) if self.amount else 0

    def __str__(self) -> str:
        return f"{self.amount} {self.unit}"


def parse_arg(arg: str | None, **defaults: Any) -> ml_collections.ConfigDict:
    """The `arg` of `--config FILE:arg`, for use inside `get_config(arg)`.

    `"epochs=300,debug"` sets `epochs` to 300 and `debug` to True. Only the names in `defaults`
    exist, and each value must have its default's type.

    Raises:
        InputError: an unknown name, or a value of another type.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        name, _, text = item.partition("=")
        if name not in defaults:
            hint = nearest(name, defaults)
            flags = [key for key, value in defaults.items() if value is False]
            if not text and "path" in defaults and not difflib.get_close_matches(name, flags):
                hint = f"; did you mean 'path={name}'?"
            raise InputError(f"config argument {name!r} does not exist{hint}")
        value = parse_value(text, like=defaults[name]) if text else True
        values[name] = coerce(value, type(defaults[name]), f"config argument {name}")
    return ml_collections.ConfigDict(values)


def load(spec: str, overrides: typing.Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """Runs `get_config` of a config file and applies overrides.

    Meanwhile it imports from its own folder and from the current one, as a script does.

    Args:
        spec: `path/to/config.py`, or `path/to/config.py:key=value,flag`.
        overrides: pairs such as `("optimizer.lr", "3e-4")`, in order. An override may add a key:
            whether it is legal is for the section's reader to say. Overriding one unit of a
            duration removes its other units.

    Returns:
        The config as nested plain dicts.

    Raises:
        InputError: no such file, no `get_config` in it, or an override below a value.
    """
    path, _, arg = spec.partition(":")
    if not pathlib.Path(path).is_file():
        others = [str(each) for each in pathlib.Path(path).parent.glob("*.py")]
        close = difflib.get_close_matches(path, others, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(f"--config: there is no file {path!r}{hint}")
    module_spec = importlib.util.spec_from_file_location("vitlab_config_file", path)
    if module_spec is None or module_spec.loader is None:
        raise InputError(f"--config: {path!r} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    try:
        with _importable(pathlib.Path(module_spec.origin).parent, pathlib.Path.cwd()):
            module_spec.loader.exec_module(module)
            config = module.get_config(arg or None) if hasattr(module, "get_config") else None
    except InputError:
        raise
    except SyntaxError as e:
        file = path if e.filename in (None, module_spec.origin) else e.filename
        raise InputError(f"--config: {file}:{e.lineno}: {e.msg}") from e
    except Exception as e:  # whatever a config file does wrong
        frames = traceback.extract_tb(e.__traceback__)
        # None where get_config takes no argument, say.
        lines = [f":{f.lineno}" for f in frames if f.filename == module_spec.origin]
        place = "".join([path, *lines[-1:]])
        raise InputError(f"--config: {place}: {type(e).__name__}: {e}") from e
    if not isinstance(config, (ml_collections.ConfigDict, dict)):
        raise InputError(f"--config: {path} must define get_config(arg) that returns a ConfigDict")
    config = _plain(config, "config")
    for key, text in overrides:
        _override(config, key, text)
    return config


@contextlib.contextmanager
def _importable(*folders: pathlib.Path) -> typing.Iterator[None]:
    """Lets what runs meanwhile import from these folders, the first before all others."""
    added = [str(folder) for folder in folders]
    sys.path[:0] = added
    try:
        yield
    finally:
        for folder in added:  # a config file may have added others, for later
            if folder in sys.path:
                sys.path.remove(folder)


def section(values: typing.Mapping[str, Any], cls: type, where: str = "config") -> Any:
    """Turns a part of a config into the frozen dataclass `cls` that reads it.

    Field types that are understood: bool, int, float, str, `X | None`, `Literal`, `tuple[X, ...]`,
    `Sequence[X]` and `list[X]` (both as a tuple), `dict[str, X]`, `Mapping[str, X]`, `Duration`,
    `Any` and nested dataclasses. An int serves as a float.

    Raises:
        InputError: an unknown key, a missing one, or a value of the wrong type.
    """
    if not isinstance(values, typing.Mapping):
        raise InputError(f"{where} must be a section of keys, not {values!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    durations = [name for name in fields if hints[name] in (Duration, Duration | None)]
    legal = [name for name in fields if name not in durations]
    legal += [f"{name}_{unit}" for name in durations for unit in UNITS]
    kwargs: dict[str, Any] = {}
    for key, value in values.items():
        if key not in legal:
            raise InputError(f"{where}.{key} does not exist{nearest(key, legal)}")
        stem, _, unit = key.rpartition("_")
        if key in fields:
            kwargs[key] = coerce(value, hints[key], f"{where}.{key}")
        elif stem in kwargs:
            raise InputError(f"{where}.{key}: {stem}_{kwargs[stem].unit} is set too; keep one")
        else:
            amount = coerce(value, float, f"{where}.{key}")
            if amount < 0:
                raise InputError(f"{where}.{key} is {value!r}: a duration cannot be negative")
            kwargs[stem] = Duration(value, unit)
    for name, field in fields.items():
        required = (field.default, field.default_factory) == (dataclasses.MISSING,) * 2
        if required and name not in kwargs:
            written = f"{name}_steps (or _epochs, _examples)" if name in durations else name
            raise InputError(f"{where}.{written} is missing")
    try:
        return cls(**kwargs)
    except InputError as e:
        raise InputError(f"{where}: {e}") from e


def check_unread(values: Any, names: typing.Iterable[str], why: str) -> None:
    """Refuses what a dataclass holds in fields that, as its others stand, do nothing.

    Args:
        values: the dataclass.
        names: of those fields. At their defaults they are legal: a resolved config holds them all.
        why: as in `"NAME does nothing WHY"`.

    Raises:
        InputError: one is not at its default.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(values)}
    for name in names:
        if getattr(values, name) != defaults[name]:
            raise InputError(f"{name} does nothing {why}; leave it at {defaults[name]}")


def as_dict(value: Any) -> Any:
    """The inverse of `section`: dataclasses to nested plain dicts, defaults written out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        out = {}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if isinstance(item, Duration):
                out[f"{field.name}_{item.unit}"] = item.amount
            else:
                out[field.name] = as_dict(item)
        return out
    if isinstance(value, typing.Mapping):
        return {key: as_dict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_dict(item) for item in value]
    return value


def hash_of(config: typing.Mapping[str, Any], leave_out: typing.Collection[str] = ()) -> str:
    """Eight hex digits that name a resolved config.

    Args:
        config: nested plain dicts.
        leave_out: dotted keys or sections, such as `"data.workers"`, that do not change results.
    """
    return hashlib.sha256(canonical(config, leave_out).encode()).hexdigest()[:8]


def canonical(config: typing.Mapping[str, Any], leave_out: typing.Collection[str] = ()) -> str:
    """A resolved config as JSON text with sorted keys, without the keys in `leave_out`."""

    def keep(value: Any, where: str) -> Any:
        if not isinstance(value, typing.Mapping):
            return value
        paths = {key: f"{where}{key}" for key in value}
        return {k: keep(v, f"{paths[k]}.") for k, v in value.items() if paths[k] not in leave_out}

    return json.dumps(keep(config, ""), sort_keys=True)


def nearest(name: Any, legal: typing.Iterable[str]) -> str:
    """`"; did you mean 'x'?"`, or the list of legal names where none is near."""
    legal = sorted(legal)
    close = difflib.get_close_matches(str(name), legal, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; choose from {', '.join(legal)}" if legal else "; there is nothing to choose from"


def parse_value(text: str, like: Any = None) -> Any:
    """A command-line value: a Python literal, or the text itself where it is none.

    Args:
        text: what the user wrote.
        like: the value that it replaces: a string stays a string, so that `1e3` can be a name.
    """
    if isinstance(like, str):
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text  # also of what no literal can be, such as {[1]: 2}, and of what is too deep


_LISTS = (tuple, list, collections.abc.Sequence)  # all read as tuples, which can be hashed
_SECTIONS = (dict, collections.abc.Mapping)


def coerce(value: Any, kind: Any, where: str) -> Any:
    """`value` as the annotation `kind`, or an `InputError` that names `where`."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    wrong = InputError(f"{where} is {value!r} but must be {_type_name(kind)}")
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        for option in args:
            if option is not type(None):
                try:
                    return coerce(value, option, where)
                except InputError as e:
                    wrong = e if len(args) == 2 else wrong
        raise wrong
    if origin is typing.Literal:
        if value not in args or isinstance(value, bool) != any(isinstance(a, bool) for a in args):
            hint = nearest(value, map(str, args)) if isinstance(value, str) else ""
            raise InputError(f"{wrong}{hint if 'did you' in hint else ''}")
        return value
    shape = origin or kind
    if shape in _LISTS:
        if not isinstance(value, (list, tuple)):
            raise wrong
        if not args:
            return tuple(value)
        of_any_length = shape is not tuple or args[-1] is Ellipsis
        kinds = [args[0]] * len(value) if of_any_length else args
        if len(kinds) != len(value):
            raise wrong
        pairs = enumerate(zip(value, kinds, strict=True))
        return tuple(coerce(v, k, f"{where}[{i}]") for i, (v, k) in pairs)
    if shape in _SECTIONS:
        if not isinstance(value, typing.Mapping):
            raise wrong
        item = args[1] if args else Any
        return {str(k): coerce(v, item, f"{where}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else section(value, kind, where)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:  # NaN passes every bound
            raise InputError(f"{where} is {value!r} but must be finite")
        return float(value)
    if (
        isinstance(kind, type)
        and isinstance(value, kind)
        and isinstance(value, bool) == (kind is bool)
    ):
        return value
    raise wrong


def _type_name(kind: Any) -> str:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(a) for a in args)
    if kind is type(None):
        return "None"
    names = {bool: "True or False", int: "an integer", float: "a number", str: "a string"}
    if (origin or kind) in _LISTS:
        fixed = origin is tuple and args and args[-1] is not Ellipsis
        return "a list" + (f" of {len(args)} values" if fixed else "")
    if (origin or kind) in _SECTIONS or dataclasses.is_dataclass(kind):
        return "a section of keys"
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _plain(value: Any, where: str = "config") -> Any:
    """ConfigDicts to dicts and tuples to lists; what JSON cannot hold is an `InputError`."""
    if isinstance(value, (ml_collections.ConfigDict, dict)):
        return {key: _plain(value[key], f"{where}.{key}") for key in value}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InputError(
        f"{where} is {value!r}: a config holds numbers, strings, lists and sections; "
        "name a dtype by a string"
    )


def _override(config: dict[str, Any], key: str, text: str) -> None:
    *parents, name = key.split(".")
    node = config
    for depth, parent in enumerate(parents):
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise InputError(f"--config.{key}: {'.'.join(parents[: depth + 1])} is no section")
    stem, _, unit = name.rpartition("_")
    if unit in UNITS:
        for other in UNITS:
            if other != unit:
                node.pop(f"{stem}_{other}", None)
    node[name] = parse_value(text, like=node.get(name))
