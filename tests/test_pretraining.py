"""Pretraining without labels and what comes after it, through the commands, at a tiny size."""

import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from vitlab.commands.cli import main as vitlab
from vitlab.main import main
from vitlab.training import journal
from vitlab.weights import transfer

ROOT = pathlib.Path(__file__).parents[1]
BACKBONE = {"width": 8, "depth": 1, "num_heads": 2}
COMMON = {
    "batch_size": 16, "total_steps": 4, "schedule.warmup_steps": 1, "logging.tensorboard": False,
    "logging.every_steps": 2, "checkpoint.every_steps": 2, "checkpoint.keep": 2,
    "data.split": "train[:64]",
    "evaluators.test.split": "test[:20]", "evaluators.features.split": "test[:20]",
    "evaluators.features.features.train_split": "train[:40]",
    "evaluators.features.features.protocols": "('knn',)",
    **{f"model.backbone.{key}": value for key, value in BACKBONE.items()},
}  # fmt: skip
MAE = {**COMMON, "model.decoder_width": 8, "model.decoder_heads": 1}
SIMCLR = {**COMMON, "model.projector_dim": 4}
FINETUNE = {
    "batch_size": 16, "total_steps": 1, "schedule.warmup_steps": 0, "ema_decay": None,
    "logging.tensorboard": False, "data.split": "train[:64]", "evaluators.test.split": "test[:20]",
    "model.pos_embed": "sincos2d_mae", "model.class_token": False,
    "init_allow": "['head/.*']", **{f"model.{k}": v for k, v in BACKBONE.items()},
}  # fmt: skip


def run(config, workdir, overrides):
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    return main(["--config", str(ROOT / f"configs/{config}.py"), "--workdir", str(workdir), *flags])


@pytest.fixture(scope="module")
def mae(tmp_path_factory):
    """A pretrained directory; its evaluator of features finds everything alarming."""
    workdir = tmp_path_factory.mktemp("run") / "mae"
    assert run("mae_digits", workdir, {**MAE, "evaluators.features.features.alarm_std": 2.0}) == 0
    return workdir


def test_a_pretrained_directory_has_metrics_pictures_and_alarms(mae):
    result = json.loads((mae / "result.json").read_text())
    assert set(result["metrics"]) == {
        "test/loss", "features/knn_accuracy", "features/feature_std", "features/effective_rank"
    }  # fmt: skip
    for picture in ("curves", "test/reconstructions", "features/neighbours"):
        assert Image.open(mae / "report" / f"{picture}.png").width > 300
    alarms = [r for r in journal.read(mae / "metrics.jsonl") if "alarm" in r]
    assert alarms == result["alarms"]
    assert alarms[-1]["step"] == 4
    assert alarms[-1]["alarm"].startswith("collapse: features/feature_std is 0.")


@pytest.mark.slow
def test_fine_tuning_takes_the_encoder_and_says_so(mae, tmp_path, capsys):
    """With a learning rate of 0 the encoder stays what was pretrained, to the bit."""
    overrides = {**FINETUNE, "init_from": mae, "optimizer.lr": 0.0}
    assert run("quickstart", tmp_path / "tuned", overrides) == 0
    out = capsys.readouterr().out
    assert "parameters loaded" in out
    left = re.search(r"left behind: (.*)", out)[1]
    assert (
        left
        == "decoder (16), decoder_embed (2), decoder_norm (2), decoder_pred (2), mask_token (1)"
    )
    assert set(re.search(r"2 new: (.*)", out)[1].split(", ")) == {"head/kernel", "head/bias"}
    pretrained = transfer.read(mae).variables
    tuned = transfer.read(tmp_path / "tuned").variables
    for name, value in tuned.items():
        if not name.startswith("head/"):
            np.testing.assert_array_equal(value, pretrained[f"backbone/{name}"])


def test_an_encoder_that_does_not_fit_is_named_with_what_would(mae, tmp_path, capsys):
    overrides = {**FINETUNE, "init_from": mae, "model.width": 16, "model.patch_size": 4}
    assert run("quickstart", tmp_path / "tuned", overrides) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "(8, 8) there and (16, 16) here" in error
    assert "The model there has config.model.patch_size=2, config.model.width=8" in error


