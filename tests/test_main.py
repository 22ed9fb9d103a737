"""The command itself, on real digits with a tiny model: what it writes, resumes and refuses."""

import errno
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from PIL import Image

from vitlab import checkpoints
from vitlab.main import main
from vitlab.training import journal, lock
from vitlab.training.evaluator import Evaluator
from vitlab.training.record_file import RecordFile

ROOT = pathlib.Path(__file__).parents[1]
TINY = {
    "model.width": 8, "model.depth": 1, "model.num_heads": 2, "model.drop_path": 0.1,
    "batch_size": 32, "total_steps": 8, "schedule.warmup_steps": 2, "ema_decay": 0.9,
    "logging.every_steps": 3, "logging.tensorboard": False, "checkpoint.every_steps": 2,
    "evaluators.test.every_steps": 4, "evaluators.test.split": "test[:50]",
}  # fmt: skip
TIMINGS = ("images_per_second", "input_wait")


def arguments(workdir, config="configs/quickstart.py", **overrides):
    values = {**TINY, **{k.replace("__", "."): v for k, v in overrides.items()}}
    flags = [f"--config.{key}={value}" for key, value in values.items() if value is not None]
    return ["--config", str(ROOT / config), "--workdir", str(workdir), *flags]


def records(workdir):
    return [
        {k: v for k, v in record.items() if k not in TIMINGS}
        for record in journal.read(workdir / "metrics.jsonl")
    ]


