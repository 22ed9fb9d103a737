"""`vitlab inspect`: every kind of picture, of several tasks, every option, and what goes wrong."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vitlab import checkpoints
from vitlab import config as config_lib
from vitlab.commands.cli import main as vitlab
from vitlab.tasks.task import task_class

ROOT = pathlib.Path(__file__).parents[2]
VIT = {"name": "vit", "width": 16, "depth": 2, "num_heads": 2, "patch_size": 4, "pool": "gap"}
RESNET = {"name": "resnet", "variant": "18", "stem": "small", "depths": (1, 1), "widths": (4, 8)}
DIGITS = {"name": "vit", "width": 16, "depth": 2, "num_heads": 2, "patch_size": 2, "scan": True,
          "pool": "cls", "num_registers": 1}  # fmt: skip
TASKS = {
    "digits": ("classification", DIGITS, 8, 1),
    "resnet": ("simclr", {"backbone": RESNET, "projector_dim": 4}, 32, 3),
    "plain_detr": ("detection", {
        "name": "plain_detr", "backbone": VIT, "num_queries": 3, "width": 8, "num_heads": 2,
        "mlp_dim": 8, "encoder_layers": 1, "decoder_layers": 1,
    }, 32, 3),
    "eomt": ("universal_segmentation", {
        "name": "eomt", "backbone": VIT, "num_queries": 3, "num_blocks": 1,
    }, 32, 3),
}  # fmt: skip


def working_directory(workdir, name):
    """As a run leaves it, with random variables: what it has learned is of no matter here."""
    task, model, side, channels = TASKS[name]
    config = config_lib.load(str(ROOT / "configs/quickstart.py"))
    config |= {"task": task, "model": model, "augment": {}}
    built = task_class(task).from_config(model, {}, {}, ("a", "b"), "float32")
    image = jnp.zeros((1, side, side, channels))
    shapes = jax.eval_shape(built.init, jax.random.key(0), image)
    rng = np.random.default_rng(0)
    params, *rest = (
        jax.tree.map(lambda x, low=low: jnp.asarray(rng.uniform(low, 0.6, x.shape)), tree)
        for tree, low in ((shapes.pop("params"), -0.6), (shapes, 0.1))
    )
    ema = {"params": params, **rest[0]}
    writer = checkpoints.Writer(workdir / "checkpoints", 1, print)
    writer.save(
        1, {"params": params, "model_state": rest[0], "ema": ema}, {"classes": ["a", "b"]}, None
    )
    writer.close()
    (workdir / "config.json").write_text(json.dumps(config))
    return workdir


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A classifier with a class token and a register, whose blocks are scanned."""
    return working_directory(tmp_path_factory.mktemp("digits"), "digits")


