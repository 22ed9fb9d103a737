"""Imports go down the list of floors in CONTRIBUTING.md, never up, and not across. Of the lowest of
them everything may import the errors."""

import ast
import importlib.metadata
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FLOORS = (
    ("errors",),
    ("allocator", "cache_folder", "distributed", "own_files"),
    ("compilation_cache",),
    ("ops", "config", "checkpoints", "class_colors"),
    ("models", "data", "evaluation"),
    ("weights",),
    ("tasks",),
    ("training", "deploy"),
    ("main", "__main__", "commands"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted((ROOT / "vitlab").rglob("*.py"))


def room(path):
    return path.relative_to(ROOT / "vitlab").with_suffix("").parts[0]


def imported(tree):
    """Rooms that a file imports from, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vitlab"):
            parts = node.module.split(".")[1:]
            yield from [parts[0]] if parts else (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "vitlab" and len(parts) > 1:
                    yield parts[1]


def test_every_room_has_a_floor():
    assert {room(path) for path in FILES} == {*FLOOR, "__init__"}


@pytest.mark.parametrize("name", FLOOR)
def test_imports_go_down(name):
    for path in FILES:
        if room(path) != name:
            continue
        for other in imported(ast.parse(path.read_text())):
            below = other == name or FLOOR[other] < FLOOR[name]
            assert below or len(FLOORS) - 1 == FLOOR[other] == FLOOR[name], f"{path}: {other}"


def test_no_file_is_two_subjects_long():
    long = {path.name: len(path.read_text().splitlines()) for path in FILES}
    assert {name: lines for name, lines in long.items() if lines > 400} == {}


def test_a_folder_that_is_called_vitlab_does_not_hide_the_package(tmp_path):
    """Such as a checkout beside a script."""
    try:
        importlib.metadata.distribution("vitlab")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("vitlab is not installed")
    (tmp_path / "vitlab" / "configs").mkdir(parents=True)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    code = "import vitlab; vitlab.load"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
