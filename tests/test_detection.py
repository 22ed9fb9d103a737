"""Detectors through the commands: what they start from, leave behind, and refuse."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

from vitlab.commands.cli import main as vitlab
from vitlab.data import digit_scenes
from vitlab.main import main
from vitlab.training.trained import load_trained
from vitlab.weights import transfer

ROOT = pathlib.Path(__file__).parents[1]
VIT = {"name": "vit", "width": 8, "depth": 1, "num_heads": 2, "patch_size": 8, "pool": "gap",
       "pos_embed": "sincos2d_mae"}  # fmt: skip
DETECTOR = {
    "batch_size": 4, "total_steps": 1, "schedule.warmup_steps": 0, "logging.tensorboard": False,
    "model.backbone": VIT, "model.width": 8, "model.num_heads": 2, "model.mlp_dim": 8,
    "model.decoder_layers": 1, "model.denoising": 1, "ema_decay": None,
}  # fmt: skip
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
    return main(["--config", str(ROOT / f"configs/{config}.py"), "--workdir", str(workdir), *flags])


def write_coco(folder, names=("even", "odd"), objects=2, ids=(3, 7)):
    """Twelve images of 64 x 64 with boxes of two classes."""
    (folder / "photos").mkdir(parents=True)
    rng, images, boxes = np.random.default_rng(0), [], []
    for i in range(12):
        pixels = rng.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 64})
        for j in range(objects):
            box = [5 * j, 8, 20, 30]
            boxes.append({"id": len(boxes), "image_id": i, "category_id": ids[j % 2], "bbox": box})
    categories = [{"id": ids[0], "name": names[0]}, {"id": ids[1], "name": names[1]}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "boxes.json").write_text(json.dumps(content))
    return f"coco:{folder}/boxes.json?images={folder}/photos"


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    source = write_coco(tmp_path_factory.mktemp("own"))
    return {"data.source": source, "data.split": "train[:8]",
            "evaluators.test.split": "train[8:]"}  # fmt: skip


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A detector of ten digits."""
    workdir = tmp_path_factory.mktemp("run") / "digits"
    assert run("detr_digit_scenes", workdir, DETECTOR) == 0
    return workdir


@pytest.mark.slow
def test_a_directory_has_metrics_pictures_and_detections(detector):
    metrics = json.loads((detector / "result.json").read_text())["metrics"]
    assert {"test/AP", "test/AP50", "test/AP75", "test/VOC_AP", "test/VOC07_AP"} <= set(metrics)
    for picture in ("curves", "test/detections", "test/precision_recall", "test/confusion"):
        assert Image.open(detector / "report" / f"{picture}.png").width > 300
    found = json.loads((detector / "report/test/detections.json").read_text())
    assert {"image_id", "category_id", "bbox", "score"} == set(found[0])
    assert {row["category_id"] for row in found} <= set(range(1, 11))


@pytest.mark.slow
def test_a_directory_can_be_measured_again(detector, read_page):
    before = json.loads((detector / "result.json").read_text())["metrics"]
    assert vitlab(["evaluate", str(detector)]) == 0
    again = json.loads((detector / "evaluate/result.json").read_text())["metrics"]
    assert again == pytest.approx(before)
    page = read_page(detector / "evaluate/report/index.html")
    assert {float(value) for value in page.values} == set(again.values())
    assert {"Detections beside the truth", "AP of each class"} <= set(page.pictures)
    assert "test/detections.json" in page.texts["code"]


@pytest.mark.slow
def test_a_directory_can_be_measured_on_other_data_of_the_same_classes(detector):
    assert vitlab(["evaluate", str(detector), "--split", "train[:4]", "--batch_size", "2"]) == 0
    result = json.loads((detector / "evaluate/result.json").read_text())
    assert result["evaluators"]["test"]["split"] == "train[:4]"
    found = json.loads((detector / "evaluate/report/test/detections.json").read_text())
    assert len({row["image_id"] for row in found}) == 4


@pytest.mark.slow
def test_boxes_are_no_labels(detector, capsys):
    assert vitlab(["evaluate", str(detector), "knn", "--train_split", "train"]) == 2
    said = "protocols judge features with labels; the source has none"
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_features_of_a_detector_are_watched_without_labels(tmp_path):
    """Whatever the pool of its ViT, which it has no need of."""
    section = dict(kind="features", split="test", preprocess="decode|value_range(-1,1)",
                   features=dict(protocols=()))  # fmt: skip
    settings = {**DETECTOR, "model.backbone": {**VIT, "pool": "map"}, "evaluators.f": section}
    assert run("detr_digit_scenes", tmp_path / "run", settings) == 0
    metrics = json.loads((tmp_path / "run/result.json").read_text())["metrics"]
    assert metrics["f/feature_std"] > 0


