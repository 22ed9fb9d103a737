import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from vitlab.errors import InputError
from vitlab.models.convnext import ConvNeXt

FIXTURES = Path(__file__).parent.parent / "fixtures"
TINY = {"depths": (1, 2, 1, 1), "widths": (8, 12, 16, 24), "num_classes": 5}
NAMES = {
    "stem.0": "stem_conv",
    "stem.1": "stem_norm",
    "downsample.0": "downsample_norm",
    "downsample.1": "downsample_conv",
    "conv_dw": "dwconv",
    "mlp.": "",
    "head.norm": "norm",
    "head.fc": "head",
}


def from_timm(fixture):
    """Parameters from timm's names: stages.1.downsample.0, stages.1.blocks.0.mlp.fc1, head.norm"""
    params = {}
    for key in (k for k in fixture.files if k.startswith("param:")):
        path, _, leaf = key.removeprefix("param:").rpartition(".")
        value = fixture[key]
        if leaf == "weight":
            leaf = "scale" if value.ndim == 1 else "kernel"
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        leaf = "layer_scale" if leaf == "gamma" else leaf
        path = re.sub(r"stages\.(\d)\.", lambda m: f"stage_{int(m[1]) + 1}/", path)
        path = re.sub(r"blocks\.(\d+)\.?", r"block_\1/", path)
        for theirs, ours in NAMES.items():
            path = path.replace(theirs, ours)
        params[f"params/{path.rstrip('/')}/{leaf}"] = value
    return unflatten_dict(params, sep="/")


def assert_close(got, want):
    error = np.abs(np.asarray(got, np.float64) - want).max()
    assert got.shape == want.shape
    assert error <= min(1e-4, 1e-5 * np.abs(want).max()), error


@pytest.fixture(scope="module")
def fixture():
    return np.load(FIXTURES / "convnext.npz")


def test_matches_timm(fixture):
    # A rate of stochastic depth changes nothing in evaluation.
    model = ConvNeXt(**TINY, drop_path=0.5)
    with jax.default_matmul_precision("highest"):
        logits, out = jax.jit(model.apply)(from_timm(fixture), fixture["images"])
    assert out.keys() == {"stem", *(f"stage_{i}" for i in range(1, 5)), "pre_logits", "logits"}
    for i in range(1, 5):
        assert_close(out[f"stage_{i}"], fixture[f"stage_{i}"])
    assert_close(logits, fixture["logits"])


def test_drop_path_rises_linearly_and_drops_whole_branches(fixture):
    """256 equal images: in the first block (rate 0) they stay equal; in the last (rate 0.9) each
    gets either nothing of the branch or ten times it."""
    model = ConvNeXt(**TINY, drop_path=0.9)
    images = np.repeat(fixture["images"][:1], 256, axis=0)
    variables = from_timm(fixture)
    stage = variables["params"]["stage_4"]["block_0"]
    stage["fc2"]["kernel"] = np.zeros_like(stage["fc2"]["kernel"])
    stage["fc2"]["bias"] = np.ones_like(stage["fc2"]["bias"])
    stage["layer_scale"] = np.ones_like(stage["layer_scale"])

    @jax.jit
    def run(variables, images):
        _, out = model.apply(variables, images, train=True, rngs={"dropout": jax.random.key(0)})
        # The input of the last block is the downsampled stage 3: take the branch off by hand.
        bare = jax.tree.map(lambda x: x, variables)
        bare["params"]["stage_4"]["block_0"]["fc2"]["bias"] = jnp.zeros(24)
        _, without = model.apply(bare, images, train=True, rngs={"dropout": jax.random.key(0)})
        return out["stage_1"], out["stage_3"], out["stage_4"] - without["stage_4"]

    stage_1, stage_3, branch = map(np.asarray, run(variables, images))
    assert (np.ptp(stage_1, axis=0) < 1e-5).all()
    assert (np.ptp(stage_3, axis=0) > 1e-2).any()
    kept = branch[:, 0, 0, 0] > 1
    np.testing.assert_allclose(branch[kept], 10, rtol=1e-4)
    np.testing.assert_array_equal(branch[~kept], 0)
    # 256 draws of probability 0.1 have a standard deviation of 4.8.
    assert 11 <= kept.sum() <= 41


@pytest.mark.parametrize(
    ("variant", "count"), [("T", 28_589_128), ("S", 50_223_688), ("B", 88_591_464)]
)
def test_published_parameter_counts_and_every_parameter_has_a_layer(variant, count):
    model = ConvNeXt(variant, num_classes=1000)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    assert sum(p.size for p in jax.tree.leaves(params)) == count
    layers = {model.layer_of(path) for path in flatten_dict(params, sep="/")}
    assert layers == set(range(model.num_layers + 2))


def test_layers_count_blocks_through_the_network():
    model = ConvNeXt("S")
    assert model.num_layers == 36
    assert model.layer_of("stem_norm/scale") == 0
    assert model.layer_of("stage_1/block_2/layer_scale") == 3
    assert model.layer_of("stage_2/downsample_conv/kernel") == 4
    assert model.layer_of("stage_2/block_0/fc1/kernel") == 4
    assert model.layer_of("norm/scale") == model.layer_of("head/kernel") == 37
    with pytest.raises(InputError, match="stage_2/block_3/fc1/kernel"):
        model.layer_of("stage_2/block_3/fc1/kernel")


@pytest.mark.parametrize("patch_size", [4, 1])
def test_feature_maps_are_the_stages_at_their_strides(patch_size):
    model = ConvNeXt(**TINY, patch_size=patch_size)
    images = jnp.zeros((1, 64, 96, 3))
    maps, _ = jax.eval_shape(
        lambda k: model.init_with_output(k, images, method="feature_maps"), jax.random.key(0)
    )
    assert {stride: m.shape for stride, m in maps.items()} == {
        patch_size * s: (1, 64 // (patch_size * s), 96 // (patch_size * s), c)
        for s, c in [(1, 8), (2, 12), (4, 16), (8, 24)]
    }


def test_bfloat16_computes_in_it_and_keeps_float32_parameters():
    model = ConvNeXt(**{**TINY, "num_classes": None}, dtype=jnp.bfloat16)
    (features, out), variables = jax.eval_shape(
        model.init_with_output, jax.random.key(0), jnp.ones((2, 32, 32, 3))
    )
    assert features.shape == (2, 24)
    assert "logits" not in out
    assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_images_without_a_pixel_in_the_last_stage_are_refused():
    model = ConvNeXt(**TINY)
    with pytest.raises(InputError, match="28x64 are too small .* at least 32 a side"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 64, 3)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variant": "XL"}, "variant 'XL' is not one of T, S, B"),
        ({"drop_path": 1.0}, r"drop_path 1.0 must be in \[0, 1\)"),
        ({"patch_size": 0}, "patch_size 0 must be at least 1"),
        ({"widths": (1, 1)}, r"widths \(1, 1\) must be four positive numbers"),
    ],
)
def test_wrong_fields_are_named_in_one_line(fields, message):
    with pytest.raises(InputError, match=message) as error:
        ConvNeXt(**fields)
    assert "\n" not in str(error.value)
