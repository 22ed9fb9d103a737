"""Segmenters through the commands: what they start from, leave behind, and refuse."""

import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from vitlab.commands.cli import main as vitlab
from vitlab.data import digit_scenes
from vitlab.data.sources import open_source
from vitlab.main import main
from vitlab.training.trained import load_trained
from vitlab.weights import transfer

ROOT = pathlib.Path(__file__).parents[1]
VIT = {"name": "vit", "width": 8, "depth": 1, "num_heads": 2, "patch_size": 8, "pool": "gap",
       "pos_embed": "sincos2d_mae"}  # fmt: skip
RUN = {"batch_size": 4, "total_steps": 1, "schedule.warmup_steps": 0,
       "logging.tensorboard": False, "model.backbone": VIT, "ema_decay": None}  # fmt: skip
SEGMENTER = {**RUN, "model.depth": 1, "model.num_heads": 2, "model.mlp_dim": 8}
MASK = "segmenter_digit_scenes.py:model=segmenter"
EOMT = {**RUN, "model.num_queries": 6, "model.num_blocks": 1}
COLOUR = "decode|resize(64)|grey_to_rgb|value_range(-1,1)"


@pytest.fixture(scope="module", autouse=True)
def scenes(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("scenes")))
    patch.setattr(digit_scenes, "_SCENES", {"train": 12, "test": 6})
    yield
    patch.undo()


def run(config, workdir, overrides):
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    config = config if ".py" in config else f"{config}.py"
    return main(["--config", str(ROOT / f"configs/{config}"), "--workdir", str(workdir), *flags])