def result(workdir):
    return json.loads((workdir / "result.json").read_text())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run from start to end."""
    workdir = tmp_path_factory.mktemp("run") / "whole"
    assert main(arguments(workdir, logging__tensorboard=True)) == 0
    return workdir


def test_a_working_directory_holds_everything(unbroken):
    names = {p.name for p in unbroken.iterdir()}
    assert names == {
        ".lock", "checkpoints", "config.json", "metrics.jsonl", "report", "result.json",
        "tensorboard",
    }  # fmt: skip
    config = json.loads((unbroken / "config.json").read_text())
    assert config["optimizer"]["args"] == {}  # defaults are written out
    assert config["model"]["pool"] == "gap"
    assert config["total_steps"] == 8
    summary = result(unbroken)
    assert set(summary) == {
        "metrics", "best", "alarms", "step", "seconds", "config_hash", "versions", "devices",
        "fingerprint",
    }  # fmt: skip
    assert summary["step"] == 8
    assert len(summary["fingerprint"]) == 64
    assert {"test/accuracy", "test/nll", "test/ece", "test/top5_accuracy"} <= set(
        summary["metrics"]
    )
    for picture in ("curves.png", "test/confusion.png", "test/mistakes.png"):
        assert np.asarray(Image.open(unbroken / "report" / picture)).std() > 10
    steps = [r["step"] for r in records(unbroken)]
    assert steps == [3, 4, 6, 8, 8]
    assert ["train/loss" in r for r in records(unbroken)] == [True, False, True, True, False]
    assert any(p.name.startswith("events") for p in (unbroken / "tensorboard").iterdir())


@pytest.mark.slow
def test_without_a_workdir_runs_go_to_runs(unbroken, tmp_path, monkeypatch, capsys):
    """Relative paths all the way: the default working directory, resuming, init_from."""
    monkeypatch.chdir(tmp_path)
    config, file, _, _, *overrides = arguments(tmp_path)
    flags = [config, file, *overrides]
    assert main(flags) == 0
    (workdir,) = pathlib.Path("runs").iterdir()
    assert workdir.name.startswith("quickstart-")
    assert result(workdir)["fingerprint"] == result(unbroken)["fingerprint"]
    (workdir / "result.json").unlink()
    assert main(flags) == 0
    assert "going on from step 8" in capsys.readouterr().out
    start_from = [f"--config.init_from={workdir}", "--workdir", "other"]
    assert main([*flags, *start_from, "--config.total_steps=2"]) == 0


def test_a_run_of_an_earlier_vitlab_goes_on(unbroken, tmp_path, capsys):
    """Keys that it did not have yet are at their defaults, in the model and elsewhere."""
    workdir = tmp_path / "earlier"
    shutil.copytree(unbroken, workdir)
    now = json.loads((workdir / "config.json").read_text())
    earlier = json.loads(json.dumps(now))
    del earlier["data"]["repeats"], earlier["model"]["drop_path_uniform"]
    for config, flag, message in (
        (earlier, {"data__repeats": 2}, "config.data.repeats is 1 there and 2 here"),
        ({**earlier, "depth": 1}, {}, "config.depth is 1 there and not set here; "),
    ):
        (workdir / "config.json").write_text(json.dumps(config))
        assert main(arguments(workdir, **flag)) == 2
        assert message in capsys.readouterr().err
    (workdir / "config.json").write_text(json.dumps(earlier))
    assert main(arguments(workdir)) == 0
    assert "is finished at step 8" in capsys.readouterr().out
    written = json.loads((workdir / "config.json").read_text())
    assert all(written[key] == now[key] for key in ("data", "model"))


def test_a_finished_run_says_so_and_another_config_is_refused(unbroken, capsys):
    before = result(unbroken)
    assert main(arguments(unbroken)) == 0
    assert "is finished at step 8" in capsys.readouterr().out
    assert main(arguments(unbroken, optimizer__lr=0.5)) == 2
    assert "belongs to another config: config.optimizer.lr is 0.003 there" in (
        capsys.readouterr().err
    )
    assert result(unbroken) == before
    with lock.held(unbroken):  # as by another process
        assert main(arguments(unbroken)) == 2
    assert "another run is in it now" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("evaluated", [True, False])
def test_resuming_on_the_spot_gives_the_same_bits(unbroken, tmp_path, evaluated):
    # From the checkpoint of step 4, between two logs: records past it are cut, and what was
    # summed up since the last log comes from the checkpoint.
    workdir = tmp_path / "resumed"
    assert main(arguments(workdir, checkpoint__keep=9)) == 0
    for directory in (workdir / "checkpoints").iterdir():
        if int(directory.name) > 4:
            shutil.rmtree(directory)
    if not evaluated:  # as after SIGTERM in the evaluation, and SIGKILL after its second start
        newest = checkpoints.locate(workdir)
        (newest.path / "meta.json").write_text(json.dumps({**newest.meta(), "evaluated": False}))
        (newest.path / "manifest.json").write_text("{}")
    (workdir / "result.json").unlink()
    assert main(arguments(workdir, profile="5:7")) == 0  # which changes nothing
    assert result(workdir)["fingerprint"] == result(unbroken)["fingerprint"]
    assert records(workdir) == records(unbroken)
    assert list((workdir / "profile").rglob("perfetto_trace.json.gz"))


KILLED = """
    import os, signal, sys
    from vitlab import checkpoints
    from vitlab.training import step

    what, when = sys.argv[1], int(sys.argv[2])
    calls = 0
    def kill_at(module, name):
        original = getattr(module, name)
        def counted(*args, **kwargs):
            global calls
            calls += 1
            if calls == when:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)
        setattr(module, name, counted)

    if what == "write":  # meta.json and manifest.json of each checkpoint
        kill_at(checkpoints, "_write_durably")
    else:  # before each step's batch goes to the devices
        from vitlab.training import parallelism
        kill_at(parallelism, "to_devices")
    from vitlab.main import main
    sys.exit(main(sys.argv[3:]))
