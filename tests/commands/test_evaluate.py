"""`vitlab evaluate`: the whole split, on the run's data and others, as a page and as numbers."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from vitlab.commands.cli import main as vitlab
from vitlab.main import main

ROOT = pathlib.Path(__file__).parents[2]
NAME = """<b>&"run's"""
CLASSES = ("a<b", 'c&"d')


def write_images(folder, classes=CLASSES, count=5):
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return f"folder:{folder}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A classifier of two classes with three evaluators: of two parts of a split, and of all of it
    with other parameters."""
    folder = tmp_path_factory.mktemp("data") / "<i>&photos"
    for split in ("train", "val"):
        write_images(folder / split)
    preprocess = "decode(channels=1)|value_range(-1,1)"
    flags = {
        "data.source": f"folder:{folder}", "total_steps": 1, "batch_size": 4,
        "schedule.warmup_steps": 0, "logging.tensorboard": False, "model.width": 8,
        "model.depth": 1, "model.num_heads": 2, "optimizer.lr": 0.1,
        "evaluators.test.split": "val[:7]",
        "evaluators.twin": {"split": "val[7:]", "preprocess": preprocess},
        "evaluators.own": {"split": "val", "params": "model", "preprocess": preprocess},
    }  # fmt: skip
    workdir = tmp_path_factory.mktemp("run") / NAME
    command = ["--config", str(ROOT / "configs/quickstart.py"), "--workdir", str(workdir)]
    assert main([*command, *(f"--config.{key}={value}" for key, value in flags.items())]) == 0
    return workdir


def test_the_page_has_every_number_of_the_result_and_every_picture(run, read_page, capsys):
    assert vitlab(["evaluate", str(run)]) == 0
    assert f"report in {run}/evaluate/report/index.html" in capsys.readouterr().out
    out = run / "evaluate"
    result = json.loads((out / "result.json").read_text())
    trained = json.loads((run / "result.json").read_text())
    assert result["metrics"] == pytest.approx(trained["metrics"], abs=1e-6)
    assert result["images"] == {"test": 7, "twin": 3, "own": 10}
    assert result["broken"] == {"test": 0, "twin": 0, "own": 0}
    assert [each["params"] for each in result["evaluators"].values()] == ["ema", "ema", "model"]
    assert all(each["source"].startswith("folder:") for each in result["evaluators"].values())
    assert {"step", "seconds", "date", "precision", "versions", "devices"} <= set(result)

    page = read_page(out / "report" / "index.html")
    assert {float(value) for value in page.values} == set(result["metrics"].values())
    assert json.loads(page.texts["pre"][-1]) == result
    assert json.loads(page.texts["pre"][0]) == json.loads((run / "config.json").read_text())
    assert page.texts["h1"] == [NAME]
    assert page.texts["h2"] == ["Overview", "test", "twin", "own", "The run"]
    facts = dict(zip(page.texts["dt"], page.texts["dd"], strict=True))
    assert facts["Model"] == "vit, width 8, depth 1, num_heads 2, patch_size 2"
    assert {"Data", "Split", "Images", "Weights", "Preprocessing", "Precision"} <= set(facts)
    assert {"Confusion matrix", "Reliability diagram"} <= set(page.pictures)
    of_class = json.loads((out / "report/own/classes.json").read_text())
    assert list(of_class["accuracy"]) == list(CLASSES)
    mean = sum(of_class["accuracy"].values()) / 2
    assert mean == pytest.approx(result["metrics"]["own/mean_per_class_accuracy"])
    assert page.texts["caption"].count("Classes of own") == 1
    assert page.tags.count("img") == len(list((out / "report").glob("*/*.png")))
    assert not list(out.glob(".unfinished*"))
    assert (out / "report" / "index.html").stat().st_size < 1_000_000


def test_other_data_are_measured_whole_into_a_folder_of_their_own(run, tmp_path, capsys):
    there = set(run.rglob("*"))
    write_images(tmp_path / "split" / "val", count=6)
    source = f"folder:{tmp_path / 'split'}"
    out = tmp_path / "a" / "b"
    assert vitlab(["evaluate", str(run), "--data", source, "--out", str(out)]) == 0
    assert f"test: {source}, split val, 12 images" in capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    # All of the split, of which "test" and "twin" measure a part each: on other data they are one.
    assert result["images"] == {"test": 12, "own": 12}
    # What an earlier evaluation drew is gone; what is not vitlab's stays.
    with (out / ".vitlab-evaluate").open("a") as names:
        names.write('"report/test/old.png"\n')
    others = [out / name for name in ("report/notes.txt", "report/test/own.png", "outside.png")]
    for path in (out / "report/test/old.png", *others):
        path.write_text("")
    command = ["evaluate", str(run), "--out", str(out), "--split", "train[:3]"]
    assert vitlab([*command, "--batch_size", "2", "--json"]) == 0
    result = json.loads((out / "result.json").read_text())
    assert json.loads(capsys.readouterr().out) == result
    assert result["images"] == {"test": 3, "own": 3}
    assert not (out / "report/test/old.png").exists()
    assert all(path.exists() for path in others)
    assert (out / "report/test/confusion.png").exists()
    assert set(run.rglob("*")) == there


def test_a_checkpoint_is_measured_on_a_folder_without_splits(run, tmp_path):
    source = write_images(tmp_path / "photos")
    command = ["evaluate", str(run / "checkpoints/00000001"), f"--out={tmp_path / 'out'}"]
    assert vitlab([*command, "--data", source, "--split", "train[:50%]"]) == 0
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["images"] == {"test": 5, "own": 5}


def test_bad_input_is_one_line(run, tmp_path, capsys):
    flat = write_images(tmp_path / "flat")
    other = write_images(tmp_path / "other", ("cat", "dog"))
    (tmp_path / "file").write_text("")
    for folder, mine in (("a", "result.json"), ("b", "report/test/confusion.png")):
        (tmp_path / folder / mine).parent.mkdir(parents=True)
        (tmp_path / folder / mine).write_text("mine")
    for arguments, said in [
        ([str(tmp_path / "none")], "none does not exist\n"),
        ([str(run), "--source", flat], "--source does not exist"),
        ([str(run), "--data", flat], "; to evaluate on the split train, add "
         "--split train"),
        ([str(run), "--data", other, "--split", "train"],
         "its classes (cat, dog) are not the training data's (a<b, c&\"d)"),
        ([str(run), "--data", "folder:nowhere"], "folder nowhere does not exist\n"),
        ([str(run), "--out", str(tmp_path / "file")], "file cannot be written: Not a directory"),
        ([str(run), "--out", str(tmp_path / "file" / "x")], "Not a directory"),
        ([str(run), "--out", "/proc/x"], "--out /proc/x cannot be written"),
        ([str(run), "--out", str(run)], "is a working directory: name another folder"),
        ([str(run), "--out"], "--out needs a value"),
        ([str(run), "--out", str(tmp_path / "a")], "a/result.json is there and this command did"),
        ([str(run), "--out", str(tmp_path / "b")], "b/report/test/confusion.png is there and this"),
    ]:  # fmt: skip
        code = vitlab(["evaluate", *arguments])
        error = capsys.readouterr().err
        assert (code, error.count("\n")) == (2, 1), (arguments, error)
        assert said in error, (arguments, error)
    files = [path for folder in "ab" for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert [path.read_text() for path in files] == ["mine", "mine"]


def test_a_run_without_evaluators_or_of_another_model_is_refused(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "evaluators": {}}))
    assert vitlab(["evaluate", str(copy)]) == 2
    assert "has no evaluators in its config: name a protocol" in capsys.readouterr().err
    deeper = {**config, "model": {**config["model"], "depth": 2}}
    (copy / "config.json").write_text(json.dumps(deeper))
    assert vitlab(["evaluate", str(copy)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "is of another version of vitlab: its parameters are not those of the model" in error
