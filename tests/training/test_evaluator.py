"""Evaluation counts every example of the split exactly once, whatever the batch."""

import dataclasses

import jax
import numpy as np
import pytest

from vitlab.errors import InputError
from vitlab.tasks.classification import Classification
from vitlab.training.evaluator import Evaluator
from vitlab.training.experiment import EvaluatorConfig
from vitlab.training.parallelism import ParallelismConfig, make_mesh

CLASSES = tuple("0123456789")
CONFIG = EvaluatorConfig(preprocess="decode(channels=1)|value_range(-1,1)", split="test[:50]")


@pytest.fixture(scope="module")
def task():
    model = {"name": "vit", "width": 8, "depth": 1, "num_heads": 2, "patch_size": 4,
             "head_init_std": 1.0}  # fmt: skip
    return Classification.from_config(model, {}, {}, CLASSES, np.float32)


def make(task, batch_size, classes=CLASSES, **changes):
    config = dataclasses.replace(CONFIG, batch_size=batch_size, **changes)
    mesh = make_mesh(ParallelismConfig({"data": 1}), 8)
    return Evaluator("test", config, "digits", 8, classes, task, mesh, workers=0)


def test_every_example_once_whatever_the_batch(task):
    variables = task.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    results = [make(task, size).run(variables, print) for size in (50, 7, 64)]
    for metrics, outputs in results:
        np.testing.assert_array_equal(outputs["id"], np.arange(50))
        assert metrics == pytest.approx(results[0][0], abs=1e-6)
    labels = results[0][1]["label"]
    hits = results[0][1]["top_k"][:, 0] == labels
    assert results[0][0]["test/accuracy"] == hits.sum() / 50


def test_it_can_be_interrupted(task):
    variables = task.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    assert make(task, 7).run(variables, print, stop=lambda: True) is None


def test_other_classes_than_in_training_are_refused(task):
    with pytest.raises(InputError, match=r"config.evaluators.test: its classes \(0, 1, 2, 3, ..."):
        make(task, 8, classes=tuple("abc"))
    with pytest.raises(InputError, match="kind is 'knn': this task offers classification"):
        make(task, 8, kind="knn")