@pytest.mark.slow
def test_accumulation_equals_the_large_batch(tmp_path):
    """With noisy copies, boxes on one half alone, and batch norm that is frozen."""
    backbone = {"name": "resnet", "variant": "18", "depths": (1,), "widths": (4,),
                "norm": "frozen"}  # fmt: skip
    settings = {**DETECTOR, "model.backbone": backbone, "total_steps": 2, "logging.every_steps": 1}
    losses = []
    for parts in (1, 2):
        workdir = tmp_path / str(parts)
        assert run("detr_digit_scenes", workdir, {**settings, "accumulate": parts}) == 0
        rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        losses.append([row["train/loss"] for row in rows if "train/loss" in row])
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
def test_a_metric_of_sizes_that_the_first_image_lacks_is_no_mistake(tmp_path):
    settings = {**DETECTOR, "checkpoint.best": "test/AP_large"}
    assert run("detr_digit_scenes", tmp_path / "run", settings) == 0


@pytest.mark.slow
def test_the_recipe_on_a_vit_takes_all_of_the_mae_it_names():
    from vitlab import config as config_lib
    from vitlab.tasks.task import task_class

    def parameters(name, **overrides):
        pairs = [(key, str(value)) for key, value in overrides.items()]
        config = config_lib.load(str(ROOT / f"configs/{name}.py"), pairs)
        task = task_class(config["task"]).from_config(
            config["model"], config.get("loss", {}), {}, ("a", "b"), "float32"
        )
        shapes = jax.eval_shape(lambda: task.init(jax.random.key(0), jnp.zeros((1, 320, 320, 3))))
        flat = flatten_dict(shapes["params"], sep="/")
        return {name: np.broadcast_to(np.float32(0), x.shape) for name, x in flat.items()}

    mae = parameters("mae_b16_imagenet", **{"model.backbone.variant": "S/16"})
    _, report = transfer.transfer(parameters("detr_vit_s16_coco"), mae)
    backbone = [name for name in mae if name.startswith("backbone/")]
    assert set(report.loaded) == set(backbone)
    assert not report.unused


@pytest.mark.slow
def test_a_detector_for_other_classes_keeps_all_but_its_heads(detector, own, tmp_path, capsys):
    settings = {**DETECTOR, **own, "init_from": detector, "optimizer.lr": 0.0}
    assert run("detr_digit_scenes", tmp_path / "own", settings) == 0
    left = re.search(r"left behind: (.*)", capsys.readouterr().out)[1]
    assert left == "decoder (2), label_embedding (1), proposal_heads_0 (2)"
    before, after = transfer.read(detector).variables, transfer.read(tmp_path / "own").variables
    heads = re.compile(r"(decoder/heads|proposal_heads_0)/class/.*|label_embedding/.*")
    for name, value in after.items():
        if heads.fullmatch(name):
            assert value.shape != before[name].shape
        else:
            np.testing.assert_array_equal(value, before[name])
    trained = load_trained(tmp_path / "own")
    assert trained.classes == ("even", "odd")
    assert trained.category_ids == (3, 7)
    found = json.loads((tmp_path / "own/report/test/detections.json").read_text())
    assert {row["category_id"] for row in found} <= {3, 7}


@pytest.mark.slow
def test_as_many_classes_with_other_names_are_other_classes(own, tmp_path, capsys):
    """Heads of the same shape would otherwise go over unnoticed."""
    assert run("detr_digit_scenes", tmp_path / "one", {**DETECTOR, **own}) == 0
    other = {**own, "data.source": write_coco(tmp_path / "other", names=("cat", "dog"))}
    start = {"init_from": tmp_path / "one"}
    assert run("detr_digit_scenes", tmp_path / "two", {**DETECTOR, **other, **start}) == 0
    assert "5 left behind: decoder (2), label_embedding (1)" in capsys.readouterr().out
    assert run("detr_digit_scenes", tmp_path / "same", {**DETECTOR, **own, **start}) == 0
    out = capsys.readouterr().out
    assert "parameters loaded" in out
    assert "left behind" not in out
    assert " new" not in out.partition("parameters loaded")[2].partition("\n")[0]