"""


def killed(workdir, what, when, **overrides):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), what, str(when),
         *arguments(workdir, **overrides)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("what", "when"), [pytest.param("write", 6, marks=pytest.mark.slow), ("step", 6)]
)
def test_a_killed_run_ends_with_the_same_bits(unbroken, tmp_path, what, when):
    """SIGKILL in the middle of writing the checkpoint of step 6, and in the middle of a step."""
    workdir = tmp_path / "killed"
    assert killed(workdir, what, when).returncode == -signal.SIGKILL
    saved = [c.step for c in checkpoints.list_checkpoints(workdir / "checkpoints")]
    assert max(saved) in (2, 4)  # a save may be on its way when the process dies
    assert not (workdir / "result.json").exists()
    assert main(arguments(workdir)) == 0
    assert result(workdir)["fingerprint"] == result(unbroken)["fingerprint"]
    assert records(workdir) == records(unbroken)


def steps_saved(workdir):
    return [0] + [c.step for c in checkpoints.list_checkpoints(workdir / "checkpoints")]


@pytest.mark.slow
def test_twenty_kills_at_random_moments(tmp_path):
    """SIGKILL twenty times over one run, at random moments; the same bits come out."""
    settings = dict(total_steps=1500, checkpoint__every_steps=10, evaluators__test__every_steps=500)
    assert main(arguments(tmp_path / "whole", **settings)) == 0
    workdir = tmp_path / "unlucky"
    seed = int(time.time())
    print(f"seed {seed}")  # shown if it fails
    rng = np.random.default_rng(seed)
    for _ in range(20):
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "vitlab.main", *arguments(workdir, **settings)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        begun = next((line for line in process.stdout if "; ready in " in line), "nothing")
        begun = begun.rpartition("; ")[2].strip()
        further = int(begun.rpartition(" ")[2]) + rng.integers(40)
        while steps_saved(workdir)[-1] < further:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        process.communicate()
        saved = steps_saved(workdir)
        print(f"{begun}; killed, saved: {saved}")
        assert process.returncode == -signal.SIGKILL
    assert not (workdir / "result.json").exists()
    assert main(arguments(workdir, **settings)) == 0
    assert result(workdir)["fingerprint"] == result(tmp_path / "whole")["fingerprint"]
    assert records(workdir) == records(tmp_path / "whole")


def test_a_journal_that_cannot_be_read_is_one_line(unbroken, tmp_path, capsys):
    workdir = tmp_path / "unreadable"
    shutil.copytree(unbroken, workdir)
    (workdir / "result.json").unlink()
    (workdir / "metrics.jsonl").unlink()
    (workdir / "metrics.jsonl").mkdir()
    assert main(arguments(workdir)) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("vitlab: error: ")
    assert errors.count("\n") == 1
    assert "metrics.jsonl" in errors


def test_damaged_files_of_a_run_are_one_line(unbroken, tmp_path, capsys):
    for file, text, message in (
        ("result.json", "{", "result.json is damaged, it is no JSON"),
        ("result.json", '{"metrics": {}}', "result.json is damaged: it lacks the key 'step'"),
        ("config.json", "[]", "config.json is damaged: it holds no object of keys"),
        ("config.json", "{}", "belongs to another config"),
    ):
        workdir = tmp_path / file / text
        shutil.copytree(unbroken, workdir)
        (workdir / file).write_text(text)
        assert main(arguments(workdir)) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    # And as the start of another run.
    workdir = tmp_path / "config.json" / "{}"
    (workdir / "config.json").write_text("{")
    assert main(arguments(tmp_path / "other", init_from=workdir)) == 2
    assert "config.json is damaged, it is no JSON" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_cannot_fit_is_told_what_would(tmp_path, capsys, monkeypatch):
    from vitlab.training import parallelism

    workdir = tmp_path / "large"
    monkeypatch.setattr(parallelism, "device_memory", lambda: 8_000_000)
    assert main(arguments(workdir, batch_size=512)) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    # Half of the batch takes half of the room, and to compute again saves nothing in one block.
    found = re.search(
        r"a step needs ([\d.]+) MiB on each device, which holds 7.6 MiB; it would fit with "
        r"config.accumulate=2 \(([\d.]+) MiB\); or config.batch_size=256 \(([\d.]+) MiB\)\n",
        errors,
    )
    whole, parts, half = map(float, found.groups())
    assert whole > 7.6
    assert 0.4 * whole < half < parts < 0.6 * whole
    assert "remat" not in errors
    assert not (workdir / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_folder_of_tiff_is_stored_smaller_and_other_files_are_named(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4):
            pixels = np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.tif")
    (tmp_path / "data" / "train" / "cat" / "5.heic").touch()
    for name in ("train/notes.txt", "train/dog/notes.txt", "val/dog/4.HEIC"):
        (tmp_path / "data" / name).touch()
    flags = arguments(
        tmp_path / "run", data__source=f"folder:{tmp_path / 'data'}", data__presize=6,
        data__preprocess="decode(channels=1)|resize(8)|value_range(-1,1)", batch_size=8,
        total_steps=2, schedule__warmup_steps=1, evaluators__test__split="val",
    )  # fmt: skip
    assert main(flags) == 0
    out = capsys.readouterr().out
    assert "; 8 examples, 2 steps\n" in out
    assert "\n3 files are not read as images: 2 .heic, 1 .txt\n" in out
    stored = out.index(f"presize: storing images of 6 pixels in {tmp_path}/vitlab/presized/6px-")
    assert stored < out.index("starting at step 0")


@pytest.mark.slow
def test_pmap_trains_evaluates_and_resumes_alike(unbroken, tmp_path):
    workdir = tmp_path / "pmap"
    settings = dict(parallelism__mode="pmap", checkpoint__keep=9)
    assert main(arguments(workdir, **settings)) == 0
    shutil.rmtree(checkpoints.list_checkpoints(workdir / "checkpoints")[-1].path)
    (workdir / "result.json").unlink()
    assert main(arguments(workdir)) == 0  # and a run may change the mode
    ours, theirs = records(workdir), records(unbroken)
    assert [r.keys() for r in ours] == [r.keys() for r in theirs]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-5)


@pytest.mark.slow
def test_a_damaged_last_checkpoint_falls_back(unbroken, tmp_path, capsys):
    workdir = tmp_path / "damaged"
    assert main(arguments(workdir)) == 0
    (workdir / "result.json").unlink()
    newest = checkpoints.list_checkpoints(workdir / "checkpoints")[-1].path
    files = [p for p in pathlib.Path(newest).rglob("*") if p.is_file()]
    file = max(files, key=lambda p: p.stat().st_size)
    file.write_bytes(file.read_bytes()[:-7])
    assert main(arguments(workdir)) == 0
    assert "checkpoint of step 8 is damaged" in capsys.readouterr().out
    assert result(workdir)["fingerprint"] == result(unbroken)["fingerprint"]


def test_sigterm_saves_and_exits_143(tmp_path):
    workdir = tmp_path / "stopped"
    process = subprocess.Popen(
        [sys.executable, "-m", "vitlab.main",
         *arguments(workdir, total_steps=100_000, evaluators__test__every_steps=50_000,
                    checkpoint__every_steps=50_000)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not journal.read(workdir / "metrics.jsonl") and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    saved = checkpoints.list_checkpoints(workdir / "checkpoints")
    assert len(saved) == 1
    assert f"step {saved[0].step} is saved" in errors
    logged = journal.read(workdir / "metrics.jsonl")[-1]["step"]
    assert 0 <= saved[0].step - logged < 3


def test_divergence_exits_3_and_keeps_the_last_good_checkpoint(tmp_path, capsys):
    workdir = tmp_path / "diverged"
    flags = arguments(
        workdir, optimizer__name="sgd", optimizer__weight_decay=0, optimizer__clip_norm=None,
        optimizer__lr=1e30, schedule__name="constant", schedule__warmup_steps=6,
        checkpoint__every_steps=1,
    )  # fmt: skip
    assert main([*flags, "--config.optimizer.clip_norm=None"]) == 3
    message = capsys.readouterr().err
    assert "was not finite at step" in message
    saved = checkpoints.list_checkpoints(workdir / "checkpoints")
    assert f"the checkpoint of step {saved[-1].step} is good" in message
    params = checkpoints.restore(saved[-1])["params"]
    assert np.isfinite(params["head"]["kernel"]).all()
    assert not (workdir / "result.json").exists()


def test_what_an_update_ruined_is_not_saved(tmp_path, capsys):
    """A gradient of exactly 0, as all have behind a head of zeros, over an eps of 0."""
    workdir = tmp_path / "ruined"
    assert main(arguments(workdir, optimizer__args="{'eps': 0.0}", checkpoint__every_steps=1)) == 3
    assert "made of finite gradients was not finite at step 1; none was saved" in (
        capsys.readouterr().err
    )
    assert not checkpoints.list_checkpoints(workdir / "checkpoints")


@pytest.mark.slow
def test_early_stopping_waits_for_its_patience(tmp_path, capsys):
    workdir = tmp_path / "early"
    flags = arguments(
        workdir, optimizer__lr=0.0, ema_decay=None, evaluators__test__every_steps=1,
        early_stopping__metric="test/nll", early_stopping__patience_steps=3,
    )  # fmt: skip
    assert main(flags) == 0
    assert "test/nll was best at step 1; stopping early" in capsys.readouterr().out
    first = result(workdir)
    assert first["step"] == 4
    (workdir / "result.json").unlink()  # as if killed while it drew the report
    assert main(flags) == 0
    assert (result(workdir)["step"], result(workdir)["metrics"]) == (4, first["metrics"])
    assert checkpoints.list_checkpoints(workdir / "checkpoints")[-1].step == 4


@pytest.mark.slow
def test_changed_data_are_not_resumed_on(tmp_path, capsys):
    """A class renamed, or a file deleted, between two starts of the same command."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{i}.png")
    flags = arguments(
        tmp_path / "w", data__source=f"folder:{tmp_path / 'data'}", total_steps=2,
        batch_size=8, evaluators__test__split="train", checkpoint__every_steps=1,
        schedule__warmup_steps=1,
    )  # fmt: skip
    assert main(flags) == 0
    (tmp_path / "w" / "result.json").unlink()
    (tmp_path / "data" / "cat").rename(tmp_path / "data" / "zebra")
    assert main(flags) == 2
    assert "changed since this run began: classes were 2 (cat, dog ...) and are 2 (dog, zebra" in (
        capsys.readouterr().err
    )
    (tmp_path / "data" / "zebra").rename(tmp_path / "data" / "cat")
    (tmp_path / "data" / "cat" / "0.png").unlink()
    assert main(flags) == 2
    assert "examples were 16 and are 15" in capsys.readouterr().err


