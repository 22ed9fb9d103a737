"""`vitlab predict`: files, pictures, broken images, and what goes wrong."""

import json

import jax
import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

import vitlab
from tests.deploy.models import CLASSES, MODELS, make, write_run
from vitlab.commands.cli import main
from vitlab.deploy.model import save_model


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {task: write_run(root / task, make(task)) for task in MODELS}


@pytest.fixture
def photos(tmp_path):
    """Images of several sizes and modes in folders, and a file that is none."""
    y, x = np.mgrid[:50, :70]
    pixels = np.stack([x * 3, y * 5, (x + y) % 256], -1).astype(np.uint8)
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    Image.fromarray(pixels).save(folder / "a.png")
    Image.fromarray(pixels[:30]).convert("L").save(folder / "deep" / "b.jpg")
    Image.fromarray(pixels[:, :20]).convert("RGBA").save(folder / "deep" / "a.webp")
    return folder


def rows(out):
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("task", MODELS)
def test_every_task_writes_rows_and_pictures(runs, photos, tmp_path, task, capsys):
    out = tmp_path / "out"
    command = ["predict", runs[task], str(photos), "--out", str(out), "--min_score", "0"]
    assert main([*command, "--json"]) == 0
    # JSON lines are what the file has.
    assert capsys.readouterr().out == (out / "predictions.jsonl").read_text()
    files = {row["file"]: row["image_id"] for row in rows(out)}
    names = ["a", "deep/a", "deep/b"]
    expected = [f"{photos}/{name}" for name in ("a.png", "deep/a.webp", "deep/b.jpg")]
    assert files == dict(zip(expected, (1, 2, 3), strict=True))
    for name in names:
        picture = Image.open(out / "pictures" / f"{name}.jpg")
        assert min(picture.size) >= 300  # small ones enlarged
        assert np.asarray(picture).std() > 10
    found = vitlab.load(runs[task]).predict(photos / "a.png")
    first = [row for row in rows(out) if row["image_id"] == 1]
    if task == "classification":
        assert [row["classes"][0]["name"] for row in first] == [found.name]
        assert sum(c["probability"] for c in first[0]["classes"]) == pytest.approx(1, abs=1e-4)
        return
    ids = dict(zip(CLASSES, (7, 8, 12), strict=True))
    assert all(row["category_id"] == ids[row["category"]] for row in first)
    assert all(len(row["bbox"]) == 4 for row in first)
    if task == "detection":
        x0, y0, x1, y1 = found.boxes[0]
        np.testing.assert_allclose(first[0]["bbox"], [x0, y0, x1 - x0, y1 - y0], atol=0.1)
        return
    for row in first:
        assert coco_mask.decode(row["segmentation"]).shape == (50, 70)
    mask = np.asarray(Image.open(out / "masks" / "a.png")).astype(int)
    np.testing.assert_array_equal(np.where(mask == 255, -1, mask), found.labels)
    if task == "segmentation":
        assert sum(row["area"] for row in first) == 50 * 70


def test_numbers_as_names_are_image_ids(runs, photos, tmp_path):
    for number, name in enumerate(["000000000139.png", "42.png"]):
        Image.new("RGB", (40, 40), (90 * number, 1, 2)).save(tmp_path / name)
    out = tmp_path / "out"
    pattern = str(tmp_path / "*.png")
    assert main(["predict", runs["classification"], pattern, f"--out={out}"]) == 0
    assert [row["image_id"] for row in rows(out)] == [139, 42]


def test_behind_two_dashes_a_name_may_begin_with_one(runs, photos, capsys, monkeypatch):
    monkeypatch.chdir(photos)
    (photos / "a.png").rename("-h")
    assert main(["predict", runs["classification"], "--", "-h"]) == 0
    assert capsys.readouterr().out.startswith("-h: ")


def test_without_a_folder_there_are_lines(runs, photos, capsys):
    command = ["predict", runs["classification"], str(photos / "a.png"), "--tta", "flip"]
    assert main(command) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1
    assert out[0].startswith(f"{photos}/a.png: ")
    assert "%" in out[0]


def test_broken_images_are_told_and_the_others_are_done(runs, photos, tmp_path, capsys):
    (photos / "text.jpg").write_text("no image")
    (photos / "cut.png").write_bytes((photos / "a.png").read_bytes()[:90])
    out = tmp_path / "out"
    assert main(["predict", runs["detection"], str(photos), "--out", str(out)]) == 1
    said = capsys.readouterr()
    errors = said.err.splitlines()
    assert [line for line in errors if "text.jpg" in line] == [
        f"vitlab: broken: {photos}/text.jpg: the image (8 bytes) is not a JPEG, PNG, WebP, BMP, "
        "GIF, TIFF or PPM"
    ]
    assert any("cut.png" in line and "damaged or cut short" in line for line in errors)
    assert errors[-1] == "vitlab: 2 of 5 images are broken"
    assert len(list((out / "pictures").rglob("*.jpg"))) == 3


