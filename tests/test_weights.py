"""Published weights as the start of a training: `config.init_from`."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest
from PIL import Image

from tests.deploy.models import make, write_run
from tests.test_detection import write_coco
from tests.weights import reference as ref
from vitlab import config as config_lib
from vitlab.data import digit_scenes
from vitlab.data.preprocess import STATISTICS
from vitlab.errors import InputError
from vitlab.main import main
from vitlab.models.resnet import ResNet
from vitlab.models.vit import ViT
from vitlab.training.setup import Setup
from vitlab.weights import load, save, transfer
from vitlab.weights.filling import names_of

ROOT = pathlib.Path(__file__).parents[1]
PIXELS = "decode|resize(24)|value_range(-1,1)"
VIT = {"name": "vit", "patch_size": 8, "width": 24, "depth": 2, "mlp_dim": 48, "num_heads": 3}
# Of the fixture `detr`.
DETR = {
    "name": "detr", "num_queries": 7, "width": 32, "num_heads": 4, "mlp_dim": 48,
    "encoder_layers": 2, "decoder_layers": 3, "mask_backbone": False,
    "backbone": dict(name="resnet", depths=(1, 2, 1, 1), widths=(4, 8, 8, 12), norm="frozen"),
}  # fmt: skip
COMMON = {
    "batch_size": 2, "total_steps": 1, "schedule.warmup_steps": 0, "logging.tensorboard": False,
    "data.preprocess": PIXELS, "data.workers": 0, "evaluators.val.preprocess": PIXELS,
    "augment": {}, "optimizer.lr": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "photos"
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in "abcdefg":
            path = folder / split / label / "1.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8)).save(path)
    return folder


@pytest.fixture
def published(tmp_path):
    def write(name, npz=False):
        path = ref.write(tmp_path / name, ref.reference(name), npz)
        return path if npz else path.parent

    return write


def flags(settings):
    return [(key, str(value)) for key, value in settings.items()]


def started(spec, settings):
    """Parameters at step 0, new ones zero, and what was said of them."""
    said = []
    setup = Setup(config_lib.load(str(ROOT / f"configs/{spec}"), flags(settings)))
    setup.read_initial()
    fresh = {"params": setup.target.params, **setup.target.model_state}
    fresh = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), fresh)
    return names_of(setup.initial.filled(fresh, said.append)), "\n".join(said)


def assert_same(ours, theirs, names):
    assert names
    for name in names:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_a_classifier_takes_all_of_a_published_one_for_as_many_classes(photos, published):
    path = published("weights_hf_vit")
    settings = {**COMMON, "model": {**VIT, "norm_eps": 1e-12}, "init_from": path}
    params, said = started(f"image_folder.py:path={photos}", settings)
    assert_same(params, names_of(load(path).variables), list(params))
    assert said == f"init_from {path}: 40 keys used\n41 parameters loaded"


def test_other_classes_get_a_new_head(photos, published):
    path = published("weights_timm_fc_norm")
    more = {"pool": "gap", "class_token": True, "norm_after_pool": True, "num_classes": 9}
    settings = {**COMMON, "model": {**VIT, **more}, "init_from": path}
    params, said = started(f"image_folder.py:path={photos}", settings)
    theirs = names_of(load(path).variables)
    assert_same(params, theirs, [n for n in params if not n.startswith(("head/", "position"))])
    assert "2 left behind: head (2)" in said
    assert "2 new: head/" in said
    # Its table of 2 x 3 patches, resized as timm does for images of 24 x 24.
    assert "1 resized: pos_embed" in said
    other = names_of(load(path, image_size=24).variables)
    assert_same(params, other, ["position_embedding/table"])


def test_a_backbone_without_a_head(photos, published):
    path = published("weights_dinov2")
    settings = {
        **COMMON, "model": {**VIT, "layer_scale": 1e-5}, "init_from": path,
        "init_hints": {"num_heads": 3},
    }  # fmt: skip
    params, said = started(f"image_folder.py:path={photos}", settings)
    theirs = names_of(load(path, num_heads=3).variables)
    assert_same(params, theirs, [name for name in params if not name.startswith("head/")])
    assert "1 unused, of the pretraining: mask_token" in said
    assert "2 new: head/" in said


def with_config(path, name, **more):
    """The published folder, whose json file says more."""
    file = path / f"{name}.json"
    file.write_text(json.dumps({**(json.loads(file.read_text()) if file.exists() else {}), **more}))


@pytest.mark.parametrize(
    ("names", "said", "rows"),
    [
        ("gfedcba", "classes by their names, 7 of 7", [6, 5, 4, 3, 2, 1, 0]),
        ("abcdefg", "", range(7)),
        ("tuvwxyz", "classes by their order: 't' there is 'a' here, and so on", range(7)),
        ("abcdefz", "2 new: head/bias, head/kernel", None),
        ("aabcdef", "2 new: head/bias, head/kernel", None),  # no 'g', and 'a' is there twice
    ],
)
def test_classes_go_by_their_names(photos, published, names, said, rows):
    path = published("weights_hf_vit")
    with_config(path, "config", id2label=dict(enumerate(names)))
    settings = {**COMMON, "model": {**VIT, "norm_eps": 1e-12}, "init_from": path}
    params, lines = started(f"image_folder.py:path={photos}", settings)
    theirs = names_of(load(path).variables)
    for name in ("head/kernel", "head/bias"):
        expected = np.zeros_like(params[name]) if rows is None else theirs[name][..., list(rows)]
        np.testing.assert_array_equal(params[name], expected)
    assert said in lines
    assert ("classes by" in lines) == said.startswith("classes by")


@pytest.mark.parametrize("named", [True, False])
def test_a_detector_takes_its_classes_from_a_published_one(published, tmp_path, named):
    """Of five and "no object" the two of a COCO file; without names by the numbers there."""
    path = published("detr")
    if named:
        with_config(path, "config", id2label=dict(enumerate(["N/A", "odd", "N/A", "x", "even"])))
        assert load(path, num_heads=4).classes == ("N/A", "odd", "N/A", "x", "even")
    settings = {
        "batch_size": 2, "total_steps": 1, "schedule.warmup_steps": 0, "optimizer.lr": 0.0,
        "data.workers": 0, "model": DETR, "init_from": path,
        "init_hints": {"num_heads": 4}, "loss": {},
    }  # fmt: skip
    source = write_coco(tmp_path / "boxes", ids=(1, 4))
    params, said = started(
        f"detr_own_data.py:source={source},holdout,size=64,max_boxes=7", settings
    )
    theirs = names_of(load(path, num_heads=4).variables)
    rows = [4, 1, 5] if named else [1, 4, 5]
    for name in ("class_head/kernel", "class_head/bias"):
        np.testing.assert_array_equal(params[name], theirs[name][..., rows])
    assert_same(params, theirs, [name for name in params if not name.startswith("class_head/")])
    assert f"classes by their {'names' if named else 'numbers'}, 2 of 5" in said


def test_other_images_than_the_ones_of_the_weights_are_told(photos, published):
    path = published("weights_hf_vit")
    settings = {**COMMON, "model": {**VIT, "norm_eps": 1e-12}, "init_from": path}
    spec = f"image_folder.py:path={photos}"
    line = r'its images had normalize\("imagenet"\), and config.data.preprocess ends in value_range'
    mean, std = STATISTICS["imagenet"]
    with_config(path, "preprocessor_config", image_mean=mean, image_std=std)
    assert re.search(line, started(spec, settings)[1])
    settings["data.preprocess"] = f"decode|resize(24)|normalize(mean={mean},std={std})"
    assert "its images" not in started(spec, settings)[1]


def test_the_pooler_of_a_backbone_stays_behind(photos, published):
    path = published("weights_hf_vit_pooler")
    settings = {**COMMON, "model": {**VIT, "norm_eps": 1e-12}, "init_from": path}
    _, said = started(f"image_folder.py:path={photos}", settings)
    assert "left behind: pre_logits (2)" in said


def test_a_detector_starts_from_a_published_backbone_and_from_a_detector(published):
    path = published("weights_hf_vit")
    settings = {
        "batch_size": 2, "total_steps": 1, "schedule.warmup_steps": 0, "optimizer.lr": 0.0,
        "data.split": "train[:4]", "evaluators.test.split": "test[:2]", "data.workers": 0,
        "model.backbone": {**VIT, "norm_eps": 1e-12}, "model.width": 16, "model.num_heads": 2,
        "model.mlp_dim": 16, "model.encoder_layers": 0, "model.decoder_layers": 1,
        "model.num_queries": 5, "init_from": path,
    }  # fmt: skip
    params, said = started("detr_digit_scenes.py", settings)
    assert "left behind: head (2)" in said
    theirs = names_of(load(path, image_size=64).variables)
    backbone = [name for name in params if name.startswith("backbone/")]
    assert_same(params, {f"backbone/{k}": v for k, v in theirs.items()}, backbone)


@pytest.mark.parametrize(
    ("model", "more", "match"),
    [
        ({}, {}, "would mean something else. The model there has .*norm_eps=1e-12"),
        ({"norm_eps": 1e-12, "num_heads": 2}, {}, "would mean something else.*num_heads=3"),
        ({"norm_eps": 1e-12, "depth": 3}, {}, "block_2/.* is not there"),
        ({"norm_eps": 1e-12, "width": 48}, {}, "is .* there and .* here"),
        ({"norm_eps": 1e-12}, {"init_hints": {"heads": 3}}, "there is no hint 'heads'"),
        ({"norm_eps": 1e-12, "pool": "gap"}, {}, "cls_position is not in this model"),
    ],
)
def test_what_does_not_fit_is_one_line(photos, published, model, more, match):
    path = published("weights_hf_vit")
    settings = {**COMMON, "model": {**VIT, **model}, "init_from": path, **more}
    with pytest.raises(InputError, match=match) as error:
        started(f"image_folder.py:path={photos}", settings)
    assert "\n" not in str(error.value)


PUBLISHED = {
    "resnet50": (ResNet("50", num_classes=1000), 224),
    "vit_s16": (ViT("S/16", num_classes=1000), 224),
    "dinov2_s14": (ViT("S/14", layer_scale=1.0), 518),
}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Files of PUBLISHED, with zeros."""
    paths = {}
    for name, (model, pixels) in PUBLISHED.items():
        images = np.zeros((1, pixels, pixels, 3), np.float32)
        shapes = jax.eval_shape(model.init, jax.random.key(0), images)
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        folder = tmp_path_factory.mktemp("published") / name
        paths[name] = save(folder, model, zeros, "timm", (pixels, pixels)).path.parent
    return paths


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_image_folder_takes_published_backbones_as_they_are(name, backbones, photos):
    spec = f"{ROOT}/configs/image_folder.py:path={photos},holdout,backbone={name}"
    overrides = [("init_from", str(backbones[name])), ("data.workers", "0")]
    setup = Setup(config_lib.load(spec, overrides))
    setup.read_initial()
    fresh = {"params": setup.target.params, **setup.target.model_state}
    _, report = setup.initial._transfer(names_of(fresh))
    heads = {path for path in names_of(fresh) if path.startswith(("head/", "params/head/"))}
    assert heads
    assert set(names_of(fresh)) - heads <= {*report.loaded, *report.resized}
    assert all("head/" in path for path in (*report.unused, *report.left))