@pytest.mark.slow
def test_a_full_disk_fails_the_final_save_only(tmp_path, capsys, monkeypatch):
    usage = checkpoints.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordFile, "append", full)
    monkeypatch.setattr(Evaluator, "draw", full)
    assert main(arguments(tmp_path / "full", total_steps=4, logging__tensorboard=True)) == 1
    out, err = capsys.readouterr()
    for file in ("metrics.jsonl", "tensorboard/events", "report"):
        assert len(re.findall(rf"full/{file}.*: No space left on device; training goes", out)) == 1
    assert "checkpoint of step 2 was not saved: needs 18.0 KiB of room" in out
    assert err == "vitlab: error: the final checkpoint, of step 4, could not be saved\n"


@pytest.mark.slow
def test_fine_tuning_from_a_working_directory(unbroken, tmp_path, capsys):
    workdir = tmp_path / "tuned"
    flags = arguments(workdir, init_from=unbroken, total_steps=2, model__num_classes=12)
    assert main(flags) == 2
    message = capsys.readouterr().err
    assert "head/kernel is (8, 10) there and (8, 12) here" in message
    flags = arguments(
        workdir, init_from=unbroken, total_steps=2, model__num_classes=12, optimizer__lr=0,
        optimizer__weight_decay=0, init_allow="['head/.*']",
    )  # fmt: skip
    assert main(flags) == 0
    assert "2 new: head/" in capsys.readouterr().out
    theirs = checkpoints.restore(checkpoints.locate(unbroken))["ema"]["params"]
    ours = checkpoints.restore(checkpoints.locate(workdir))["params"]
    np.testing.assert_array_equal(
        ours["encoder"]["block_0"]["mlp"]["fc1"]["kernel"],
        theirs["encoder"]["block_0"]["mlp"]["fc1"]["kernel"],
    )


