"""A task of one's own, by its import path."""

import json
import pathlib
import sys

import pytest

from vitlab.commands.cli import main as vitlab
from vitlab.errors import InputError
from vitlab.main import main
from vitlab.models.build import NotImportableError
from vitlab.tasks.task import TASKS, task_class
from vitlab.training.setup import Setup

ROOT = pathlib.Path(__file__).parents[2]
OWN = '''
import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vitlab.tasks.pretraining import Pretraining


class Flat(nn.Module):
    num_classes: int = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dense(4, dtype=self.dtype)(images.reshape(len(images), -1))
        return x, {"pre_logits": x}


class Net(nn.Module):
    backbone: nn.Module
    width: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, train=False):
        x, stages = self.backbone(images)
        return nn.Dense(1)(nn.Dense(self.width)(x))[:, 0], stages


@dataclasses.dataclass(frozen=True)
class Nothing:
    """A section without keys."""


@dataclasses.dataclass(frozen=True)
class Brightness(Pretraining):
    """Learns the mean of an image."""

    evaluators = ("brightness",)
    model_class = Net
    loss_class = augment_class = Nothing

    def augment(self, batch, normalize, seed, step):
        return {**batch, "image": normalize(batch["image"])}

    def loss(self, params, model_state, batch, key):
        mask = batch["mask"].astype(jnp.float32)
        errors = self._errors({"params": params, **model_state}, batch["image"])
        return {"square": ((errors * mask).sum(), mask.sum(), 1.0)}, {}, model_state

    def evaluate(self, variables, batch, normalize):
        return {"error": self._errors(variables, normalize(batch["image"]))}

    def show(self, variables, batch, normalize):
        return {}

    def metrics(self, outputs, examples):
        return {"error": float(outputs["error"].mean())}

    def pictures(self, outputs, shown, examples, directory):
        pass

    def _errors(self, variables, images):
        return (self.model.apply(variables, images)[0] - images.mean((1, 2, 3))) ** 2


class WithoutLoss(Pretraining):
    evaluators = ("brightness",)
    model_class = Net
    loss_class = Nothing


function = len
'''


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """A module `own_tasks` that can be imported."""
    (tmp_path / "own_tasks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_tasks", None)


def command(workdir):
    pixels = "decode(channels=1)|value_range(-1,1)"
    values = {
        "task": "own_tasks:Brightness", "model": {"backbone": {"name": "own_tasks:Flat"}},
        "loss": {}, "augment": {}, "batch_size": 8, "total_steps": 1, "schedule": {},
        "logging.tensorboard": False,
        "evaluators": {"test": {"kind": "brightness", "split": "test[:9]", "preprocess": pixels}},
    }  # fmt: skip
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    return ["--config", str(ROOT / "configs/simclr_digits.py"), "--workdir", str(workdir), *flags]


@pytest.mark.slow
def test_its_run_is_evaluated_and_gone_on_from(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(command(run)) == 0
    config = json.loads((run / "config.json").read_text())
    assert config["model"] == {
        "backbone": {"name": "own_tasks:Flat", "num_classes": None},
        "width": 3,
    }
    trained = json.loads((run / "result.json").read_text())["metrics"]

    del sys.modules["own_tasks"]  # as in another process
    assert vitlab(["evaluate", str(run)]) == 0
    evaluated = json.loads((run / "evaluate" / "result.json").read_text())["metrics"]
    assert evaluated == pytest.approx(trained, rel=1e-5)
    Setup({**config, "init_from": str(run)}).read_initial()  # which refuses what does not fit

    del sys.modules["own_tasks"]
    (tmp_path / "own_tasks.py").unlink()
    assert vitlab(["evaluate", str(run)]) == 2
    told = capsys.readouterr().err
    assert "config.task: 'own_tasks:Brightness' cannot be imported" in told
    assert "must be on PYTHONPATH" in told


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_tasks:WithoutLoss", "lacks augment, loss, .*pictures, .*augment_class: see vitlab"),
        ("own_tasks:Nothing", "lacks model, names, .*from_config, .*num_layers: see vitlab.tasks"),
        ("own_tasks:function", "own_tasks:function is no dataclass: see vitlab.tasks.task.Task"),
        ("own_tasks:No", "own_tasks has no No"),
        ("no_package.tasks:No", "'no_package.tasks:No' cannot be imported .*on PYTHONPATH"),
        ("sim-clr:X", "no task 'sim-clr:X'"),
        ("simlr", "no task 'simlr'; did you mean 'simclr'?"),
    ],
)
def test_what_is_no_task_is_one_line(name, message):
    with pytest.raises(InputError, match=rf"^config\.task: .*{message}") as error:
        task_class(name)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, NotImportableError) == name.endswith(":No")


def test_the_tasks_here_keep_the_contract():
    for path in TASKS.values():
        assert task_class(path).__name__ == path.partition(":")[2]