def write_masks(folder, names=("paper", "ink"), largest=1):
    """Twelve images of 64 x 64 with a mask of ids up to `largest` each."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for i in range(12):
        pixels = rng.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        ids = np.kron(rng.integers(0, largest + 1, (4, 4)), np.ones((16, 16)))
        ids[0, 0] = largest
        Image.fromarray(ids.astype(np.uint8)).save(folder / "masks" / f"{i}.png")
    (folder / "classes.txt").write_text("\n".join(names))
    return f"masks:{folder}"


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    source = write_masks(tmp_path_factory.mktemp("own"))
    return {"data.source": source, "data.split": "train[:8]",
            "evaluators.test.split": "train[8:]"}  # fmt: skip


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """A segmenter of ten digits and the background."""
    workdir = tmp_path_factory.mktemp("run") / "digits"
    assert run(MASK, workdir, SEGMENTER) == 0
    return workdir


def test_a_directory_has_metrics_and_pictures(segmenter):
    metrics = json.loads((segmenter / "result.json").read_text())["metrics"]
    names = {"mIoU", "mIoU_present", "pixel_accuracy", "mean_accuracy", "boundary_F"}
    assert set(metrics) == {f"test/{name}" for name in names}
    for picture in ("curves", "test/segmentations", "test/classes", "test/confusion"):
        assert Image.open(segmenter / "report" / f"{picture}.png").width > 300
    assert load_trained(segmenter).classes == (*"0123456789", "background")


def test_a_directory_can_be_measured_again(segmenter, read_page):
    before = json.loads((segmenter / "result.json").read_text())["metrics"]
    assert vitlab(["evaluate", str(segmenter)]) == 0
    again = json.loads((segmenter / "evaluate/result.json").read_text())["metrics"]
    assert again == pytest.approx(before)
    page = read_page(segmenter / "evaluate/report/index.html")
    assert {float(value) for value in page.values} == set(again.values())
    assert list(page.pictures) == [
        "Segments beside the truth", "Confusion matrix", "IoU of each class",
        "F of each class's boundaries",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_directory_can_be_measured_on_another_split(segmenter):
    assert vitlab(["evaluate", str(segmenter), "--split", "train[:4]", "--batch_size", "2"]) == 0
    result = json.loads((segmenter / "evaluate/result.json").read_text())
    assert result["evaluators"]["test"]["split"] == "train[:4]"


@pytest.mark.slow
def test_one_head_has_all_three_kinds_of_metrics(tmp_path):
    assert run("eomt_digit_scenes", tmp_path / "run", EOMT) == 0
    metrics = json.loads((tmp_path / "run/result.json").read_text())["metrics"]
    names = {"mIoU", "boundary_F", "PQ", "SQ", "RQ", "PQ_things", "PQ_stuff", "AP", "AP50", "AR100"}
    assert {f"test/{name}" for name in names} <= set(metrics)
    found = json.loads((tmp_path / "run/report/test/instances.json").read_text())
    assert {"image_id", "category_id", "segmentation", "score"} == set(found[0])
    assert {row["category_id"] for row in found} <= set(range(1, 11))


@pytest.mark.slow
@pytest.mark.parametrize("config", ["segmenter", "eomt"])
def test_accumulation_equals_the_large_batch(config, tmp_path):
    """Without draws, which are of rows by their place in a part."""
    settings = {"segmenter": SEGMENTER, "eomt": {**EOMT, "model.masked_attention": False}}[config]
    losses = []
    for parts in (1, 2):
        workdir = tmp_path / str(parts)
        more = {"accumulate": parts, "total_steps": 2, "logging.every_steps": 1}
        name = {"segmenter": MASK, "eomt": "eomt_digit_scenes"}[config]
        assert run(name, workdir, {**settings, **more}) == 0
        rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        losses.append([row["train/loss"] for row in rows if "train/loss" in row])
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
def test_a_segmenter_for_other_classes_keeps_all_but_its_heads(segmenter, own, tmp_path, capsys):
    settings = {**SEGMENTER, **own, "init_from": segmenter, "optimizer.lr": 0.0}
    assert run(MASK, tmp_path / "own", settings) == 0
    left = re.search(r"left behind: (.*)", capsys.readouterr().out)[1]
    assert left == "class_embedding (1), mask_norm (2)"
    before, after = transfer.read(segmenter).variables, transfer.read(tmp_path / "own").variables
    for name, value in after.items():
        if name.startswith(("class_embedding", "mask_norm")):
            assert value.shape != before[name].shape
        else:
            np.testing.assert_array_equal(value, before[name])
    assert load_trained(tmp_path / "own").classes == ("paper", "ink")


@pytest.mark.slow
def test_segmenters_start_from_mae_simclr_and_a_classifier(tmp_path, capsys):
    pretrain = {
        "batch_size": 4, "total_steps": 1, "schedule.warmup_steps": 0, "logging.tensorboard": False,
        "data.split": "train[:8]", "evaluators.test.split": "test[:4]",
        "data.preprocess": COLOUR, "evaluators.test.preprocess": COLOUR,
    }  # fmt: skip
    features = {
        "evaluators.features.split": "test[:4]", "evaluators.features.preprocess": COLOUR,
        "evaluators.features.features.train_split": "train[:8]",
    }  # fmt: skip
    mae = {
        **pretrain, **features, "model.backbone": VIT, "model.decoder_width": 8,
        "model.decoder_heads": 1, "model.mask_ratio": 0.5,
    }  # fmt: skip
    assert run("mae_digits", tmp_path / "mae", mae) == 0
    simclr = {
        **pretrain, **features, "model.backbone": VIT, "model.projector_width": 8,
        "model.projector_dim": 4,
    }  # fmt: skip
    assert run("simclr_digits", tmp_path / "simclr", simclr) == 0
    assert run("finetune_digits", tmp_path / "classifier", {**pretrain, "model": VIT}) == 0
    left = {"mae": "decoder", "simclr": "projector", "classifier": "head (2)"}
    for start, config in (("mae", "eomt"), ("simclr", "segmenter"), ("classifier", "segmenter")):
        capsys.readouterr()
        name, sizes = ("eomt_digit_scenes", EOMT) if config == "eomt" else (MASK, SEGMENTER)
        settings = {**sizes, "init_from": tmp_path / start, "optimizer.lr": 0.0}
        assert run(name, tmp_path / f"from_{start}", settings) == 0
        assert f"left behind: {left[start]}" in capsys.readouterr().out
        before = transfer.read(tmp_path / start).variables
        after = transfer.read(tmp_path / f"from_{start}").variables
        backbone = [name for name in after if name.startswith("backbone/")]
        assert len(backbone) > 10
        for name in backbone:
            there = name.removeprefix("backbone/") if start == "classifier" else name
            np.testing.assert_array_equal(after[name], before[there])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"data.source": "digits"}, "config.data.source has no masks"),
        ({"data.preprocess": "decode|value_range(-1,1)"}, "config.data.preprocess has no semantic"),
        ({"data.preprocess": "decode|inception_crop(32)|semantic|value_range(-1,1)"},
         "preprocess column 8: inception_crop cannot move segments: beside semantic use flip_lr"),
        ({"model.name": "segmentor"},
         "config.model.name: no model 'segmentor'; did you mean 'segmenter'"),
        ({"model.decoder": "conv"}, "config.model.decoder is 'conv'"),
        ({"loss.hard_pixels": 0.0}, "config.loss: hard_pixels is 0.0"),
        ({"loss.class_weights": "(1.0,2.0)"}, "class_weights has 2 numbers for 11 classes"),
        ({"checkpoint.best": "test/mIuO"}, "no evaluator computes 'test/mIuO'; did you mean"),
        ({"evaluators.test.kind": "semantic"}, "this task offers segmentation, features"),
        ({"evaluators.test.preprocess": "decode|value_range(-1,1)"},
         "has neither semantic nor pad_segments"),
    ],
)  # fmt: skip
def test_a_users_mistake_is_one_line(overrides, said, tmp_path, capsys):
    assert run(MASK, tmp_path / "run", {**SEGMENTER, **overrides}) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_more_segments_than_queries_and_a_mask_beyond_the_classes_are_one_line(tmp_path, capsys):
    assert run("eomt_digit_scenes", tmp_path / "run", {**EOMT, "model.num_queries": 5}) == 2
    assert "6 targets cannot each be matched with one of 5 queries" in capsys.readouterr().err
    source = write_masks(tmp_path / "wrong", largest=2)
    wrong = {**SEGMENTER, "data.source": source, "evaluators": "{}"}
    assert run(MASK, tmp_path / "wrong_run", wrong) == 2
    assert re.search(r"masks/\d+.png.* 2", capsys.readouterr().err)


def test_masks_of_0_and_255_are_refused_where_255_is_void(tmp_path, capsys):
    source = write_masks(tmp_path / "own")
    for path in (tmp_path / "own/masks").glob("*.png"):
        Image.fromarray(np.asarray(Image.open(path)) * np.uint8(255)).save(path)
    settings = {**SEGMENTER, "data.source": source, "evaluators": "{}"}
    assert run(MASK, tmp_path / "run", settings) == 2
    assert "the first masks have no class but paper, and the id 255" in capsys.readouterr().err


@pytest.mark.slow
def test_a_broken_mask_is_skipped_in_training_and_in_evaluation(tmp_path, capsys):
    """Also where it is a batch by itself, the first one of all."""
    source = write_masks(tmp_path / "own")
    wrong = sorted((tmp_path / "own/masks").glob("*.png"))
    settings = {
        **SEGMENTER, "data.source": source, "data.on_error": "skip", "data.split": "train[:8]",
        "evaluators.test.split": "train[8:]", "evaluators.test.on_error": "skip",
        "evaluators.test.batch_size": 1,
    }  # fmt: skip
    first = open_source(source, "train[8:]").describe(0)
    mask = next(path for path in wrong if path.stem == pathlib.Path(first).stem)
    Image.fromarray(np.full((64, 64), 9, np.uint8)).save(mask)
    assert run(MASK, tmp_path / "run", settings) == 0
    said = capsys.readouterr().out
    assert re.search(r"test: 1 of 4 images are broken: .*ids that are of no class", said)


def test_an_evaluation_that_cuts_the_image_is_refused(tmp_path, capsys):
    settings = {**SEGMENTER, "evaluators.test.preprocess":
                "decode|segment_crop(32)|semantic|value_range(-1,1)"}  # fmt: skip
    assert run(MASK, tmp_path / "run", settings) == 2
    assert "cuts off a part of the image: use resize, letterbox or pad" in capsys.readouterr().err
