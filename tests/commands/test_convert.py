"""`vitlab convert`: every line of its help, and what goes wrong."""

import json

import numpy as np
import pytest
import safetensors.numpy

from tests.deploy.models import make, write_run
from tests.weights import reference as ref
from vitlab.commands.cli import main
from vitlab.weights import load


@pytest.fixture
def hf_vit(tmp_path):
    return ref.write(tmp_path / "hf_vit", ref.reference("weights_hf_vit")).parent


def test_there_and_back(tmp_path, capsys, hf_vit):
    assert main(["convert", str(hf_vit), str(tmp_path / "timm"), "--to", "timm"]) == 0
    out = capsys.readouterr().out
    assert "40 keys used" in out
    assert "timm/model.safetensors holds the same 14,863 numbers, read back" in out
    assert "note: norm_eps is 1e-12, and timm has 1e-06" in out
    back = ["convert", str(tmp_path / "timm"), str(tmp_path / "back"), "--to", "hf-vit"]
    assert main(back) == 0
    ours = safetensors.numpy.load_file(tmp_path / "back" / "model.safetensors")
    theirs = safetensors.numpy.load_file(hf_vit / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array)


def test_inspect(tmp_path, capsys, hf_vit):
    assert main(["convert", "--inspect", str(hf_vit)]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert lines["format"] == "hf-vit: transformers ViT"
    assert lines["model"].startswith("ViT(patch_size=8, width=24, depth=2,")
    assert lines["parameters"] == "14,863"
    assert lines["images"] == "24 x 24"
    # Its processor is for other images.
    assert lines["preprocessing"].endswith("value_range(-1,1), which no file says")
    assert lines["classes"] == "7"
    assert lines["licence"] == "not stated in the file"
    assert lines["keys"] == "40 keys used"


def test_as_json(tmp_path, capsys, hf_vit):
    assert main(["convert", "--inspect", str(hf_vit), "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert (known["format"], known["parameters"], known["classes"]) == ("hf-vit", 14863, 7)
    assert known["image_size"] == [24, 24]
    out = tmp_path / "timm"
    assert main(["convert", "--json", str(hf_vit), str(out), "--to", "timm"]) == 0
    captured = capsys.readouterr()
    written = json.loads(captured.out)
    assert (written["path"], written["numbers"]) == (f"{out}/model.safetensors", 14863)
    assert "norm_eps is 1e-12" in written["notes"][0]
    assert "40 keys used" in captured.err


def test_inspect_takes_hints(tmp_path, capsys):
    path = ref.write(tmp_path / "a", ref.reference("weights_dinov2"))
    assert main(["convert", "--inspect", str(path)]) == 2
    assert "does not tell num_heads: give num_heads=" in capsys.readouterr().err
    arguments = ["--num_heads", "3", "--image_size", "(16, 40)"]
    assert main(["convert", "--inspect", str(path), *arguments]) == 0
    out = capsys.readouterr().out
    assert "16 x 40" in out
    assert "1 resized: pos_embed" in out
    assert "1 unused, of the pretraining: mask_token" in out
    for grid in ("3", "(3,3)"):
        assert main(["convert", "--inspect", str(path), "--num_heads", "3", "--grid", grid]) == 0
        assert "24 x 24" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "needs a source, a destination and --to"),
        (["a", "b"], "needs a source, a destination and --to"),
        (["nothing.pth", "b", "--to", "timm"], "nothing.pth does not exist"),
        (["--inspect", "nothing.pth", "--grid", "3"], "nothing.pth does not exist"),
        (["a", "b", "--to", "timm", "--heads", "3"], "argument --heads does not exist"),
        (["--inspect", "a", "b"], "takes a source and nothing else"),
        (["HF", "b", "--to", "onnx"], "--to is 'onnx' but must be timm, hf-vit or big_vision"),
        (["HF", "HF", "--to", "timm"], "hf_vit exists already"),
        (["HF", "b", "--to", "big_vision"], "big_vision's ViT has no mlp='gelu'"),
        (["--inspect", "HF", "--num_heads", "5"], "ViT width 24 is no multiple of 5"),
        (["--inspect", "HF", "--num_heads", "many"], "num_heads"),
        (["--inspect", "HF", "--image_size", "4"], "in whole patches of 8"),
        (["--inspect", "HF", "--num_classes=-1"], "num_classes is -1"),
        (["HF", "hf:a/b", "--to", "timm"], "a destination is a file or a folder"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(capsys, tmp_path, hf_vit, arguments, match):
    arguments = [str(hf_vit) if a == "HF" else a for a in arguments]
    assert main(["convert", *arguments]) == 2
    captured = capsys.readouterr()
    assert match in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert "Traceback" not in captured.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf_vit"]


def test_a_backbone_out_of_a_run_whose_preprocessing_nobody_else_has(tmp_path, capsys):
    """Of a detector; and of a pretraining that evaluated nothing, whose own is random."""
    for name, evaluated in (("detector", True), ("pretrained", False)):
        run = tmp_path / name
        write_run(run, make("detection"))
        config = json.loads((run / "config.json").read_text())
        config["evaluators"] = config["evaluators"] if evaluated else {}
        (run / "config.json").write_text(json.dumps(config))
        assert main(["convert", "--inspect", str(run)]) == 0
        lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
        assert (lines["images"], lines["preprocessing"]) == ("32 x 48", "not known")
        assert main(["convert", str(run), str(tmp_path / f"{name}_timm"), "--to", "timm"]) == 0
        assert "note: preprocessing is not known" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_an_exported_model_as_its_run(tmp_path, capsys, task):
    from vitlab.deploy.model import save_model

    model, file = make(task), str(tmp_path / "model.safetensors")
    save_model(model, file)
    written = []
    for name in (file, write_run(tmp_path / "run", model)):
        written.append(tmp_path / f"timm_{len(written)}")
        assert main(["convert", name, str(written[-1]), "--to", "timm"]) == 0
        said = capsys.readouterr().out.replace(name, "it").replace(str(written[-1]), "there")
        written[-1] = (said, (written[-1] / "model.safetensors").read_bytes())
    assert written[0] == written[1]
    assert main(["convert", "--inspect", file]) == 0
    assert "vitlab: a model that vitlab export wrote" in capsys.readouterr().out


def test_a_pickle_in_disguise_runs_nothing(capsys, tmp_path):
    touched = tmp_path / "touched"
    program = b"cos\nsystem\n(S'touch " + str(touched).encode() + b"'\ntR."
    for name in ("model.pth", "model.safetensors", "model.npz"):
        (tmp_path / name).write_bytes(program)
        assert main(["convert", "--inspect", str(tmp_path / name)]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not touched.exists()


def test_part_of_a_pth(tmp_path, capsys):
    path = ref.FIXTURES / "torch_zip.pth"
    assert main(["convert", "--inspect", str(path), "--part", "nothing"]) == 2
    assert "has no part 'nothing': model" in capsys.readouterr().err
    assert main(["convert", "--inspect", str(path)]) == 2
    assert "a format that is not known here" in capsys.readouterr().err


def test_a_hint_is_what_load_takes(hf_vit):
    assert load(hf_vit, pool="gap").module.pool == "gap"
