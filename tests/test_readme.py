"""What the README says is true: its code runs, its config is legal, its links exist."""

import importlib.metadata
import pathlib
import re
import subprocess
import sys

import pytest

from vitlab.config import _plain
from vitlab.training.experiment import Experiment

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_python_blocks_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    promised = re.findall(r"print\(.*\)\s+# (.*)", README)
    assert printed == promised
    experiment = Experiment.from_config(_plain(names["config"]))
    assert [rule.lr for rule in experiment.optimizer.rules] == [1.0, 10.0, 1.0, 1.0]


def test_two_commands_set_everything_up():
    shell = blocks("bash")
    assert len(shell) == 2
    assert all(
        block.startswith("python3 -m venv .venv && .venv/bin/pip install") for block in shell
    )
    assert "-m vitlab.main --config configs/quickstart.py" in shell[0]
    assert "-m pytest" in shell[1]


def test_links_and_configs_exist():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
    for name in re.findall(r"configs/(\w+)\.py", README):
        assert (ROOT / "configs" / f"{name}.py").exists(), name


def test_requirements_have_bounds_on_both_sides_and_no_other_framework():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for requirement in project["dependencies"] + [r for e in extras.values() for r in e]:
        assert re.fullmatch(r"[\w-]+(\[\w+\])?>=[\d.]+,<[\d.]+", requirement), requirement
    names = {re.match(r"[\w-]+", r)[0].lower() for r in project["dependencies"]}
    assert not names & {"torch", "tensorflow", "tensorflow-cpu", "torchvision"}
    installed = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    assert not installed & {"torch", "tensorflow"} or "vitlab" not in installed


def test_importing_the_package_is_light():
    """`import vitlab` and a wrong command line load none of the heavy libraries."""
    code = (
        "import sys, vitlab.main; vitlab.main.main(['--confg', 'x']); "
        "print(sorted({'jax', 'flax', 'grain', 'matplotlib', 'tensorflow_datasets'} "
        "& set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stdout + out.stderr
