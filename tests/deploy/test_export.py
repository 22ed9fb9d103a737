"""What is in an exported file says the same as the run."""

import itertools
import json

import jax
import numpy as np
import pytest

from tests.deploy.models import MODELS, make
from vitlab.deploy.export import export
from vitlab.deploy.model import load_model, save_model
from vitlab.deploy.predictor import Predictor
from vitlab.errors import InputError

RNG = np.random.default_rng(0)


def images(*shape):
    """Smooth, so that rounding when they are resized does not differ much."""
    y, x = np.mgrid[: shape[1], : shape[2]]
    waves = [127 + 100 * np.sin(x / (4 + i)) * np.cos(y / (6 + i)) for i in range(shape[0])]
    colours = [np.roll(waves, 7 * channel, axis=2) // (channel + 1) for channel in range(3)]
    return np.stack(colours, axis=-1).astype(np.uint8)


def check(model, function, atol):
    """Two sizes and batches, against what a predictor makes of the same images."""
    predictor = Predictor(model)
    for shape in ((1, 50, 70), (3, 64, 41)):
        batch = images(*shape)
        rows, columns = (np.arange(n, dtype=np.float32) for n in batch.shape[1:3])
        outputs = predictor.outputs(list(batch))
        expected = jax.device_get(model.task.in_pixels(outputs, rows, columns))
        found, blank = function(batch), function(np.zeros_like(batch))
        mirrored = function(batch[..., ::-1].copy())
        assert found.keys() == expected.keys()
        if "boxes" in found:  # two that are as sure may change places
            far = np.abs(expected["boxes"][:, :, None] - found["boxes"][:, None]).max(axis=-1)
            other = expected["labels"][:, :, None] != found["labels"][:, None]
            order = (far + 1e3 * other).argmin(axis=2)
            for name in expected:
                index = order.reshape(*order.shape, *[1] * (found[name].ndim - 2))
                found = {**found, name: np.take_along_axis(found[name], index, axis=1)}
        for name, value in expected.items():
            assert found[name].shape == value.shape
            if name == "labels":
                assert (found[name] == value).mean() > 0.98
            elif name != "probabilities":
                close = {"boxes": 30, "masks": 3}.get(name, 1) * atol  # pixels; logits up to 10
                np.testing.assert_allclose(found[name], value, atol=close, err_msg=name)
        # And other images, or their channels turned round, would not have passed.
        key = next(name for name in ("labels", "logits", "masks", "scores") if name in found)
        for other in (blank, mirrored):
            if key == "labels":
                assert (other[key] == expected[key]).mean() < 0.97
            else:
                assert np.abs(other[key] - expected[key]).max() > 3 * atol


# Two among the quick tests, the others among the slow ones.
QUICK = (("classification", "stablehlo"), ("detection", "safetensors"))
BOTH = [
    pytest.param(*each, marks=[] if each in QUICK else pytest.mark.slow)
    for each in itertools.product(MODELS, ("stablehlo", "safetensors"))
]


@pytest.mark.parametrize(("task", "to"), BOTH)
def test_the_file_says_what_the_run_says(task, to, tmp_path):
    """Preprocessing included: within the difference of some grey levels."""
    model = make(task)
    check(model, export(model, str(tmp_path / "model"), to, "float32", (32, 48)), atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("task", MODELS)
def test_onnx_runtime_says_what_the_run_says(task, dtype, tmp_path):
    pytest.importorskip("jax2onnx")
    onnx = pytest.importorskip("onnx")
    model = make(task)
    path = str(tmp_path / "model.onnx")
    check(model, export(model, path, "onnx", dtype, (32, 48)), 0.01 if dtype == "float32" else 0.05)
    read = onnx.load(path)
    onnx.checker.check_model(read)
    (entry,) = (each for each in read.metadata_props if each.key == "vitlab")
    assert json.loads(entry.value)["classes"] == list(model.task.classes)
    assert [each.name for each in read.graph.input] == ["images"]


def convnet(name):
    """With convolutions of each kind, and a pool: on a CPU vitlab has other forms of them."""
    sizes = dict(depths=(1, 1, 1, 1), widths=(8, 8, 8, 256))
    return make("classification", settings=dict(name=name, **sizes))


@pytest.mark.parametrize("name", ["resnet", pytest.param("convnext", marks=pytest.mark.slow)])
def test_a_convnet_is_exported_as_convolutions(name, tmp_path):
    model = convnet(name)
    path = tmp_path / "model"
    check(model, export(model, str(path), "stablehlo", "float32", (32, 48)), atol=0.01)
    text = jax.export.deserialize(bytearray(path.read_bytes())).mlir_module()
    kernels = [x for x in jax.tree.leaves(model.variables["params"]) if x.ndim == 4]
    assert text.count("stablehlo.convolution(") == 3 * len(kernels)  # for each platform one


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "convnext"])
def test_a_convnet_is_convolutions_in_onnx_and_litert_too(name, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("jax2onnx")
    pytest.importorskip("litert_converter")
    model = convnet(name)
    path = str(tmp_path / "model.onnx")
    check(model, export(model, path, "onnx", "float32", (32, 48)), atol=0.01)
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    kernels = [x for x in jax.tree.leaves(model.variables["params"]) if x.ndim == 4]
    assert nodes.count("Conv") == len(kernels)
    exported = export(model, str(tmp_path / "model.tflite"), "tflite", "float32", (32, 48))
    check(model, lambda images: one_by_one(exported, images), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("task", MODELS)
def test_litert_says_what_the_run_says(task, tmp_path):
    pytest.importorskip("litert_converter")
    model = make(task)
    exported = export(model, str(tmp_path / "model.tflite"), "tflite", "float32", (32, 48))
    check(model, lambda images: one_by_one(exported, images), atol=1e-3)
    sizes = {"classification": "1, 32, 32, 3"}.get(task, "1, 32, 48, 3")
    padded = {} if task == "classification" else {"content": "int32[1, 2]"}
    assert exported.about["inputs"] == {**padded, "images": f"uint8[{sizes}]"}


def one_by_one(function, images):
    found = [function(image[None]) for image in images]
    return {key: np.concatenate([each[key] for each in found]) for key in found[0]}


def test_images_that_need_no_resizing_give_the_same_numbers(tmp_path):
    """Without a difference in preprocessing there is none in the outputs."""
    model = make("classification", "decode|resize((32,48))")
    function = export(model, str(tmp_path / "model"), "stablehlo", "float32", (32, 48))
    batch = RNG.integers(0, 256, (4, 32, 48, 3), dtype=np.uint8)
    expected = Predictor(model).outputs(list(batch))["logits"]
    np.testing.assert_allclose(function(batch)["logits"], expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_precisions_are_those_of_the_file(dtype, tmp_path):
    model = make("classification")
    sizes = {}
    for each in ("float32", dtype):
        path = tmp_path / f"{each}.stablehlo"
        function = export(model, str(path), "stablehlo", each, (32, 48))
        sizes[each] = path.stat().st_size
    check(model, function, atol=0.05)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(model.variables))
    assert sizes["float32"] - sizes[dtype] > 1.5 * parameters


def test_a_model_of_safetensors_is_the_same_to_the_bit(tmp_path):
    model = make("detection")
    path = tmp_path / "model.safetensors"
    save_model(model, path)
    read = load_model(path)
    assert read.about() == model.about()
    jax.tree.map(np.testing.assert_array_equal, read.variables, model.variables)


def test_files_that_are_no_models_are_one_line(tmp_path):
    import safetensors.numpy

    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, path)
    with pytest.raises(InputError, match="does not say what model it is of"):
        load_model(path)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="is damaged"):
        load_model(path)
    with pytest.raises(InputError, match="cannot be read"):
        load_model(tmp_path / "none.safetensors")
    model = make("classification")
    about = {**model.about(), "model": {**model.about()["model"], "of_another_version": 1}}
    safetensors.numpy.save_file({"a": np.zeros(3)}, path, {"vitlab": json.dumps(about)})
    with pytest.raises(InputError, match="of another version of vitlab: .*of_another_version"):
        load_model(path)


@pytest.mark.parametrize(
    ("to", "dtype", "line"),
    [
        ("coreml", "float32", "--format is 'coreml' but must be onnx, stablehlo, tflite, safe"),
        ("tflite", "float16", "is of --dtype float32 alone"),
        ("stablehlo", "int8", "--dtype is 'int8' but must be float32, bfloat16, float16"),
        ("onnx", "bfloat16", "float32 and float16"),
    ],
)
def test_what_there_is_not_is_one_line(to, dtype, line, tmp_path):
    with pytest.raises(InputError, match=line):
        export(make("classification"), str(tmp_path / "model"), to, dtype, (32, 48))


def test_a_random_or_unbounded_preprocessing_cannot_be_exported(tmp_path):
    model = make("classification", "decode|resize_small(32)")
    with pytest.raises(InputError, match="images of no certain size"):
        export(model, str(tmp_path / "model"), "stablehlo", "float32", (32, 48))