def test_a_safetensors_file_predicts_as_its_run(runs, photos, tmp_path):
    path = tmp_path / "model.bin"  # whatever it is called
    save_model(make("classification"), path)
    a, b = (vitlab.load(each).predict(photos / "a.png") for each in (runs["classification"], path))
    np.testing.assert_array_equal(a.probabilities, b.probabilities)
    assert main(["predict", str(path), str(photos / "a.png")]) == 0


def test_what_goes_wrong_is_one_line(runs, photos, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    cases = [
        ([runs["detection"]], "needs IMAGE, such as vitlab predict runs"),
        ([runs["detection"], str(tmp_path / "empty")], "holds no image"),
        ([runs["detection"], "nothing.jpg"], "nothing.jpg does not exist"),
        ([str(tmp_path / "empty"), str(photos), "--out", str(tmp_path / "new")], "empty"),
        ([str(photos / "a.png"), str(photos)], "a.png is no safetensors, npz or PyTorch file"),
        ([runs["detection"], str(photos), "--tta", "rotate"], "--tta is 'rotate' but must be flip"),
        ([runs["universal_segmentation"], str(photos), "--tta", "flip"], "two views of an image"),
        ([runs["detection"], str(photos), "--batch_size", "0"], "must be a whole number from 1 on"),
        ([runs["detection"], str(photos), "--max_pixels", "many"], "must be a whole number"),
        ([runs["detection"], str(photos), "--preprocess", "decode|blur"], 'no op "blur"'),
        ([runs["detection"], str(photos), "--out", runs["detection"]], "is a working directory"),
        ([runs["detection"], str(photos), "--scores", "1"], "--scores does not exist"),
    ]
    for arguments, line in cases:
        assert main(["predict", *arguments]) == 2, arguments
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1, said
        assert line in said[0]
    assert not (tmp_path / "new").exists()


def test_a_run_without_an_evaluator_of_its_task_needs_a_preprocessing(photos, tmp_path, capsys):
    run = write_run(tmp_path / "run", make("classification"), evaluator="features")
    assert main(["predict", run, str(photos)]) == 2
    assert "no evaluator of its task" in capsys.readouterr().err
    resize = "decode|resize(32)|value_range(-1,1)"
    assert main(["predict", run, str(photos), "--preprocess", resize]) == 0


def test_a_very_wide_image_and_names_alike(runs, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    Image.new("RGB", (70_000, 40)).save(folder / "wide.png")
    for name in ("a.jpg", "a.png", "a.jpg.png"):
        Image.new("RGB", (40, 40)).save(folder / name)
    out = tmp_path / "out"
    assert main(["predict", runs["detection"], str(folder), "--out", str(out)]) == 0
    assert sorted(path.name for path in (out / "pictures").iterdir()) == [
        "a.jpg.jpg", "a.jpg.png.jpg", "a.png.jpg", "wide.png.jpg",
    ]  # fmt: skip


def test_a_command_that_fails_leaves_earlier_predictions(runs, photos, tmp_path):
    out = tmp_path / "out"
    command = ["predict", runs["universal_segmentation"], str(photos), "--out", str(out)]
    assert main(command) == 0
    before = (out / "predictions.jsonl").read_text()
    assert before
    assert main([*command, "--tta", "flip"]) == 2
    assert not list(out.glob(".unfinished*"))
    assert (out / "predictions.jsonl").read_text() == before


def test_files_that_are_not_of_predictions_stay(runs, photos, tmp_path, capsys):
    """Such as the images themselves, or the masks that they are annotated with."""
    (tmp_path / "masks/deep").mkdir(parents=True)
    mask = tmp_path / "masks/deep/b.png"
    Image.new("L", (70, 30)).save(mask)
    before = mask.read_bytes()
    command = ["predict", runs["segmentation"], str(photos), "--out", str(tmp_path)]
    assert main(command) == 2
    assert capsys.readouterr().err == (
        f"vitlab: error: {mask} is there and this command did not write it: take another --out\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks", "photos"]
    assert mask.read_bytes() == before
    # A class has no mask to write; and its own files are replaced.
    command[1] = runs["classification"]
    for _ in range(2):
        assert main(command) == 0
        assert Image.open(tmp_path / "pictures/a.jpg").size
        (tmp_path / "pictures/a.jpg").write_text("")


def test_the_parameters_are_those_of_the_evaluator(photos, tmp_path):
    """Of the moving average, unless the evaluator says otherwise; also with another string."""
    model = make("classification")
    zeros = jax.tree.map(np.zeros_like, model.variables)
    found = {}
    for params in ("auto", "model"):
        run = write_run(tmp_path / params, model, ema=zeros, params=params)
        for string in ("", model.preprocess):
            prediction = vitlab.load(run, string).predict(photos / "a.png")
            found[params, bool(string)] = prediction.probabilities
    np.testing.assert_allclose(found["auto", False], 1 / 3, atol=1e-6)
    np.testing.assert_array_equal(found["auto", True], found["auto", False])
    np.testing.assert_array_equal(found["model", True], found["model", False])
    assert np.abs(found["model", False] - 1 / 3).max() > 0.01
