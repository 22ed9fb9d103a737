"""Peers: what they are asked to build, how the two processes talk, and what is refused."""

import io
import json
import sys
from typing import get_args

import numpy as np
import pytest

from vitlab import config as config_lib
from vitlab.errors import InputError, WorkerError
from vitlab.training import peer_process, peers
from vitlab.training.setup import Setup

RESIZED = "decode(channels=3)|resize(32)|value_range(-1,1)"
CHILD = """
import sys
from vitlab.training.peer_process import serve

def make(spec):
    if spec["name"] == "broken":
        raise ValueError("no\\nsuch layer")
    print("a library that talks", file=sys.stderr)
    return {"parameters": spec["parameters"]}, lambda steps: 0.5 * steps

serve(make, sys.stdin, sys.stdout, rest=0)
"""


def peer(**spec):
    return peers.Peer("timm", spec, (sys.executable, "-c", CHILD))


def test_the_processes_talk():
    with peer(name="fake", parameters=12) as fake:
        assert fake.about == {"parameters": 12}
        assert fake.seconds(4) == 0.5
        assert fake.seconds(1) == 0.5
        process = fake._process
        assert process.poll() is None
    assert process.poll() is not None


def test_a_peer_that_fails_is_one_line():
    with pytest.raises(WorkerError, match="--against timm: the peer failed: ValueError: no such"):
        peer(name="broken")
    with pytest.raises(WorkerError, match="the peer failed: SystemExit|the peer failed: gone"):
        peers.Peer("timm", {}, (sys.executable, "-c", "import sys; sys.exit('gone')"))


def test_answers_come_in_order():
    answers = io.StringIO()
    requests = ["{}\n", "2\n", "3\n"]
    peer_process.serve(lambda spec: ({"parameters": 1}, float), requests, answers, rest=0)
    lines = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert lines == [{"parameters": 1}, {"seconds": 2.0}, {"seconds": 3.0}]


def test_every_peer_has_packages_and_something_that_builds_it():
    assert set(peers.PACKAGES) == set(get_args(peers.Name))
    kinds = {kind.removesuffix("-vit").removesuffix("-resnet") for kind in peer_process._MODELS}
    assert kinds == set(peers.PACKAGES)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as error:
        peers.check_packages("hf-detr")
    assert str(error.value) == (
        "--against hf-detr: torch and transformers and scipy not found; pip install torch "
        "transformers scipy"
    )


def setup_of(config="configs/quickstart.py", **overrides):
    values = {"evaluators": {}, "checkpoint.best": "", **overrides}
    return Setup(config_lib.load(config, [(key, str(value)) for key, value in values.items()]))


def specification(name, setup, what="train"):
    return peers.specification(
        name, setup, what, {**setup.example, "image": np.zeros((4, 8, 8, 1))}
    )


@pytest.fixture(scope="module")
def classifier():
    return setup_of()


def test_what_is_to_be_built_is_the_configs_model(classifier):
    spec = specification("timm", classifier)
    json.dumps(spec)
    model = spec.pop("model")
    assert spec == {
        "kind": "timm-vit", "what": "train", "platform": "cpu", "precision": "float32",
        "batch": 4, "image": (1, 8, 8), "optimizer": "adamw", "clip_norm": 1.0, "objects": 0,
    }  # fmt: skip
    sizes = ("patch_size", "embed_dim", "depth", "num_heads", "num_classes", "global_pool")
    assert [model[key] for key in sizes] == [2, 64, 4, 4, 10, "avg"]


@pytest.mark.slow
def test_a_mae_and_a_detector():
    mae = specification(
        "hf-mae", setup_of("configs/mae_digits.py", **{"model.backbone.pool": "cls"})
    )["model"]
    assert (mae["image_size"], mae["patch_size"], mae["norm_pix_loss"]) == (8, 2, False)
    setup = setup_of(
        "configs/detr_digit_scenes.py",
        model={"name": "detr", "backbone": {"name": "resnet", "variant": "18"}},
        loss={},
    )
    spec = specification("hf-detr", setup)
    assert spec["objects"] == setup.example["box_mask"].sum() > 0
    assert spec["model"]["backbone"]["hidden_sizes"] == [64, 128, 256, 512]


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("hf-mae", {}, "--against hf-mae is for task 'mae', not for 'classification'"),
        ("hf-detr", {}, "--against hf-detr is for config.model.name 'detr' with a resnet"),
        ("torchvision", {}, "square images of 3 channels"),
        ("torchvision", {"model.patch_dropout": 0.5}, "without drop_path and patch_dropout"),
        ("timm", {"model.mlp": "swiglu"}, "no such form: config.model.mlp is 'swiglu'"),
        (
            "timm",
            {"model": {"name": "convnext"}, "data.preprocess": RESIZED},
            "a vit or a resnet, not for classification with ConvNeXt",
        ),
        (
            "timm",
            {"model": {"name": "resnet", "variant": "18", "stem": "small"}},
            "it has the published stem",
        ),
    ],
)
def test_a_config_without_such_a_peer_is_one_line(name, overrides, said):
    setup = setup_of(**overrides)
    with pytest.raises(InputError) as error:
        specification(name, setup)
    assert said in str(error.value)