@pytest.mark.slow
@pytest.mark.parametrize("config", ["detr", "segmenter", "eomt"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_for_own_data_take_published_backbones_as_they_are(
    config, name, backbones, tmp_path, monkeypatch
):
    if (config, name) == ("eomt", "resnet50"):
        pytest.skip("EoMT is within a ViT")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(digit_scenes, "_SCENES", {"train": 12, "test": 6})
    model = {"resnet50": "unet"}.get(name, "segmenter")
    which = f"model={model}_{name}" if config == "segmenter" else f"backbone={name}"
    spec = f"{ROOT}/configs/{config}_own_data.py:source=digit_scenes,val=test,size=225,{which}"
    setup = Setup(config_lib.load(spec, [("init_from", str(backbones[name]))]))
    setup.read_initial()
    fresh = {"params": setup.target.params, **setup.target.model_state}
    _, report = setup.initial._transfer(names_of(fresh))
    ours = [path for path in names_of(fresh) if "backbone/" in path]
    assert set(ours) <= {*report.loaded, *report.resized}
    assert not report.unused
    assert all(path.startswith("head/") for path in report.left)
    patch = getattr(setup.task.model.backbone, "patch_size", 1)
    assert all(side % patch == 0 for side in setup.image_size)


def test_the_settings_that_would_fit_come_before_what_may_differ(photos, published):
    settings = {**COMMON, "model": {**VIT, "norm_eps": 1e-12, "depth": 3}}
    settings["init_from"] = published("weights_hf_vit")
    said = r"\. The model there has config\.model\.depth=2: set the same\. Name what may differ all"
    with pytest.raises(InputError, match=said):
        started(f"image_folder.py:path={photos}", settings)


def test_hints_are_for_published_weights(tmp_path):
    run = write_run(tmp_path / "run", make("classification"))
    hints = {"image_size": (8, 8), "num_heads": 3}
    with pytest.raises(InputError, match="num_heads is for published weights, and .*run is a run"):
        transfer.read(run, hints)
    with pytest.raises(InputError, match="mae.pth does not exist"):
        transfer.read(tmp_path / "mae.pth", hints)


@pytest.mark.slow
def test_through_main(photos, published, tmp_path, capsys):
    path = published("weights_hf_vit")
    settings = {**COMMON, "model": {**VIT, "norm_eps": 1e-12}, "init_from": path}
    spec = ["--config", str(ROOT / f"configs/image_folder.py:path={photos}")]
    spec += [f"--config.{key}={value}" for key, value in settings.items()]
    assert main([*spec, "--workdir", str(tmp_path / "run")]) == 0
    assert re.search(r"init_from .*hf_vit: 40 keys used", capsys.readouterr().out)
    # What it has become can be written for others, whose numbers are the published ones still.
    from vitlab.commands.cli import main as vitlab

    out = tmp_path / "out"
    assert vitlab(["convert", str(tmp_path / "run"), str(out), "--to", "hf-vit"]) == 0
    ours, theirs = (names_of(load(each).variables) for each in (out, path))
    assert_same(ours, theirs, list(theirs))
    assert load(out).classes == tuple("abcdefg")
    assert main([*spec, "--workdir", str(tmp_path / "b"), "--config.init_from=hf:a/b/c d"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
