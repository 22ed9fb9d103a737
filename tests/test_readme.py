"""What the README says is true: its code runs, its config is legal, its links exist."""

import contextlib
import importlib.metadata
import io
import json
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from tests.test_configs import OVERRIDES
from tests.weights.reference import reference, write
from vitlab.commands.cli import main as vitlab
from vitlab.config import _plain, load
from vitlab.data import digit_scenes
from vitlab.main import main, parse
from vitlab.models.resnet import ResNet
from vitlab.training.experiment import Experiment
from vitlab.weights import save

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def run_python(code, names):
    """Runs a block; what it prints must be what its comments promise."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), names)
    assert printed.getvalue().splitlines() == re.findall(r"print\(.*\)\s+# (.*)", code)


@pytest.mark.slow
def test_python_blocks_run(tmp_path, monkeypatch):
    """But for those that need a run, which the slow test has."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks("python"):
        if "runs/" not in block:
            run_python(block, names)
    experiment = Experiment.from_config(_plain(names["config"]))
    assert [rule.lr for rule in experiment.optimizer.rules] == [1.0, 10.0, 1.0, 1.0]


def test_every_block_is_of_a_kind_that_is_tested():
    kinds = re.findall(r"^```(.*)\n(?:(?!```).*\n)*?```$", README, re.M)
    assert set(kinds) == {"bash", "cluster", "flags", "mermaid", "python", "sh", "text"}


def test_flags_are_legal_overrides():
    lines = "".join(blocks("flags")).splitlines()
    assert len(lines) == 5
    for line in lines:
        command = parse(["--config", "configs/quickstart.py", *line.split()])
        Experiment.from_config(load(str(ROOT / command.spec), command.overrides))


def test_commands_of_clusters_are_legal():
    """What the processes run; that they find each other is shown elsewhere."""
    found = re.findall(r"-m vitlab\.main ([^\n\"]*)", "".join(blocks("cluster")))
    assert len(found) == 2
    for line in found:
        command = parse(line.split())
        Experiment.from_config(load(str(ROOT / command.spec), command.overrides))
        assert str(command.workdir) == "/shared/run"


# What makes a command of the README quick enough; the rest of it is run as it stands.
QUICK = ["--config.total_steps=2", "--config.schedule.warmup_steps=1", "--config.batch_size=4",
         "--config.data.workers=0", "--config.logging.tensorboard=False"]  # fmt: skip
REAL = ["--config.total_epochs=12", "--config.checkpoint.every_epochs=12"]  # of the quickstart