def test_an_encoder_of_the_same_shapes_that_means_something_else_is_refused(mae, tmp_path, capsys):
    for change, said in [
        ({"model.num_heads": 4}, "config.model.num_heads=2: set the same, or name 'num_heads' in"),
        ({"model.pos_embed": "none"}, "config.model.pos_embed=sincos2d_mae"),
    ]:
        overrides = {**FINETUNE, "init_from": mae, **change}
        assert run("quickstart", tmp_path / "tuned", overrides) == 2
        assert said in capsys.readouterr().err
    allowed = {"init_allow": "['head/.*', 'num_heads']", "model.num_heads": 4}
    overrides = {**FINETUNE, "init_from": mae, **allowed, "model.mlp": "gelu_tanh"}
    assert run("quickstart", tmp_path / "tuned", overrides) == 2
    assert "or name 'mlp' in" in capsys.readouterr().err


@pytest.mark.slow
def test_evaluate_looks_at_the_average_where_the_run_did(tmp_path):
    """And at the parameters themselves where its config says so."""
    quick = {
        "total_steps": 2, "batch_size": 16, "schedule.warmup_steps": 0, "ema_decay": 0.99,
        "logging.tensorboard": False, "evaluators.test.split": "test[:20]",
        "evaluators.own": {"split": "test[:20]", "params": "model",
                           "preprocess": "decode(channels=1)|value_range(-1,1)"},
        "optimizer.lr": 0.1, **{f"model.{k}": v for k, v in BACKBONE.items()},
    }  # fmt: skip
    assert run("quickstart", tmp_path / "run", quick) == 0
    metrics = json.loads((tmp_path / "run/result.json").read_text())["metrics"]
    assert abs(metrics["test/nll"] - metrics["own/nll"]) > 0.01
    assert vitlab(["evaluate", str(tmp_path / "run")]) == 0
    again = json.loads((tmp_path / "run/evaluate/result.json").read_text())["metrics"]
    assert again == pytest.approx(metrics, abs=1e-5)


@pytest.mark.slow
def test_evaluate_measures_again_and_judges_features(mae, capsys):
    result = json.loads((mae / "result.json").read_text())
    assert vitlab(["evaluate", str(mae)]) == 0
    again = json.loads((mae / "evaluate/result.json").read_text())
    assert again["metrics"] == pytest.approx(result["metrics"], abs=1e-6)
    assert again["step"] == 4

    checkpoint = mae / "checkpoints" / "00000002"
    command = ["evaluate", str(checkpoint), "linear", "logistic"]
    assert vitlab([*command, "--layer", "block_0", "--split=test[:30]"]) == 0
    found = json.loads((mae / "evaluate/result.json").read_text())
    assert found["step"] == 2
    assert found["evaluators"]["test"]["features"]["layer"] == "block_0"
    assert found["evaluators"]["test"]["features"]["train_split"] == "train[:40]"  # the run's own
    assert {"test/linear_accuracy", "test/linear_learning_rate", "test/logistic_c"} < set(
        found["metrics"]
    )
    assert "linear_accuracy" in capsys.readouterr().out
    assert vitlab(["evaluate", str(mae), "few_shot"]) == 0
    shown = capsys.readouterr().out
    assert "1_shot_accuracy" in shown
    assert "25_shot_accuracy" not in shown