@pytest.fixture
def photos(tmp_path):
    """Three images of several sizes and modes."""
    rng = np.random.default_rng(0)
    for name, size in {"a.png": (40, 30), "b.jpg": (20, 50), "deep/a.png": (64, 64)}.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.kron(rng.integers(0, 256, (5, 5, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
        Image.fromarray(pixels).resize(size).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


SMALL = ["--preprocess", "decode(channels=1)|resize(8)|value_range(-1,1)"]


def written(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


def test_everything_is_drawn_and_every_file_is_told(digits, photos, tmp_path, capsys):
    out = tmp_path / "seen"
    assert vitlab(["inspect", str(digits), str(photos), "--out", str(out), *SMALL]) == 0
    found = written(out)
    assert found == [
        "attention/a.png", "attention/a_2.png", "attention/b.png", "neighbours.png", "pca.png",
        "rollout/a.png", "rollout/a_2.png", "rollout/b.png",
    ]  # fmt: skip
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert sorted(lines) == [f"{out}/{name}" for name in found]
    assert lines[f"{out}/attention/a_2.png"] == f"{photos}/deep/a.png"
    assert lines[f"{out}/pca.png"] == "3 images"
    for name in found:
        assert np.asarray(Image.open(out / name)).std() > 10
    # Again, into files of its own.
    again = ["inspect", str(digits), str(photos / "b.jpg"), "--out", str(out), *SMALL]
    assert vitlab([*again, "--what", "rollout"]) == 0


def test_blocks_and_kinds_are_chosen(digits, photos, tmp_path):
    sizes = []
    for blocks in ("all", "-1", "0,1"):
        out = tmp_path / f"seen{blocks}"
        command = ["inspect", str(digits), str(photos / "a.png"), "--out", str(out), *SMALL]
        assert vitlab([*command, "--what", "attention", f"--blocks={blocks}"]) == 0
        assert written(out) == ["attention/a.png"]
        sizes.append(Image.open(out / "attention/a.png").size)
    assert sizes[0] == sizes[2]
    assert sizes[0][1] > 1.7 * sizes[1][1]


def test_neighbours_are_looked_for_elsewhere(digits, photos, tmp_path, capsys):
    command = ["inspect", str(digits), str(photos / "a.png"), *SMALL, "--what", "neighbours"]
    # Of the folder that it is in: all but itself.
    folder = [*command, "--among", str(photos), "--k", "3", "--layer", "block_0"]
    assert vitlab([*folder, "--out", str(tmp_path / "folder"), "--json"]) == 0
    pictures = json.loads(capsys.readouterr().out)["pictures"]
    assert [each["path"] for each in pictures] == [f"{tmp_path}/folder/neighbours.png"]
    assert Image.open(tmp_path / "folder/neighbours.png").width == 10 + 3 * 234
    source = [*command, "--among", "digits", "--split", "test[:7]", "--k", "4"]
    assert vitlab([*source, "--out", str(tmp_path / "source")]) == 0
    assert Image.open(tmp_path / "source/neighbours.png").width == 10 + 5 * 234


def test_broken_files_are_told_and_the_others_drawn(digits, photos, tmp_path, capsys):
    (photos / "broken.jpg").write_bytes((photos / "b.jpg").read_bytes()[:300])
    (photos / "no.png").write_text("no image")
    out = tmp_path / "seen"
    assert vitlab(["inspect", str(digits), str(photos), "--out", str(out), *SMALL]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"vitlab: broken: {photos}/broken.jpg: the image")
    assert second.startswith(f"vitlab: broken: {photos}/no.png: the image (8 bytes) is not a")
    assert len(written(out)) == 8
    alone = ["inspect", str(digits), str(photos / "no.png"), "--out", str(tmp_path / "none")]
    assert vitlab([*alone, *SMALL]) == 1
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["attention/b.png", "neighbours.png"])
def test_files_that_it_did_not_write_stay(digits, photos, tmp_path, capsys, name):
    command = ["inspect", str(digits), str(photos), "--out", str(tmp_path / "seen"), *SMALL]
    (tmp_path / "seen" / name).parent.mkdir(parents=True)
    (tmp_path / "seen" / name).write_text("mine")
    assert vitlab(command) == 2
    assert f"seen/{name} is there and this command did not write it" in capsys.readouterr().err
    assert written(tmp_path / "seen") == [name]
    assert (tmp_path / "seen" / name).read_text() == "mine"


def test_mistakes_are_one_line_and_exit_2(digits, photos, tmp_path, capsys):
    images = [str(digits), str(photos)]
    for arguments, said in [
        ([], "needs WORKDIR and IMAGE, such as vitlab inspect runs/vit photos --out seen"),
        ([str(digits)], "needs IMAGE, such as vitlab inspect"),
        (images, "needs --out DIR"),
        ([*images, "--out", "X", "--wat", "pca"], "--wat does not exist; did you mean '--what'?"),
        ([*images, "--out", "X", "--what", "pcaa"], "; did you mean 'pca'?"),
        ([*images, "--out", "X", "--blocks", "last"], "must be all, or numbers such as 0,5,11"),
        ([*images, "--out", "X", "--blocks", "2", *SMALL], "no block 2: the ViT's are 0 to 1"),
        ([*images, "--out", "X", "--k", "0"], "--k is '0' but must be a whole number from 1 to"),
        ([*images, "--out", "X", "--split", "test"], "--split is of --among"),
        ([*images, "--out", "X", "--among", str(photos), "--split", "a"], f"folder:{photos} or"),
        ([*images, "--out", "X", "--among", "digit"], "source 'digit' is not known"),
        ([*images, "--out", "X", "--layer", "block_9", *SMALL], "did you mean 'block_1'?"),
        ([*images, "--out", "X"], "make them of one size, such as by --preprocess"),
        ([*images, "--out", "X", "--preprocess", "decode|resize(8)|value_range(-1,1)"],
         "which do not fit the model"),
        ([*images, "--out", "X", "--preprocess", "decode(channels=1)|resize(9)|value_range(0,1)"],
         "in whole patches of 2: 8 x 8, say"),
        ([*images, "--out", "X", "--preprocess",
          "decode(channels=1)|resize(1024)|value_range(0,1)"], "262,144 patches, whose attention"),
        ([str(digits), str(photos / "a.png"), "--out", "X", "--what", "neighbours", *SMALL],
         "neighbours needs two images"),
        ([str(digits), str(photos / "none.png"), "--out", "X"], "none.png does not exist"),
        ([str(tmp_path), str(photos), "--out", "X"], "has no finished checkpoint"),
    ]:  # fmt: skip
        arguments = [str(tmp_path / "X") if each == "X" else each for each in arguments]
        code = vitlab(["inspect", *arguments])
        error = capsys.readouterr().err
        assert (code, error.count("\n")) == (2, 1), (arguments, error)
        assert said in error, (arguments, error)
        assert not (tmp_path / "X").exists()


def test_a_convnet_has_features_but_no_attention(photos, tmp_path, capsys):
    run = working_directory(tmp_path / "run", "resnet")
    out = tmp_path / "seen"
    command = ["inspect", str(run), str(photos), "--out", str(out)]
    command += ["--preprocess", "decode|resize(30)|value_range(-1,1)"]
    assert vitlab(command) == 0
    captured = capsys.readouterr()
    note = "note: a ResNet has no attention: a ViT has: attention and rollout are left out"
    assert note in captured.out.splitlines()
    assert written(out) == ["neighbours.png", "pca.png"]
    assert vitlab([*command, "--what", "rollout"]) == 2
    assert "a ResNet has no attention: a ViT has" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "ending"), [("plain_detr", "pad_boxes(5)"), ("eomt", "semantic|pad_segments(5)")]
)
def test_detectors_and_segmenters_see_no_padding(name, ending, photos, tmp_path):
    run = working_directory(tmp_path / "run", name)
    out = tmp_path / "seen"
    command = ["inspect", str(run), str(photos / "b.jpg"), "--out", str(out)]
    command += ["--preprocess", f"decode|letterbox(32)|{ending}|value_range(-1,1)"]
    assert vitlab(command) == 0
    assert written(out) == ["attention/b.png", "pca.png", "rollout/b.png"]
    # 20 x 50 becomes 13 x 32: the rest of each tile, 7 times as large, is striped.
    for picture in written(out):
        second = np.asarray(Image.open(out / picture).convert("RGB"))[-234:-10, 244:468]
        assert set(np.unique(second[:, 13 * 7 :])) == {214, 232}
        assert len(np.unique(second[:, : 13 * 7])) > 10
