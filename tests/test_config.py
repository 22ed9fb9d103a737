"""Strict configs: what is legal, and that every mistake is one line naming the nearest key."""

import dataclasses
import os
import sys
import typing
from collections.abc import Sequence
from typing import Literal

import pytest

from vitlab import config as config_lib
from vitlab.config import Duration, section
from vitlab.errors import InputError


@dataclasses.dataclass(frozen=True)
class Inner:
    name: Literal["cosine", "linear"] = "cosine"
    warmup: Duration = Duration()


@dataclasses.dataclass(frozen=True)
class Outer:
    total: Duration
    lr: float = 0.1
    size: int | None = None
    names: tuple[str, ...] = ()
    inner: Inner = Inner()
    table: dict[str, Inner] = dataclasses.field(default_factory=dict)
    on: bool = False


def test_a_section_becomes_a_typed_dataclass():
    values = {"total_epochs": 1.5, "lr": 1, "names": ["a"], "table": {"x": {"warmup_steps": 3}}}
    assert section(values, Outer) == Outer(
        total=Duration(1.5, "epochs"),
        lr=1.0,
        names=("a",),
        table={"x": Inner(warmup=Duration(3, "steps"))},
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"total_steps": 1, "lrr": 1}, "config.lrr does not exist; did you mean 'lr'?"),
        ({"total_step": 1}, "config.total_step does not exist; did you mean 'total_steps'?"),
        ({}, "config.total_steps (or _epochs, _examples) is missing"),
        ({"total_steps": 1, "lr": "fast"}, "config.lr is 'fast' but must be a number"),
        ({"total_steps": 1, "lr": True}, "config.lr is True but must be a number"),
        ({"total_steps": 1, "on": 1}, "config.on is 1 but must be True or False"),
        ({"total_steps": 1, "size": 1.5}, "config.size is 1.5 but must be an integer"),
        ({"total_steps": 1, "names": "a"}, "config.names is 'a' but must be a list"),
        (
            {"total_steps": 1, "inner": {"name": "cosin"}},
            "config.inner.name is 'cosin' but must be one of 'cosine', 'linear'; "
            "did you mean 'cosine'?",
        ),
        (
            {"total_steps": 1, "table": {"x": {"nam": "cosine"}}},
            "config.table.x.nam does not exist; did you mean 'name'?",
        ),
        (
            {"total_steps": 1, "total_epochs": 1},
            "config.total_epochs: total_steps is set too; keep one",
        ),
        (
            {"total_steps": -1},
            "config.total_steps is -1: a duration cannot be negative",
        ),
        ({"total_steps": float("inf")}, "config.total_steps is inf but must be finite"),
        ({"total_steps": 10**400}, f"config.total_steps is {10**400} but must be finite"),
        ({"total_steps": 1, "lr": float("nan")}, "config.lr is nan but must be finite"),
    ],
)
def test_mistakes_are_one_line(values, message):
    with pytest.raises(InputError) as error:
        section(values, Outer)
    assert str(error.value) == message


@pytest.mark.parametrize("kind", [Sequence[int], typing.Sequence[int], list[int], list, Sequence])
def test_a_list_of_any_annotation_is_read_as_a_tuple(kind):
    assert config_lib.coerce([8, 8], kind | None, "sizes") == (8, 8)
    for wrong in ("88", [8, "8"] if typing.get_args(kind) else 8):
        with pytest.raises(InputError, match=r"^sizes.* must be (a list|an integer)$"):
            config_lib.coerce(wrong, kind, "sizes")


def test_as_dict_is_the_inverse_of_section():
    outer = section({"total_examples": 7, "inner": {"name": "linear"}, "size": 3}, Outer)
    assert section(config_lib.as_dict(outer), Outer) == outer


def test_durations_of_the_recipe():
    # 90 and 300 epochs of train[:99%] at batch 1024, as published for the plain ViT-S/16.
    assert Duration(90, "epochs").steps(1024, 1_268_355) == 111_477
    assert Duration(300, "epochs").steps(1024, 1_268_355) == 371_588
    assert Duration(10, "steps").steps(64, 1000) == 10
    assert Duration(640, "examples").steps(64, 1000) == 10
    assert Duration(0.001, "epochs").steps(64, 1000) == 1
    assert Duration(0, "epochs").steps(64, 1000) == 0


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(
        "import ml_collections\n"
        "from vitlab.config import parse_arg\n"
        "def get_config(arg=None):\n"
        "    arg = parse_arg(arg, epochs=90, debug=False, size='S/16')\n"
        "    c = ml_collections.ConfigDict()\n"
        "    c.total_epochs = arg.epochs\n"
        "    c.size = arg.size\n"
        "    c.optimizer = dict(lr=0.1, rules=[('a', dict(lr=2.0))])\n"
        "    c.debug = arg.debug\n"
        "    return c\n"
    )
    return str(path)