OWN_MODEL = """
from typing import Any

import flax.linen as nn
import jax.numpy as jnp


class Plain(nn.Module):
    width: int = 8
    num_classes: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.gelu(nn.Conv(self.width, (2, 2), strides=2, dtype=self.dtype)(images)).mean((1, 2))
        return nn.Dense(self.num_classes, name="head")(x), {"pre_logits": x}
"""
OWN_CONFIG = """
import ml_collections


def get_config(arg=None):
    preprocess = "decode(channels=1)|value_range(-1,1)"
    return ml_collections.ConfigDict(dict(
        task="classification", model=dict(name="my_nets:Plain"), batch_size=32, total_steps=2,
        data=dict(source="digits", preprocess=preprocess), logging=dict(tensorboard=False),
        evaluators=dict(test=dict(split="test[:50]", preprocess=preprocess)),
    ))
"""


def test_a_model_of_ones_own_trains_and_is_used(tmp_path, monkeypatch, capsys):
    from vitlab.commands.cli import main as vitlab

    (tmp_path / "my_nets.py").write_text(OWN_MODEL)
    (tmp_path / "config.py").write_text(OWN_CONFIG)
    monkeypatch.syspath_prepend(tmp_path)
    run, digit = str(tmp_path / "run"), str(ROOT / "experiments/quickstart/digits/3.png")
    command = ["--config", str(tmp_path / "config.py"), "--workdir", run]
    assert main([*command, "--config.optimizer.layer_decay=0.5"]) == 2
    assert "layer_decay: this model has no layers to decay over" in capsys.readouterr().err
    assert main(command) == 0
    file = str(tmp_path / "plain.safetensors")
    assert vitlab(["export", run, "--format", "safetensors", "--unchecked", "--out", file]) == 0
    capsys.readouterr()
    rows = []
    for what in (run, file):
        assert vitlab(["predict", what, digit]) == 0
        rows.append(capsys.readouterr().out)
    assert rows[0] == rows[1] != ""
    # Where its module cannot be found, the line names it and does not doubt the run.
    monkeypatch.delitem(sys.modules, "my_nets")
    (tmp_path / "my_nets.py").unlink()
    for what in (run, file):
        assert vitlab(["predict", what, digit]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{what}: config.model.name: 'my_nets:Plain' cannot be imported" in line


def test_bad_input_is_one_line_and_exit_2(tmp_path, capsys):
    empty = tmp_path / "folder" / "train" / "cat"
    empty.mkdir(parents=True)
    cases = {
        "data.source=folder:/nowhere": "/nowhere",
        f"data.source=folder:{tmp_path / 'folder'}": "holds no image",
        "data.split=trian": "trian",
        "data.workers=-1": "workers is -1 but must be 0 or a number of processes",
        "data.presize=-1": "presize is -1 but must be 0 or a number of pixels",
        "data.preprocess=decode(channels=1)|resize(9)|value_range(-1,1)": "9",
        "data.preprocess=decode|rezise(8)|value_range(-1,1)": "rezise",
        "parallelism.mesh={'data': 3}": "mesh is data 3 x fsdp 1 x tensor 1, which are 3 devices",
        "model.num_classes=7": "model.num_classes is 7 but the data have 10 classes",
        "init_from=/nowhere": "/nowhere does not exist",
        "optimizer.lrr=1": "did you mean 'lr'?",
        "optimizer.lr=fast": "config.optimizer.lr is 'fast' but must be a number",
        "model.backbone={1: 8}": "config.model.backbone does not exist",
        "logging={1: 8}": "config.logging.1 does not exist",
        "model={[1]: 2}": "config.model is '{[1]: 2}' but must be a section of keys",
        "optimizer={{1}}": "config.optimizer must be a section of keys, not '{{1}}'",
        "model.widht=8": "config.model.widht does not exist; did you mean 'width'?",
        "augment.mixup=-1": "config.augment: mixup is -1",
        "checkpoint.best=test/acuracy": "did you mean 'test/accuracy'?",
        "evaluators.test.kind=knn": "config.evaluators.test.kind is 'knn'",
        "task=clasification": "did you mean 'classification'?",
        "batch_size=0": "batch_size is 0",
        "logging.wandb=project": "wandb needs the wandb extra",
        "logging.every_steps=0": "config.logging: every_steps is 0 but must be positive",
        "checkpoint.every_epochs=0": "config.checkpoint: every_epochs is 0",
        "evaluators.test.every_steps=0": "config.evaluators.test: every_steps is 0",
        "evaluators.test.preprocess=decode|grey_to_rgb|value_range(-1,1)": "do not fit the model",
        "evaluators.test.preprocess=decode|resize(9)|value_range(-1,1)": "9",
        "early_stopping.patience_steps=3": "patience does nothing without a metric",
        "early_stopping={'metric': 'test/nll', 'patience_steps': 0}": "patience_steps is 0",
        "evaluators.test.batch_size=-32": "config.evaluators.test: batch_size is -32",
        "evaluators={'train': {'split': 'test', 'preprocess': 'decode'}}": "evaluators.train: metr",
        "evaluators={'a/b': {'split': 'test', 'preprocess': 'decode'}}": "evaluators.a/b: metrics",
        "optimizer.rules=[{'pattern': '.*', 'lr': -1}]": "config.optimizer.rules[0]: lr is -1",
        "optimizer.name=prodigy": "prodigy divides by the learning rate of the first step",
        "total_steps=1e999": "config.total_steps is inf but must be finite",
        "augment.cutmix_share=0.9": "cutmix_share does nothing without both mixup and cutmix",
        "augment.color_jitter_prob=0.5": "color_jitter_prob does nothing without color_jitter",
        "profile=5:9": "config.profile is '5:9' but the run has 8 steps",
        "optimizer.layer_decay=2": "layer_decay is 2",
    }
    for override, message in cases.items():
        code = main([*arguments(tmp_path / "w"), f"--config.{override}"])
        error = capsys.readouterr().err
        assert (code, error.count("\n")) == (2, 1), (override, error)
        assert message in error, (override, error)
    for flag in ("--workdir", "--coordinator", "--config"):
        assert main([*arguments(tmp_path / "w"), f"{flag}="]) == 2
        assert f"argument {flag} needs a value, such as" in capsys.readouterr().err
    assert main([*arguments("gs://bucket/run")]) == 2
    assert "a working directory is a local folder" in capsys.readouterr().err
    assert main(["--confg", "x"]) == 2
    assert "did you mean '--config'?" in capsys.readouterr().err


def test_the_batch_must_be_divisible_by_the_devices(tmp_path):
    out = subprocess.run(
        [sys.executable, "-m", "vitlab.main", *arguments(tmp_path / "w", batch_size=20)],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
    )  # fmt: skip
    assert out.returncode == 2
    assert out.stderr == (
        "vitlab: error: config.batch_size is 20, which 8 devices do not divide; 16 would do\n"
    )
