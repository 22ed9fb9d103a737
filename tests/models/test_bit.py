import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from vitlab.errors import InputError
from vitlab.models.bit import BiT

FIXTURES = Path(__file__).parent.parent / "fixtures"
TINY = {"depths": (1, 2, 1, 1), "widths": (8, 8, 16, 24), "norm_groups": 4, "num_classes": 5}


def from_timm(fixture):
    """Parameters from timm's names: stages.1.blocks.0.{norm1,conv1,downsample.conv}, head.fc"""
    params = {}
    for key in (k for k in fixture.files if k.startswith("param:")):
        path, _, leaf = key.removeprefix("param:").rpartition(".")
        value = fixture[key]
        if leaf == "weight":
            leaf = "scale" if value.ndim == 1 else "kernel"
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        path = re.sub(
            r"stages\.(\d)\.blocks\.(\d+)\.",
            lambda m: f"stage_{int(m[1]) + 1}/block_{m[2]}/",
            path,
        )
        path = path.replace("downsample.conv", "downsample_conv").replace("stem.conv", "stem_conv")
        # timm's head is a 1x1 convolution.
        if path == "head.fc":
            path, value = "head", value[0, 0] if value.ndim == 4 else value
        params[f"params/{path}/{leaf}"] = value
    return unflatten_dict(params, sep="/")


def assert_close(got, want):
    error = np.abs(np.asarray(got, np.float64) - want).max()
    assert got.shape == want.shape
    assert error <= min(1e-4, 1e-5 * np.abs(want).max()), error


@pytest.fixture(scope="module")
def fixture():
    return np.load(FIXTURES / "bit.npz")


@pytest.fixture(scope="module")
def apply():
    """The tiny model: variables, images -> (logits, intermediates); compiled once."""
    with jax.default_matmul_precision("highest"):
        yield jax.jit(BiT(**TINY).apply)


def test_matches_timm(fixture, apply):
    logits, out = apply(from_timm(fixture), fixture["images"])
    assert out.keys() == {"stem", *(f"stage_{i}" for i in range(1, 5)), "pre_logits", "logits"}
    for i in range(1, 5):
        assert_close(out[f"stage_{i}"], fixture[f"stage_{i}"])
    assert_close(logits, fixture["logits"])


def test_kernels_count_only_up_to_scale_and_shift(fixture, apply):
    variables = from_timm(fixture)
    variables["params"]["stage_2"]["block_1"]["conv2"]["kernel"] *= 7.0
    variables["params"]["stem_conv"]["kernel"] += 3.0
    logits, _ = apply(variables, fixture["images"])
    np.testing.assert_allclose(logits, fixture["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("variant", "count"),  # timm's resnetv2_{50x1,50x3,101x1,101x3,152x2,152x4}_bit
    [
        ("R50x1", 25_549_352),
        ("R50x3", 217_319_080),
        ("R101x1", 44_541_480),
        ("R101x3", 387_934_888),
        ("R152x2", 236_335_208),
        ("R152x4", 936_533_224),
    ],
)
def test_published_parameter_counts_and_every_parameter_has_a_layer(variant, count):
    model = BiT(variant, num_classes=1000)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    assert sum(p.size for p in jax.tree.leaves(params)) == count
    layers = {model.layer_of(path) for path in flatten_dict(params, sep="/")}
    assert layers == set(range(model.num_layers + 2))


def test_layers_count_blocks_through_the_network():
    model = BiT("R101x1")
    assert model.num_layers == 33
    assert model.layer_of("stem_conv/kernel") == 0
    assert model.layer_of("stage_2/block_3/norm1/bias") == 3 + 4
    assert model.layer_of("norm/scale") == model.layer_of("head/kernel") == 34
    with pytest.raises(InputError, match="stage_5"):
        model.layer_of("stage_5/block_0/conv1/kernel")


@pytest.mark.parametrize(("stem", "first"), [("imagenet", 4), ("small", 1)])
def test_feature_maps_are_the_stages_at_their_strides(stem, first):
    model = BiT(**TINY, stem=stem)
    images = jnp.zeros((1, 64, 96, 3))
    maps, _ = jax.eval_shape(
        lambda k: model.init_with_output(k, images, method="feature_maps"), jax.random.key(0)
    )
    assert {stride: m.shape for stride, m in maps.items()} == {
        first * s: (1, 64 // (first * s), 96 // (first * s), c)
        for s, c in [(1, 32), (2, 32), (4, 64), (8, 96)]
    }


def test_bfloat16_computes_in_it_and_keeps_float32_parameters():
    model = BiT(**{**TINY, "num_classes": None}, dtype=jnp.bfloat16)
    (features, out), variables = jax.eval_shape(
        model.init_with_output, jax.random.key(0), jnp.ones((2, 32, 32, 3))
    )
    assert features.shape == (2, 96)
    assert "logits" not in out
    assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variant": "R50"}, "variant 'R50' is not R50, R101 or R152 with a width"),
        ({"variant": "R26x1"}, "variant 'R26x1'"),
        ({"variant": "R50x0"}, "variant 'R50x0'"),
        ({"stem": "cifar"}, "stem 'cifar' is not one of imagenet, small"),
        ({"depths": (1, 1)}, r"depths \(1, 1\) must be four positive numbers"),
        ({"norm_groups": 48}, r"norm_groups 48 must divide \(64, 128, 256, 512\)"),
    ],
)
def test_wrong_fields_are_named_in_one_line(fields, message):
    with pytest.raises(InputError, match=message) as error:
        BiT(**fields)
    assert "\n" not in str(error.value)