def test_arguments_and_overrides(config_file):
    config = config_lib.load(
        f"{config_file}:epochs=3,debug",
        [("optimizer.lr", "3e-4"), ("optimizer.new.key", "[1, 2]"), ("total_steps", "5")],
    )
    assert config == {
        "total_steps": 5,  # overriding one unit of a duration removes the others
        "size": "S/16",
        "optimizer": {"lr": 3e-4, "rules": [["a", {"lr": 2.0}]], "new": {"key": [1, 2]}},
        "debug": True,
    }


@pytest.mark.parametrize(
    ("arg", "told"),
    [("photos", "path=photos"), ("holdouts", "holdout"), ("hold=1", "holdout")],
)
def test_a_bare_word_that_is_no_flag_is_meant_as_the_path(arg, told):
    with pytest.raises(InputError, match=f"did you mean '{told}'"):
        config_lib.parse_arg(arg, path="data", holdout=False, epochs=1)


@pytest.mark.parametrize(
    ("suffix", "overrides", "message"),
    [
        (":epoch=3", [], "config argument 'epoch' does not exist; did you mean 'epochs'?"),
        (":epochs=x", [], "config argument epochs is 'x' but must be an integer"),
        ("x", [], "did you mean '"),
        ("", [("debug.x", "1")], "--config.debug.x: debug is no section"),
    ],
)
def test_wrong_arguments_and_overrides(config_file, suffix, overrides, message):
    with pytest.raises(InputError, match="^[^\n]*$") as error:
        config_lib.load(config_file + suffix, overrides)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(arg=None):\n    return nothing\n", ":2: NameError: name 'nothing' is not"),
        ("import nowhere_to_be_found\n", ":1: ModuleNotFoundError"),
        ("def get_config(arg=None:\n", ":1: "),
        ("def get_config(arg=None):\n    pass\n", "must define get_config(arg) that returns"),
        ("def get_config():\n    return {}\n", "c.py: TypeError: get_config() takes 0 positional"),
        ("x = 1\n", "must define get_config(arg) that returns"),
        (
            "def get_config(arg=None):\n    return {'a': {'b': int}}\n",
            "config.a.b is <class 'int'>",
        ),
    ],
)
def test_a_broken_config_file_is_one_line(tmp_path, text, message):
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(InputError, match="^[^\n]*$") as error:
        config_lib.load(str(tmp_path / "c.py"), [("x", "1")])
    assert message in str(error.value)


def test_the_line_is_told_of_a_relative_path_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = ["def half(x):", "    return x / 0", "def get_config(arg=None):", "    return half(1)"]
    (tmp_path / "c.py").write_text("\n".join(lines))
    for path in ("c.py", "./c.py", f"../{tmp_path.name}/c.py"):
        with pytest.raises(InputError) as error:
            config_lib.load(path)
        assert str(error.value) == f"--config: {path}:2: ZeroDivisionError: division by zero"


def test_a_config_file_is_built_on_others(tmp_path, monkeypatch):
    """Of its own folder, and of one in the current folder, whatever command reads it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", os.getcwd())])
    before = list(sys.path)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "base_of_two.py").write_text(
        "def get_config(arg):\n    return {'a': arg}\n"
    )
    for module in ("base_of_two", "ours.base_of_two"):
        (tmp_path / "ours" / "c.py").write_text(f"from {module} import get_config\n")
        assert config_lib.load("ours/c.py:1") == {"a": "1"}
        assert sys.path == before
    (tmp_path / "ours" / "wrong_base.py").write_text("\ndef\n")
    (tmp_path / "ours" / "c.py").write_text("import wrong_base  # which is another file\n")
    with pytest.raises(InputError, match=f"{tmp_path}/ours/wrong_base.py:2: invalid syntax"):
        config_lib.load("ours/c.py")


def test_a_string_stays_a_string_when_overridden(config_file):
    assert config_lib.load(config_file, [("size", "16")])["size"] == "16"


@pytest.mark.parametrize("text", ["{[1]: 2}", "{{1}}", "-" * 100_000 + "1", "[" * 5000])
def test_what_no_literal_can_be_stays_text(text):
    assert config_lib.parse_value(text) == text


def test_the_hash_ignores_what_does_not_change_results():
    config = {"a": 1, "data": {"workers": 0, "source": "x"}, "logging": {"every": 5}}
    other = {"a": 1, "data": {"workers": 8, "source": "x"}, "logging": {"every": 7}}
    leave_out = ("data.workers", "logging")
    assert config_lib.hash_of(config, leave_out) == config_lib.hash_of(other, leave_out)
    assert config_lib.hash_of(config) != config_lib.hash_of(other)
