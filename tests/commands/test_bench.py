"""`vitlab bench`: its findings in words and as JSON, data that are not there, a peer that is a
stand-in."""

import json
import sys

import pytest

from tests.training.test_peers import CHILD
from vitlab import config as config_lib
from vitlab.commands.cli import main
from vitlab.training import peers

TINY = ("--config", "configs/quickstart.py", "--config.model.width=8", "--config.model.depth=1",
        "--config.model.num_heads=2", "--config.batch_size=8", "--steps", "2")  # fmt: skip


@pytest.fixture(autouse=True)
def short(monkeypatch):
    from vitlab.training import benchmark

    monkeypatch.setattr(benchmark, "_INPUT_SECONDS", 0.05)
    monkeypatch.setattr(benchmark, "matmul_rate", lambda dtype: 1e11)


def bench(*words):
    assert main(["bench", *TINY, *words]) == 0


def test_all_that_is_measured(tmp_path, capsys):
    out = tmp_path / "bench.json"
    bench("--data", "real", "--out", str(out), "--json")
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(out.read_text())
    assert found["image"] == [8, 8, 1]
    assert (found["what"], found["source"], found["batch_size"]) == ("train", "digits", 8)
    assert found["overrides"]["model.width"] == "8"
    step, arithmetic = found["step"], found["arithmetic"]
    assert 0 < step["least"] <= step["median"] <= step["most"]
    assert step["images_per_second"] == pytest.approx(8 / step["seconds"])
    # 16 patches of 4 values, width 8, an MLP of 32; the images want no gradient.
    forward = 2 * (16 * 4 * 8 + 4 * 16 * 64 + 2 * 16**2 * 8 + 2 * 16 * 8 * 32 + 8 * 10)
    assert arithmetic["flops_per_image"] == 3 * forward - 2 * 16 * 4 * 8
    assert arithmetic["mfu_of_matmul_rate"] == pytest.approx(
        8 * arithmetic["flops_per_image"] / step["seconds"] / 1e11
    )
    assert arithmetic["mfu"] is None  # nobody says what a CPU can do
    assert found["memory"]["planned_bytes"] > 0
    rates = (found["input"]["images_per_second"], step["images_per_second"])
    assert found["input"]["limit"] == ("input" if rates[0] < rates[1] else "device")
    assert found["input"]["factor"] == pytest.approx(max(rates) / min(rates))
    assert found["input"]["together"] > 0
    assert "against" not in found


@pytest.mark.parametrize(
    ("setting", "line", "measured"),
    [
        ("cache=device", "the data are on the device, which alone limits a run", None),
        ("presize=4", "that is without config.data.presize, so --data real must say what limits a "
         "run", {"images_per_second", "workers"}),
    ],
)  # fmt: skip
def test_no_verdict_on_an_input_that_a_run_has_not(
    monkeypatch, tmp_path, capsys, setting, line, measured
):
    from vitlab.training import benchmark

    monkeypatch.setattr(benchmark, "_training", benchmark._forward)  # which compiles sooner
    out = tmp_path / "bench.json"
    bench(f"--config.data.{setting}", "--out", str(out))
    assert capsys.readouterr().out.splitlines()[-1] == line
    found = json.loads(out.read_text()).get("input")
    assert measured == (found and found.keys())


@pytest.mark.slow
def test_data_need_not_be_there(capsys):
    """Nor do evaluators, or what the config starts from."""
    bench("--config.data.source=folder:/nowhere", "--config.init_from=/nowhere",
          "--config.data.preprocess=decode|resize(8)|value_range(-1,1)",
          "--config.evaluators.test.split=none")  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("the data are not there, so JPEG files of noise stand in for them: ")
    assert lines[1].startswith(
        "train of classification: 8 images of 8 x 8 x 3 (a stand-in for folder:/nowhere), float32"
    )
    assert len(lines) == 8
    assert main(["bench", *TINY, "--config.model.num_classes=7"]) == 2  # those of the data are 10
    assert "config.model.num_classes is 7 but the data have 10 classes" in capsys.readouterr().err
    assert main(["bench", *TINY, "--data", "real", "--config.data.source=folder:/nowhere"]) == 2
    assert "/nowhere" in capsys.readouterr().err


def test_what_stands_in_for_the_mnist_family_has_its_size():
    from vitlab.training.benchmark_data import prepare

    lines = []
    config = config_lib.load("configs/vit_fashion_mnist.py:path=/nowhere", [("batch_size", "8")])
    setup, words = prepare(config, "synthetic", lines.append)
    assert setup.example["image"].shape == (1, 28, 28, 1)
    assert len(setup.source.class_names) == 10
    assert words.startswith("a stand-in for idx:/nowhere")
    assert [line.split(": ")[0] for line in lines] == [
        "the data are not there, so 28 x 28 images of noise stand in for them"
    ]


def test_nothing_stands_in_for_images_of_an_unknown_size(capsys):
    assert main(["bench", *TINY, "--config.data.source=folder:/nowhere"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(
        "vitlab: error: the data are not there, and noise cannot stand in for them, as nothing in "
        "config.data.preprocess sets the size of an image: folder /nowhere"
    )
    assert err.count("\n") == 1


def test_a_peer_takes_turns(monkeypatch, capsys):
    spec = {}

    class StandIn(peers.Peer):
        def __init__(self, name, given):
            spec.update(given)
            fake = {"name": "fake", "parameters": 100}
            super().__init__(name, fake, (sys.executable, "-c", CHILD))
            self.about["form"] = "eager"

    monkeypatch.setattr(peers, "Peer", StandIn)
    monkeypatch.setattr(peers, "check_packages", lambda name: None)
    monkeypatch.setattr(peers, "versions", lambda name: {"torch": "9"})
    bench("--against", "timm", "--what", "inference", "--pairs", "3")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-5].startswith("against timm (torch 9, eager): 100 parameters, ANOTHER NETWORK: ")
    assert all("timm 500.0 ms: ratio " in line for line in lines[-4:-1])
    assert lines[-1].startswith("median ratio ")
    assert (spec["what"], spec["batch"]) == ("inference", 8)


def test_what_is_missing_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    assert main(["bench", *TINY, "--against", "timm"]) == 2
    assert capsys.readouterr().err == (
        "vitlab: error: --against timm: torch and timm not found; pip install torch timm\n"
    )
    assert main(["bench", *TINY, "--out", str(tmp_path / "no" / "x.json")]) == 2
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--out", "."), "--out .: is a folder"),
        (("--what", "inference", "--data", "real"), "--data real is for --what train"),
        (("--config.data.cache=odd",), "config.data.cache is 'odd'"),
        (("--config.data=3",), "config.data"),
    ],
)
def test_mistakes_are_one_line(capsys, words, line):
    assert main(["bench", *TINY, *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("vitlab: error: ")
    assert line in err
    assert err.count("\n") == 1