def test_evaluate_with_bad_input_is_one_line(mae, tmp_path, capsys):
    for arguments, said in [
        ([str(mae), "knnn"], "no protocol 'knnn'; did you mean 'knn'?"),
        ([str(mae), "knn", "--layr", "x"], "--layr does not exist; did you mean '--layer'?"),
        ([str(mae), "knn", "--layer"], "--layer needs a value"),
        ([str(mae), "knn", "--layer", "block_7"], "no such stage; did you mean 'block_0'?"),
        ([str(mae), "knn", "--split", "tst"], "tst"),
        ([str(mae), "knn", "--split", "train"], "have examples in common"),
        ([str(mae), "few_shot", "--train_split", "train[:1]"], "protocols need 2: take more"),
        ([str(mae), "--layer", "encoder"], "--layer is for protocols"),
        ([str(tmp_path)], "has no finished checkpoint"),
        (["--split", "test"], "needs WORKDIR"),
    ]:
        code = vitlab(["evaluate", *arguments])
        error = capsys.readouterr().err
        assert (code, error.count("\n")) == (2, 1), (arguments, error)
        assert said in error, (arguments, error)
    assert vitlab(["evalute"]) == 2
    assert "did you mean 'evaluate'?" in capsys.readouterr().err


@pytest.mark.slow
def test_images_without_labels_will_do(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for i in range(20):
        place = tmp_path / "photos" / "2026" / str(i % 3)
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(place / f"{i}.png")
    source = {"data.source": f"images:{tmp_path / 'photos'}", "data.split": "train"}
    judged = {"evaluators.test.source": "digits", "evaluators.features.source": "digits"}
    workdir = tmp_path / "run"
    assert run("simclr_digits", workdir, {**SIMCLR, **source, **judged}) == 0
    assert Image.open(workdir / "report/test/views.png").width > 200
    assert "20 examples, 4 steps" in capsys.readouterr().out
    assert run("quickstart", tmp_path / "no", source) == 2
    assert "has no labels" in capsys.readouterr().err
    keys = ("test.split", "features.split", "features.features.train_split")
    splits = {f"evaluators.{key}": "train[:5]" for key in keys}
    assert run("simclr_digits", tmp_path / "no", {**SIMCLR, **source, **splits}) == 2
    assert "protocols judge features with labels" in capsys.readouterr().err


def test_bad_input_is_one_line_and_exit_2(tmp_path, capsys):
    cases = [
        ("simclr_digits", {"batch_size": 1}, "must be at least 2"),
        ("simclr_digits", {"accumulate": 2}, "config.accumulate: a model with batch statistics"),
        ("simclr_digits", {"loss.temperature": 0}, "temperature is 0.0 but must be positive"),
        ("simclr_digits", {"augment.blur": 0.5}, "config.augment.blur is 0.5 but must be a list"),
        ("simclr_digits", {"augment.flip": 2}, "are probabilities"),
        ("simclr_digits", {"model.backbone.num_classes": 3}, "backbone has no num_classes"),
        ("mae_digits", {"model.mask_ratio": 0}, "mask_ratio is 0.0: it must be between 0 and 1"),
        ("mae_digits", {"model.mask_ratio": 1}, "mask_ratio is 1.0: it must be between 0 and 1"),
        ("mae_digits", {"model.mask_ratio": 0.99}, "leaves 0 of 16 patches visible"),
        ("mae_digits", {"model.backbone.patch_size": 16}, "in whole patches of 16: 16 x 16, say"),
        ("mae_digits", {"model.backbone.name": "resnet"}, "does not exist"),
        ("mae_digits", {"model.backbone.widht": 8}, "did you mean 'width'?"),
        ("mae_digits", {"model.decoder_width": 9}, "decoder_width 9 is no multiple"),
        ("mae_digits", {"augment.mixup": 0.5}, "config.augment.mixup does not exist"),
        ("mae_digits", {"evaluators.features.features.k": 0}, "they must be positive"),
        ("mae_digits", {"model.backbone.norm_after_pool": True}, "has no norm_after_pool"),
        ("simclr_digits", {"augment.blur": (0.5, 0.5)}, "of 8 pixels blurs nothing"),
        ("simclr_digits", {"model.backbone.pool": "none"}, "must pool its tokens"),
        ("mae_digits", {"evaluators.test.kind": "contrast"}, "offers reconstruction, features"),
    ]
    for config, change, said in cases:
        overrides = {**(MAE if config == "mae_digits" else SIMCLR), **change}
        code = run(config, tmp_path / "w", overrides)
        error = capsys.readouterr().err
        assert (code, error.count("\n")) == (2, 1), (change, error)
        assert said in error, (change, error)
