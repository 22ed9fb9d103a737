"""What is computed does not depend on the devices that compute it."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from vitlab import config as config_lib
from vitlab.errors import InputError
from vitlab.training.parallelism import ParallelismConfig, make_mesh

ROOT = pathlib.Path(__file__).parents[2]


def on_eight_devices(model, dtype, steps, accumulate, *ways):
    script = ROOT / "tests/training/eight_devices.py"
    done = subprocess.run(
        [sys.executable, str(script), model, dtype, str(steps), str(accumulate), *ways],
        capture_output=True, text=True, cwd=ROOT, env={"JAX_PLATFORMS": "cpu", "PYTHONPATH": "."},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def first_step():
    """One step of a ViT in float32, on one device and on a mesh of eight with all axes."""
    return on_eight_devices("small", "float32", 1, 1, "one", "tensor")


@pytest.mark.slow
def test_the_first_step_agrees_in_float32(first_step):
    """Loss, and the gradient of each parameter to 1e-5 of its norm."""
    losses, gradients, _, _ = first_step["one"]
    other, others, _, _ = first_step["tensor"]
    np.testing.assert_allclose(other, losses, rtol=1e-5)
    for a, b in zip(gradients, others, strict=True):
        # 1e-7 for a key's bias, whose gradient is zero but for rounding
        assert np.linalg.norm(np.subtract(a, b)) <= 1e-5 * np.linalg.norm(a) + 1e-7


def test_fsdp_and_tensor_split_what_they_should(first_step):
    _, _, whole, _ = first_step["one"]
    _, _, quartered, shardings = first_step["tensor"]
    assert quartered < 0.4 * whole
    block = "encoder/block_0"
    assert shardings[f"{block}/attention/query/kernel"] == ["fsdp", "tensor"]
    assert shardings[f"{block}/attention/out/kernel"] == ["tensor", "fsdp"]
    assert shardings[f"{block}/mlp/fc1/bias"] == ["tensor"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "accumulate"),
    [
        ("vit", 1),
        ("vit", 2),
        ("resnet", 1),
        ("convnext", 1),
        ("mae", 1),
        ("mae", 2),
        ("simclr", 1),
        ("detection", 1),
        ("detection", 2),
        ("segmentation", 1),
        ("segmentation", 2),
        ("universal_segmentation", 1),
        ("universal_segmentation", 2),
    ],
)
def test_twenty_steps_agree_in_float64(model, accumulate):
    """With mixup, dropouts, stochastic depth and EMA, batch norm, masks, negatives that are on
    other devices, and boxes, pixels and segments of which each device has another number."""
    ways = ["one", "fsdp", "pmap"]
    if accumulate == 1:
        ways += ["data"] + ["tensor"] * (model != "convnext")
    else:
        ways += ["unparted"]
    results = on_eight_devices(model, "float64", 20, accumulate, *ways)
    losses = np.diff(results.pop("one")[0])  # of single steps
    assert losses.std() > 0.01
    for other, *_ in results.values():
        np.testing.assert_allclose(np.diff(other), losses, rtol=1e-9)


def test_a_mesh_that_cannot_be_is_one_line():
    def mesh(batch_size=8, **settings):
        return make_mesh(
            config_lib.section(settings, ParallelismConfig, "config.parallelism"), batch_size
        )

    assert dict(mesh().shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    for settings, said in [
        (dict(mesh={"data": 2}), "which are 2 devices: there are 1 cpu devices"),
        (dict(mesh={"fsdb": 2}), "mesh.fsdb does not exist; did you mean 'fsdp'"),
        (dict(mesh={"data": -1, "fsdp": -1}), "more than one -1"),
        (dict(mesh={"data": -1, "fsdp": 2}), "which are 2 devices: there are 1"),
        (dict(mesh={"fsdp": 0}), "mesh.fsdp is 0 but must be positive"),
        (dict(mode="pmap", mesh={"fsdp": 2}), "mesh.fsdp is 2: pmap splits over data alone"),
        (dict(rules=[dict(pattern=".*", split=("tensr",))]), "split has 'tensr'"),
        (dict(rules=[dict(pattern="(")]), "is no regular expression"),
    ]:
        with pytest.raises(InputError) as error:
            mesh(**settings)
        assert said in str(error.value)