@pytest.mark.slow
def test_a_detector_starts_from_a_mae_and_from_a_classifier(tmp_path, capsys):
    pretrain = {
        "batch_size": 4, "total_steps": 1, "schedule.warmup_steps": 0, "logging.tensorboard": False,
        "data.split": "train[:8]", "evaluators.test.split": "test[:4]",
        "data.preprocess": COLOUR, "evaluators.test.preprocess": COLOUR,
    }  # fmt: skip
    mae = {
        **pretrain, "model.backbone": VIT, "model.decoder_width": 8, "model.decoder_heads": 1,
        "model.mask_ratio": 0.5, "evaluators.features.split": "test[:4]",
        "evaluators.features.preprocess": COLOUR,
        "evaluators.features.features.train_split": "train[:8]",
    }  # fmt: skip
    assert run("mae_digits", tmp_path / "mae", mae) == 0
    classifier = {**pretrain, "model": VIT}
    assert run("finetune_digits", tmp_path / "classifier", classifier) == 0
    for start in ("mae", "classifier"):
        capsys.readouterr()
        settings = {**DETECTOR, "init_from": tmp_path / start, "optimizer.lr": 0.0}
        assert run("detr_digit_scenes", tmp_path / f"from_{start}", settings) == 0
        out = capsys.readouterr().out
        assert "left behind: " + {"mae": "decoder", "classifier": "head (2)"}[start] in out
        before = transfer.read(tmp_path / start).variables
        after = transfer.read(tmp_path / f"from_{start}").variables
        backbone = [name for name in after if name.startswith("backbone/")]
        assert len(backbone) > 10
        for name in backbone:
            there = name if start == "mae" else name.removeprefix("backbone/")
            np.testing.assert_array_equal(after[name], before[there])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"data.source": "digits"}, "digits test[0]: pad_boxes: the source has no boxes"),
        ({"data.preprocess": "decode|value_range(-1,1)"},
         "config.data.preprocess has no pad_boxes"),
        ({"data.preprocess": "decode|inception_crop(32)|pad_boxes(5)|value_range(-1,1)"},
         "preprocess column 8: inception_crop cannot move boxes: beside pad_boxes use flip_lr"),
        ({"data.presize": 32}, "config.data.presize is for images alone: boxes and masks"),
        ({"model.num_queries": 4}, "5 targets cannot each be matched with one of 4 queries"),
        ({"model.num_queries": 65}, "num_queries is 65 but the feature map has only 64 cells"),
        ({"model.name": "dter"}, "config.model.name: no model 'dter'; did you mean 'detr'"),
        ({"model.name": "vit"}, "config.model.name: no model 'vit'"),
        ({"loss.classification": "hinge"}, "config.loss.classification"),
        ({"loss.l1_weight": -1.0}, "config.loss: l1_weight is -1.0: it cannot be negative"),
        ({"task": "classification"}, "config.model.name: no model 'plain_detr'"),
        ({"checkpoint.best": "test/AP60"}, "no evaluator computes 'test/AP60'"),
        ({"evaluators.test.kind": "detectoin"}, "this task offers detection, features"),
    ],
)  # fmt: skip
def test_a_users_mistake_is_one_line(overrides, said, tmp_path, capsys):
    assert run("detr_digit_scenes", tmp_path / "run", {**DETECTOR, **overrides}) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_other_classes_in_the_evaluation_are_refused(own, tmp_path, capsys):
    other = write_coco(tmp_path / "other", names=("cat", "dog"))
    settings = {**DETECTOR, **own, "evaluators.test.source": other}
    assert run("detr_digit_scenes", tmp_path / "run", settings) == 2
    assert "its classes (cat, dog) are not the training data's (even, odd)" in (
        capsys.readouterr().err
    )


def test_more_objects_than_places_are_told_before_training(tmp_path, capsys):
    source = write_coco(tmp_path / "many", objects=6)
    settings = {**DETECTOR, "data.source": source, "data.on_error": "skip", "evaluators": "{}"}
    assert run("detr_digit_scenes", tmp_path / "run", settings) == 2
    said = "config.data.preprocess: pad_boxes(5), but an image has up to 6 of them: pad_boxes(6)"
    assert said in capsys.readouterr().err
