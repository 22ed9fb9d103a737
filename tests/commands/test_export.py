"""`vitlab export`: the file is measured, and is not written where it says something else."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vitlab
from tests.deploy.models import VIT, digits_model, make, write_run
from vitlab.commands.cli import main
from vitlab.deploy.model import Model, save_model
from vitlab.errors import InputError
from vitlab.tasks.task import task_class
from vitlab.training.evaluator import Evaluator


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), digits_model())


def test_metrics_and_latency_are_measured_through_the_file(run, tmp_path, capsys):
    out = tmp_path / "deep" / "digits.stablehlo"
    assert main(["export", run, "--format", "stablehlo", "--out", str(out), "--json"]) == 0
    captured = capsys.readouterr()
    said = captured.err
    assert "40 images of test[:40]: the run, the file" in said
    about = json.loads(pathlib.Path(f"{out}.json").read_text())
    assert json.loads(captured.out) == {"path": str(out), **about}
    for name in ("accuracy", "top5_accuracy", "nll", "ece", "mean_per_class_accuracy"):
        before, after = (about["metrics"][name][key] for key in ("run", "file"))
        assert after == pytest.approx(before, abs=1e-5)
        assert f"  {name:24}{before:8.4f}{after:8.4f}" in said
    assert about["latency_ms"]["file"] > 0
    assert about["classes"] == list("0123456789")
    assert about["inputs"] == {"images": "uint8[batch, 8, 8, 1]"}
    # And the file by itself.
    function = jax.export.deserialize(bytearray(out.read_bytes())).call
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    found = np.asarray(function(images)["probabilities"])
    expected = [each.probabilities for each in vitlab.load(run).predict(list(images))]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_file_that_says_something_else_is_not_written(run, tmp_path, capsys, monkeypatch):
    """By the main metric: 40 images, of which it gets one more right."""
    measure = Evaluator.run_through

    def other(self, predict):
        found = measure(self, predict)
        return found | {"exported/accuracy": found["exported/accuracy"] + 1 / 40}

    monkeypatch.setattr(Evaluator, "run_through", other)
    out = tmp_path / "digits.safetensors"
    command = ["export", run, "--format", "safetensors", "--out", str(out)]
    assert main(command) == 1
    assert "not written: accuracy would differ by 2.50 points" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main([*command, "--tolerance", "3"]) == 0
    assert out.exists()


def test_without_data_it_is_not_measured(tmp_path, capsys):
    run = write_run(tmp_path / "run", make("classification"), source="folder:nowhere")
    command = ["export", run, "--format", "safetensors"]
    assert main(command) == 2
    assert "nowhere" in capsys.readouterr().err
    assert main([*command, "--unchecked"]) == 0
    assert "metrics" not in json.loads((tmp_path / "run/export/model.safetensors.json").read_text())


@pytest.mark.slow
def test_onnx_is_measured_through_onnx_runtime(run, tmp_path, capsys):
    pytest.importorskip("jax2onnx")
    out = tmp_path / "digits.onnx"
    assert main(["export", run, "--format", "onnx", "--out", str(out)]) == 0
    about = json.loads(pathlib.Path(f"{out}.json").read_text())
    assert about["metrics"]["accuracy"]["file"] == about["metrics"]["accuracy"]["run"]


def test_a_run_that_predicts_nothing_is_refused_before_anything_is_written(tmp_path, capsys):
    settings = dict(backbone=VIT, decoder_width=16, decoder_depth=1, decoder_heads=2)
    task = task_class("mae").from_config(settings, {}, {}, (), jnp.float32)
    nothing = {"params": {"bias": jnp.zeros(1)}}
    model = Model("mae", task, nothing, "decode|resize(32)|value_range(-1,1)", (32, 32))
    run = write_run(tmp_path / "run", model)
    for to in ("safetensors", "stablehlo"):
        out = tmp_path / "deep" / f"model.{to}"
        assert main(["export", run, "--format", to, "--unchecked", "--out", str(out)]) == 2
        assert capsys.readouterr().err.startswith("vitlab: error: a run that pretrained without")
    with pytest.raises(InputError, match="a run that pretrained without"):
        save_model(model, tmp_path / "model.safetensors")
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


def test_what_goes_wrong_is_one_line(run, tmp_path, capsys):
    cases = [
        ([run], "--format"),
        ([run, "--format", "onx"], "--format is 'onx' but must be onnx, stablehlo, tflite or safe"),
        ([run, "--format", "stablehlo", "--dtype", "int8"], "--dtype is 'int8'"),
        ([run, "--format", "stablehlo", "--tolerance", "much"], "--tolerance is 'much'"),
        ([run, "--format", "stablehlo", "--split", "nothing"], "nothing"),
        *(
            ([run, "--format", "onnx", "--unchecked", *given], f"leave it out, or {given[0]}")
            for given in (["--data", "digits"], ["--split", "test"], ["--tolerance", "0.1"])
        ),
        ([str(tmp_path), "--format", "stablehlo"], str(tmp_path)),
        ([run, "--format", "stablehlo", "--out", "/proc/none/x"], "/proc/none"),
    ]
    for arguments, line in cases:
        assert main(["export", *arguments]) == 2, arguments
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1, said
        assert line in said[0]
