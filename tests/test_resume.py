"""`config.resume`: a run goes on from another's checkpoint, to another length."""

import json
import shutil

import numpy as np
import pytest

from tests.test_main import arguments, records, result
from vitlab import checkpoints
from vitlab.main import main
from vitlab.training import footprint
from vitlab.training.trained import load_trained

CONSTANT = dict(schedule__name="constant", logging__every_steps=2, checkpoint__best="test/nll")


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A run of four steps, with the checkpoints of the last two."""
    workdir = tmp_path_factory.mktemp("run") / "short"
    settings = {**CONSTANT, "checkpoint__every_steps": 1}
    assert main(arguments(workdir, total_steps=4, **settings)) == 0
    return workdir


def test_a_longer_run_ends_with_the_bits_of_one_that_was_long_from_the_start(
    short, tmp_path, capsys
):
    whole, longer, origin = (tmp_path / name for name in ("whole", "longer", "origin"))
    assert main(arguments(whole, **CONSTANT)) == 0
    shutil.copytree(short, origin)
    capsys.readouterr()
    assert main(arguments(longer, resume=origin, checkpoint__keep=9, **CONSTANT)) == 0
    assert "going on from step 4" in capsys.readouterr().out
    assert result(longer)["fingerprint"] == result(whole)["fingerprint"]
    assert records(longer) == [each for each in records(whole) if each["step"] > 4]
    # What was best before is nothing to this run.
    assert [c.step for c in checkpoints.list_checkpoints(longer / "checkpoints")] == [4, 6, 8]
    first = checkpoints.locate(longer / "checkpoints/00000004").meta()
    assert first["best"]["value"] is None
    # But a loss that rises is held against what was learned before.
    assert first["loss"] == checkpoints.locate(origin).meta()["loss"]
    assert first["loss"]["first"] is not None
    assert result(longer)["best"]["step"] == 8
    # Killed after a while, it goes on from its own checkpoint, without the other run.
    shutil.rmtree(origin)
    for step in (6, 8):
        shutil.rmtree(longer / f"checkpoints/{step:08d}")
    (longer / "result.json").unlink()
    assert main(arguments(longer, resume=origin, checkpoint__keep=9, **CONSTANT)) == 0
    assert result(longer)["fingerprint"] == result(whole)["fingerprint"]
    assert load_trained(longer).step == 8  # as every command does


@pytest.mark.slow
def test_cooled_down_under_another_loss_from_a_checkpoint_on(short, tmp_path):
    """The rate falls from the first step on, and what is not of the state may change."""
    workdir = tmp_path / "cool"
    settings = {
        **CONSTANT, "checkpoint__best": None, "logging__every_steps": 1, "total_steps": 6,
        "schedule__cooldown_steps": 3, "loss__label_smoothing": 0.1, "augment__mixup": 0.0,
        "optimizer__weight_decay": 0.2, "early_stopping__metric": "test/nll",
        "early_stopping__patience_steps": 3,
    }  # fmt: skip
    flags = arguments(workdir, resume=short / "checkpoints/00000003", **settings)
    assert main(flags) == 0
    logged = [r for r in records(workdir) if "learning_rate" in r]
    rates = [r["learning_rate"] for r in logged]
    np.testing.assert_allclose(rates, 3e-3 * np.array([1, 2 / 3, 1 / 3]), rtol=1e-6)


def test_what_cannot_go_on_is_one_line(short, tmp_path, capsys):
    cases = {
        "batch_size=16": "config.batch_size is 32 there and 16 here, and a run goes on with the",
        "seed=1": "config.seed is 0 there and 1 here",
        "data.split=train[:99]": "config.data.split is 'train' there and 'train[:99]' here",
        "model.depth=2": "config.model.depth is 1 there and 2 here",
        "model.drop_path=0.2": "config.model.drop_path is 0.1 there and 0.2 here",
        "ema_decay=0.99": "config.ema_decay is 0.9 there and 0.99 here",
        "optimizer.name=lion": "config.optimizer.name is 'adamw' there and 'lion' here",
        "optimizer.clip_norm=None": "config.optimizer.clip_norm is 1.0 there and None here; check",
        "total_steps=4": "00000004 is of step 4, and this training ends at step 4",
        f"init_from={short}": "config: init_from and resume are both set",
        "resume=/nowhere": "/nowhere does not exist",
    }
    for override, message in cases.items():
        flags = arguments(tmp_path / "w", resume=short, **CONSTANT)
        code = main([*flags, f"--config.{override}"])
        error = capsys.readouterr().err
        assert (code, error.count("\n")) == (2, 1), (override, error)
        assert message in error, (override, error)
    assert not (tmp_path / "w" / "metrics.jsonl").exists()


def test_a_damaged_checkpoint_and_other_data_are_one_line(short, tmp_path, capsys):
    meta = checkpoints.locate(short).meta()
    for name, change, message in (
        ("data", {**meta, "examples": 7}, "has changed since {} began: examples were 7 and are 14"),
        ("damaged", None, "00000004 is damaged: "),
    ):
        run = tmp_path / name
        shutil.copytree(short, run)
        newest = checkpoints.locate(run).path
        (newest / "meta.json").write_text(json.dumps(change))
        if change:
            (newest / "manifest.json").write_text("{}")
        assert main(arguments(tmp_path / "w", resume=run, **CONSTANT)) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message.format(run) in error


def test_the_same_directory_with_another_length_points_to_resume(short, capsys):
    flags = arguments(short, **{**CONSTANT, "schedule__cooldown_steps": 2})
    advice = f"Give another --workdir, and config.resume={short} to go on from what is there\n"
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert "config.schedule.cooldown_steps is 0 there and 2 here; config.total_steps is 4" in error
    assert error.endswith(advice)
    assert main([*flags, "--config.optimizer.lr=1"]) == 2
    assert capsys.readouterr().err.endswith("Give another --workdir\n")


def test_a_checkpoint_that_goes_while_the_step_is_compiled_is_one_line(
    short, tmp_path, capsys, monkeypatch
):
    """As that of a run that is still going."""
    run = tmp_path / "run"
    shutil.copytree(short, run)

    def compile_to_fit(setup, log):
        shutil.rmtree(run / "checkpoints")

    monkeypatch.setattr(footprint, "compile_to_fit", compile_to_fit)
    assert main(arguments(tmp_path / "w", resume=run, **CONSTANT)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "now; is that run still going? Start from a later one" in error
    assert str(run) in error