@pytest.mark.slow
def test_every_command_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    """The blocks of shell and Python in order, in a folder with data as the README has them."""
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "experiments"):
        (tmp_path / name).symlink_to(ROOT / name)
    own_data(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(digit_scenes, "_SCENES", {"train": 12, "test": 6})
    names, count = {}, 0
    for language, block in re.findall(r"```(bash|sh|python)\n(.*?)```", README, re.S):
        if language == "python":
            with capsys.disabled():
                run_python(block, names)
            continue
        for line in block.splitlines():
            program, *arguments = shlex.split(line.partition("&&")[0])
            if program == "python3" or "pytest" in arguments:
                continue  # which `.ci/run` does
            count += 1
            # PyTorch's own files are tested elsewhere: here they are safetensors.
            if any(each.endswith(".pth") for each in arguments):
                arguments = [each.replace(".pth", ".safetensors") for each in arguments]
                arguments += ["--num_heads", "2"]  # tiny ones, which do not tell
            if program == ".venv/bin/vitlab":
                code = vitlab(arguments)
            else:
                assert (program, arguments[:2]) == (".venv/bin/python", ["-m", "vitlab.main"])
                code = main([*arguments[2:], *tiny(arguments[3])])
            assert code == 0, (line, capsys.readouterr().err)
    assert count > 25
    assert (tmp_path / "found/boxes/pictures").is_dir()
    assert (tmp_path / "found/streets/masks").is_dir()
    assert (tmp_path / "runs/digits/evaluate/report/index.html").exists()


def tiny(spec):
    name = pathlib.Path(spec.partition(":")[0]).stem
    if name == "quickstart":
        return REAL
    sizes = {k: v for k, v in OVERRIDES[name].items() if k.startswith("model")}
    sizes |= {"model.num_queries": 100} if name == "detr_own_data" else {}
    if "resnet50" in spec:  # that of the file
        sizes = {}
    more = ["--config.checkpoint.every_steps=2"]
    return [*(f"--config.{key}={value}" for key, value in sizes.items()), *QUICK, *more]


def own_data(root):
    """Photographs in the layouts of the README, and published weights."""
    rng = np.random.default_rng(0)

    def photograph(path, size=(60, 80)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)

    for i in range(6):
        for kind in ("cat", "dog"):
            photograph(root / f"photos/train/{kind}/{i}.jpg")
            photograph(root / f"photos/val/{kind}/{i}.jpg", (70, 70))
        for j in range(5):
            photograph(root / f"all_photos/{i}_{j}.jpg")
        photograph(root / f"new_photos/{i}.png", (50 + i, 90))
        for split in ("train", "val"):
            photograph(root / f"boxes/images/{split}/{i}.jpg")
            label = root / f"boxes/labels/{split}/{i}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("0 0.5 0.5 0.4 0.3\n1 0.3 0.3 0.2 0.2\n")
        for j in range(2):
            photograph(root / f"streets/images/{i}_{j}.jpg")
            mask = Image.fromarray(rng.integers(0, 3, (60, 80), np.uint8))
            (root / "streets/masks").mkdir(exist_ok=True)
            mask.save(root / f"streets/masks/{i}_{j}.png")
    (root / "boxes/data.yaml").write_text(
        "train: images/train\nval: images/val\nnames: [cup, plate]\n"
    )
    (root / "streets/classes.txt").write_text("road\nsky\ntree\n")
    names = [path.name for path in sorted((root / "all_photos").iterdir())]
    images = [dict(id=i, file_name=name, width=80, height=60) for i, name in enumerate(names)]
    outlines = [
        dict(id=i + 1, image_id=i, category_id=1, iscrowd=0, area=200, bbox=[10, 10, 20, 20],
             segmentation=[[10, 10, 30, 10, 30, 30]])
        for i in range(len(names))
    ]  # fmt: skip
    content = dict(images=images, annotations=outlines, categories=[dict(id=1, name="leaf")])
    (root / "outlines.json").write_text(json.dumps(content))
    resnet = ResNet("50", num_classes=3)
    weights = resnet.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    saved = save(root / "resnet50", resnet, weights, "timm", image_size=(32, 32))
    saved.path.rename(root / "resnet50.safetensors")
    for file, fixture in (
        ("dinov2_vits14_pretrain", "weights_dinov2"),
        ("mae_pretrain_vit_base", "weights_mae_finetune"),
    ):
        write(root / file, reference(fixture)).rename(root / f"{file}.safetensors")


def test_two_commands_set_everything_up():
    shell = blocks("bash")
    assert len(shell) == 2
    assert all(
        block.startswith("python3 -m venv .venv && .venv/bin/pip install") for block in shell
    )
    assert "-m vitlab.main --config configs/quickstart.py" in shell[0]
    assert "-m pytest" in shell[1]


def test_links_and_configs_exist():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
    for name in re.findall(r"configs/(\w+)\.py", README):
        assert (ROOT / "configs" / f"{name}.py").exists(), name


def test_requirements_have_bounds_on_both_sides_and_no_other_framework():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for requirement in project["dependencies"] + [r for e in extras.values() for r in e]:
        assert re.fullmatch(r"[\w-]+(\[\w+\])?>=[\d.]+,<[\d.]+", requirement), requirement
    names = {re.match(r"[\w-]+", r)[0].lower() for r in project["dependencies"]}
    assert not names & {"torch", "tensorflow", "tensorflow-cpu", "torchvision"}
    installed = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    assert not installed & {"torch", "tensorflow"} or "vitlab" not in installed


def test_importing_the_package_is_light():
    """`import vitlab` and a wrong command line load none of the heavy libraries."""
    code = (
        "import sys, vitlab.main; vitlab.main.main(['--confg', 'x']); "
        "print(sorted({'jax', 'flax', 'grain', 'matplotlib', 'tensorflow_datasets'} "
        "& set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stdout + out.stderr
