"""Names of published weights: files, folders and the hub's, whose network is not needed here."""

import json
import shutil

import numpy as np
import pytest

from tests.weights import reference as ref
from vitlab.errors import InputError
from vitlab.weights import load
from vitlab.weights.hub import find, is_published


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """The hub's cache with one repository in it, and no network."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = "a" * 40
    repository = cache / "models--acme--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    file = ref.write(tmp_path / "file", ref.reference("weights_hf_vit"))
    shutil.copytree(file.parent, repository / "snapshots" / commit)
    return file


def test_a_repository_in_the_cache_needs_no_network(cached):
    ours, theirs = load("hf:acme/tiny"), load(cached)
    assert ours.format == "hf-vit"
    assert ours.module == theirs.module
    found, part = find("hf:acme/tiny/model.safetensors")
    assert (found.weights[0].name, part) == ("model.safetensors", "")
    assert found.config["model_type"] == "vit"


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("hf:acme/other", "hub cannot be reached, and model.safetensors or .* not in its cache"),
        ("hf:acme/tiny/x.npz", "cannot be reached, and x.npz is not in its cache"),
        ("hf:acme/tiny@v2", "cannot be reached"),
        ("hf:acme", "a name on the hub is hf:OWNER/NAME"),
        ("hf:../../etc/passwd", "a name on the hub is"),
    ],
)
def test_without_a_network_one_line(cached, name, match):
    with pytest.raises(InputError, match=match) as error:
        load(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mapped", [["a"], {"a": 3}, "a"])
def test_an_index_of_pieces_that_names_none_is_one_line(tmp_path, mapped):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": mapped}))
    with pytest.raises(InputError, match="weight_map gives no names of files"):
        load(tmp_path)


def test_what_is_published_and_what_is_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = ref.write(tmp_path / "a", ref.reference("weights_hf_vit"))
    np.savez(tmp_path / "b.npz", a=np.zeros(3))
    for name in (file, file.parent, "hf:acme/tiny", f"{tmp_path}/b.npz:img", "~/b.npz"):
        assert is_published(str(name))
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert find("~/b.npz:img")[1] == "img"
    pieces = tmp_path / "pieces" / "pytorch_model.bin.index.json"  # of torch's own format
    pieces.parent.mkdir()
    pieces.write_text(json.dumps({"weight_map": {"a": "pytorch_model-1.bin"}}))
    (pieces.parent / "pytorch_model-1.bin").touch()
    assert is_published(str(pieces.parent))
    assert [each.name for each in find(str(pieces.parent))[0].weights] == ["pytorch_model-1.bin"]
    for name in (tmp_path / "run", tmp_path / "nothing", "runs/mae"):
        assert not is_published(str(name))


def test_a_run_is_told_from_published_weights(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match=r"run is a run: vitlab\.load_model gives its module"):
        load(str(tmp_path / "run"))
