"""A file of `vitlab export --format safetensors` as weights: read whole, started from, cut down."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests.deploy.models import CLASSES, MODELS, make, write_run
from vitlab.deploy.model import save_model
from vitlab.errors import InputError
from vitlab.models.build import model_settings
from vitlab.weights import load, transfer
from vitlab.weights.filling import names_of


@pytest.fixture(scope="module")
def models():
    return {task: make(task) for task in MODELS}


@pytest.fixture
def classifier(models, tmp_path):
    save_model(models["classification"], tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("task", MODELS)
def test_the_module_and_its_variables_are_those_that_were_exported(models, task, tmp_path):
    path, model = tmp_path / "model.safetensors", models[task]
    save_model(model, path)
    loaded = load(path)
    assert model_settings(loaded.module) == model_settings(model.task.model)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, dict(model.variables))
    assert (loaded.format, loaded.image_size, loaded.classes) == ("vitlab", (32, 48), CLASSES)
    assert (loaded.preprocessing, loaded.preprocessing_stated) == (model.preprocess, True)
    assert str(loaded.report) == f"{len(names_of(model.variables))} keys used"


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_it_starts_another_run_as_its_own_run_does(models, task, tmp_path):
    path, model = tmp_path / "model.safetensors", models[task]
    save_model(model, path)
    run = transfer.read(write_run(tmp_path / "run", model))
    file = transfer.read(path, {"image_size": (64, 64)})
    assert dataclasses.replace(file, variables={}) == dataclasses.replace(run, variables={})
    assert file.variables.keys() == run.variables.keys()
    for name, array in file.variables.items():
        np.testing.assert_array_equal(array, run.variables[name])
    with pytest.raises(
        InputError, match=r"init_hints.num_heads is for published weights, and .* is"
    ):
        transfer.read(path, {"num_heads": 4})


def test_half_precision_comes_back_as_float32(models, tmp_path):
    path = tmp_path / "half.safetensors"
    save_model(models["classification"].computing_in("bfloat16"), path)
    kernel = load(path).variables["params"]["head"]["kernel"]
    assert kernel.dtype == np.float32
    exact = models["classification"].variables["params"]["head"]["kernel"]
    np.testing.assert_allclose(kernel, exact, rtol=2**-8)


def test_another_size_and_another_head(classifier):
    whole = load(classifier)
    larger = load(classifier, image_size=(48, 48))
    name = "position_embedding/table"
    assert names_of(larger.variables)[name].shape == (6, 6, 16)
    assert (larger.report.resized, larger.preprocessing_stated) == ((name,), False)
    bare = load(classifier, num_classes=0, format="vitlab")
    assert bare.module.num_classes is None
    assert "head" not in bare.variables["params"]
    assert dict(bare.report.unused) == dict.fromkeys(
        ("head/bias", "head/kernel"), "of other classes"
    )
    five = load(classifier, num_classes=5)
    assert five.report.missing == ("head/bias", "head/kernel")
    assert five.classes == ()
    assert five.variables["params"]["head"]["kernel"].shape == (16, 5)
    assert load(classifier, num_classes=3).report == whole.report


def rewrite(path, **changes):
    """The file with other parts of its metadata."""
    with safetensors.safe_open(path, framework="numpy") as file:
        about = json.loads(file.metadata()["vitlab"])
    about = json.dumps({**about, **changes})
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path, {"vitlab": about})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "vit", "width": 16}}, "another version of vitlab: "),
        ({"model": {"name": "vit", "of_later": 1}}, "version of vitlab: .*of_later does not exist"),
        ({"model": {"name": ["vit"]}}, "another version of vitlab: "),
        ({"model": 3}, "another version of vitlab: it has no model"),
        ({"classes": None}, "another version of vitlab: it has no classes"),
        ({"image_size": ["a", "b"]}, "image_size"),
    ],
)
def test_what_does_not_fit_is_one_line(classifier, changes, message):
    rewrite(classifier, **changes)
    with pytest.raises(InputError, match=message) as error:
        load(classifier)
    assert "\n" not in str(error.value)


def test_a_parameter_that_is_lacking_is_not_made_up(classifier):
    arrays = safetensors.numpy.load_file(classifier)
    with safetensors.safe_open(classifier, framework="numpy") as file:
        metadata = file.metadata()
    del arrays["head/bias"]
    safetensors.numpy.save_file(arrays, classifier, metadata)
    with pytest.raises(InputError, match=r"head/bias is not there, and the model has \(3,\)"):
        load(classifier)
    safetensors.numpy.save_file(arrays, classifier, {"vitlab": "{"})
    with pytest.raises(InputError, match="is damaged: its metadata are no JSON"):
        load(classifier)
    safetensors.numpy.save_file(arrays, classifier)
    with pytest.raises(InputError, match="is no file of vitlab export"):
        load(classifier, format="vitlab")


def test_hints_for_what_it_says_itself_are_refused(classifier, models, tmp_path):
    with pytest.raises(InputError, match="says all of its model: leave out the hint num_heads"):
        load(classifier, num_heads=4)
    save_model(models["segmentation"], tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="hint num_classes is for a classifier's"):
        load(tmp_path / "other.safetensors", num_classes=5)
