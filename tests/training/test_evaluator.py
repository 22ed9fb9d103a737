"""Evaluation counts every example of the split exactly once, whatever the batch."""

import dataclasses

import jax
import numpy as np
import pytest

from vitlab.errors import InputError
from vitlab.tasks.classification import Classification
from vitlab.training.evaluator import make_evaluator
from vitlab.training.experiment import DataConfig, EvaluatorConfig, FeaturesConfig
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
    data = DataConfig("digits", CONFIG.preprocess)
    mesh = make_mesh(ParallelismConfig(mesh={"data": 1}), 8)
    return make_evaluator("test", config, data, 8, classes, task, mesh)


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
    with pytest.raises(
        InputError, match="kind is 'knn': this task offers classification, features"
    ):
        make(task, 8, kind="knn")


def test_features_are_those_of_the_stage_and_judged_on_the_split(task, tmp_path):
    """The protocols get what the model gives, example by example, and pictures show neighbours."""
    from vitlab.data.sources import open_source
    from vitlab.evaluation import collapse, probes

    variables = task.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    protocols = ("knn", "few_shot")
    settings = FeaturesConfig(protocols, train_split="train[:90]", layer="block_0", k=5, shots=(2,))
    evaluator = make(task, 32, kind="features", features=settings)
    metrics, outputs = evaluator.run(variables, print)
    assert set(metrics) == evaluator.metric_names(variables)

    features, labels = {}, {}
    for split in ("train[:90]", "test[:50]"):
        source = open_source("digits", split)
        images = [evaluator.preprocess(source[i], None)["image"] for i in range(len(source))]
        images = np.stack(images) / np.float32(127.5) - 1
        _, stages = task.model.apply(variables, images)
        features[split] = np.asarray(stages["block_0"][:, 1:].mean(axis=1))  # not the class token
        labels[split] = np.array([source[i]["label"] for i in range(len(source))], np.int32)
    train, test = features
    data = (features[train], labels[train], features[test])
    predicted = probes.knn(*data, 10, k=5)
    assert metrics["test/knn_accuracy"] == pytest.approx((predicted == labels[test]).mean())
    expected = probes.few_shot(*data, labels[test], 10, (2,))
    assert metrics["test/2_shot_accuracy"] == pytest.approx(expected[2], abs=0.021)
    spread = collapse.feature_std(features[test])
    assert metrics["test/feature_std"] == pytest.approx(spread, rel=1e-3)

    evaluator.draw(outputs, tmp_path)
    assert (tmp_path / "neighbours.png").stat().st_size > 1000
    similarity = features[test] @ features[train].T
    similarity /= np.linalg.norm(features[train], axis=1)
    nearest = np.argsort(-similarity, axis=1)[:8, :5]
    assert (outputs["neighbours"] == nearest).mean() > 0.9  # but for ties


def test_shots_that_no_class_has_are_left_out(task):
    variables = task.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    settings = FeaturesConfig(("few_shot",), train_split="train[:40]", shots=(1, 2, 10, 25, 41))
    evaluator = make(task, 32, kind="features", features=settings)
    names = {f"test/{shots}_shot_accuracy" for shots in (1, 2)}
    # 40 digits have 10 of none, and 41 examples there are not at all.
    assert {name for name in evaluator.run(variables, print)[0] if "shot" in name} == names
    assert names < evaluator.metric_names(variables)
    assert "test/41_shot_accuracy" not in evaluator.metric_names(variables)


def test_collapsed_features_give_an_alarm(task):
    variables = task.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    settings = FeaturesConfig(train_split="train[:30]")
    evaluator = make(task, 32, kind="features", features=settings)
    assert evaluator.alarms(evaluator.run(variables, print)[0]) == []
    params = jax.tree.map(lambda x: x, variables["params"])
    # the last norm sends everything to one point
    params["norm"] = {"scale": np.zeros(8), "bias": np.ones(8)}
    said = evaluator.alarms(evaluator.run({"params": params}, print)[0])
    # a mean that is much larger than what differs is no collapse
    params["norm"] = {"scale": np.ones(8), "bias": np.full(8, 20.0)}
    metrics, _ = evaluator.run({"params": params}, print)
    assert metrics["test/feature_std"] < 0.06
    assert metrics["test/effective_rank"] > 3
    assert evaluator.alarms(metrics) == []
    assert [line.partition(" is ")[0] for line in said] == [
        "collapse: test/feature_std", "collapse: test/effective_rank"
    ]  # fmt: skip


def test_what_features_cannot_be_taken_is_one_line(task):
    variables = task.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    evaluator = make(task, 32, kind="features", features=FeaturesConfig(layer="blok_0"))
    with pytest.raises(InputError, match="no such stage; did you mean 'block_0'"):
        evaluator.metric_names(variables)
    for split, train, said in [
        ("train[:20]", "train", "split and features.train_split have examples in common"),
        ("train[10:20]+test", "train[15:]", "have examples in common"),
        ("test", "train[:1]", "train_split has 1 examples, but its protocols need 2"),
    ]:
        settings = FeaturesConfig(train_split=train)
        with pytest.raises(InputError, match=said):
            make(task, 32, kind="features", split=split, features=settings)
    settings = FeaturesConfig(("few_shot",), train_split="train[:40]", shots=(41, 50))
    with pytest.raises(InputError, match="has 40 examples, but its protocols need 41: take more"):
        make(task, 32, kind="features", features=settings)
    settings = dataclasses.replace(settings, shots=(40,))
    with pytest.raises(InputError, match="no class has 40 examples to learn from, the largest has"):
        make(task, 32, kind="features", features=settings).run(variables, print)
    with pytest.raises(InputError, match="features is for kind 'features' but kind is 'class"):
        dataclasses.replace(CONFIG, features=FeaturesConfig())
