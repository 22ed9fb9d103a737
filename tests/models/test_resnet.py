import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from vitlab.errors import InputError
from vitlab.models.resnet import ResNet, conv, max_pool

FIXTURES = Path(__file__).parent.parent / "fixtures"
BASIC = {"variant": "18", "depths": (1, 2, 1, 1), "widths": (8, 12, 16, 24), "num_classes": 5}
BOTTLENECK = {"variant": "50", "depths": (1, 2, 1, 1), "widths": (4, 8, 8, 12), "num_classes": 5}


def from_torch(fixture, prefix="param:"):
    """Variables from torchvision's names: layer2.0.bn1.running_var, layer2.0.downsample.0.weight"""
    variables = {}
    for key in (k for k in fixture.files if k.startswith(prefix)):
        path, _, leaf = key.removeprefix(prefix).rpartition(".")
        value = fixture[key]
        if leaf == "weight":
            leaf = "scale" if value.ndim == 1 else "kernel"
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        collection = "batch_stats" if leaf.startswith("running") else "params"
        path = re.sub(r"layer(\d)\.(\d+)\.", r"stage_\1/block_\2/", path)
        path = path.replace("downsample.0", "downsample_conv").replace("bn", "norm")
        path = path.replace("downsample.1", "downsample_norm").replace("fc", "head")
        path = {"conv1": "stem_conv", "norm1": "stem_norm"}.get(path, path)
        leaf = leaf.removeprefix("running_")
        variables[f"{collection}/{path}/{leaf}"] = value
    return unflatten_dict(variables, sep="/")


def apply(model, variables, images, **kwargs):
    with jax.default_matmul_precision("highest"):
        return jax.jit(lambda v, x: model.apply(v, x, **kwargs))(variables, images)


def assert_close(got, want):
    error = np.abs(np.asarray(got, np.float64) - want).max()
    assert got.shape == want.shape
    assert error <= min(1e-4, 1e-5 * np.abs(want).max()), error


@pytest.fixture(scope="module", params=["basic", "bottleneck"])
def reference(request):
    fixture = np.load(FIXTURES / f"resnet_{request.param}.npz")
    model = ResNet(**(BASIC if request.param == "basic" else BOTTLENECK))
    return model, fixture, from_torch(fixture)


@pytest.fixture(scope="module")
def trained(reference):
    """(logits, intermediates), updated statistics of one forward pass in training mode."""
    model, fixture, variables = reference
    return apply(model, variables, fixture["images"], train=True, mutable=["batch_stats"])


def test_eval_matches_timm(reference):
    model, fixture, variables = reference
    logits, out = apply(model, variables, fixture["images"])
    stages = {f"stage_{i}" for i in range(1, 5)}
    assert out.keys() == {"stem_conv", "stem", *stages, "pre_logits", "logits"}
    for i in range(1, 5):
        assert_close(out[f"stage_{i}"], fixture[f"stage_{i}"])
    assert_close(logits, fixture["logits"])


def test_training_normalises_by_the_batch_as_torch_does(reference, trained):
    _, fixture, _ = reference
    assert_close(trained[0][0], fixture["train_logits"])


def test_running_statistics_are_torchs_but_for_the_biased_variance(reference, trained):
    _, fixture, variables = reference
    (_, out), updated = trained
    before = flatten_dict(variables["batch_stats"], sep="/")
    ours = flatten_dict(updated["batch_stats"], sep="/")
    torchs = flatten_dict(from_torch(fixture, "train:")["batch_stats"], sep="/")
    assert ours.keys() == torchs.keys()
    for path in (p for p in ours if p.endswith("mean")):
        np.testing.assert_allclose(ours[path], torchs[path], rtol=0, atol=1e-5)
    # Values per channel that each norm sees: 2 images of 19x26 after the stem's convolution.
    counts = {"stem_norm": 2 * 19 * 26}
    counts |= {f"stage_{i}/block_0/norm2": out[f"stage_{i}"][..., 0].size for i in range(1, 5)}
    for path, n in counts.items():
        old = 0.9 * before[f"{path}/var"]
        unbiased = n / (n - 1) * (ours[f"{path}/var"] - old)
        np.testing.assert_allclose(unbiased, torchs[f"{path}/var"] - old, rtol=2e-4)


def test_small_stem_matches_timm_with_the_simclr_cifar_stem():
    fixture = np.load(FIXTURES / "resnet_basic.npz")
    model = ResNet(**BASIC, stem="small")
    variables = from_torch(fixture)
    variables["params"]["stem_conv"]["kernel"] = fixture["small_kernel"].transpose(2, 3, 1, 0)
    images = fixture["images"][:, :17, :21]
    assert_close(apply(model, variables, images)[0], fixture["small_logits"])
    maps = jax.eval_shape(lambda v, x: model.apply(v, x, method="feature_maps"), variables, images)
    assert {k: m.shape[1:] for k, m in maps.items()} == {
        1: (17, 21, 8), 2: (9, 11, 12), 4: (5, 6, 16), 8: (3, 3, 24)
    }  # fmt: skip


def test_frozen_norm_trains_with_the_running_statistics_and_keeps_them():
    fixture = np.load(FIXTURES / "resnet_basic.npz")
    variables = from_torch(fixture)
    model = ResNet(**BASIC, norm="frozen")
    (logits, _), updated = apply(
        model, variables, fixture["images"], train=True, mutable=["batch_stats"]
    )
    assert_close(logits, fixture["logits"])
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"])


def test_pmap_axis_gives_the_statistics_of_the_whole_batch():
    fixture = np.load(FIXTURES / "resnet_basic.npz")
    model = ResNet(**BASIC, axis_name="batch")
    step = jax.vmap(  # vmap's collectives are pmap's, without needing two devices
        lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]),
        in_axes=(None, 0),
        axis_name="batch",
    )
    with jax.default_matmul_precision("highest"):
        (logits, _), _ = jax.jit(step)(from_torch(fixture), fixture["images"][:, None])
    assert_close(logits[:, 0], fixture["train_logits"])


@pytest.mark.parametrize(
    ("variant", "count"),
    [
        ("18", 11_689_512),
        ("34", 21_797_672),
        ("50", 25_557_032),
        ("101", 44_549_160),
        ("152", 60_192_808),
    ],
)
def test_published_parameter_counts_and_every_parameter_has_a_layer(variant, count):
    model = ResNet(variant, num_classes=1000)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    assert sum(p.size for p in jax.tree.leaves(params)) == count
    layers = {model.layer_of(path) for path in flatten_dict(params, sep="/")}
    assert layers == set(range(model.num_layers + 2))


def test_layers_count_blocks_through_the_network():
    model = ResNet("50")
    assert model.num_layers == 16
    assert model.layer_of("stem_conv/kernel") == 0
    assert model.layer_of("stage_1/block_0/downsample_norm/scale") == 1
    assert model.layer_of("stage_3/block_2/conv1/kernel") == 3 + 4 + 3
    assert model.layer_of("head/bias") == 17
    with pytest.raises(InputError, match="stage_1/block_3/conv1/kernel"):
        model.layer_of("stage_1/block_3/conv1/kernel")


def test_feature_maps_are_the_stages_at_their_strides():
    model = ResNet(**BASIC)
    images = jnp.zeros((1, 64, 96, 3))
    maps, _ = jax.eval_shape(
        lambda k: model.init_with_output(k, images, method="feature_maps"), jax.random.key(0)
    )
    assert {stride: m.shape for stride, m in maps.items()} == {
        2: (1, 32, 48, 8), 4: (1, 16, 24, 8), 8: (1, 8, 12, 12), 16: (1, 4, 6, 16),
        32: (1, 2, 3, 24),
    }  # fmt: skip


def test_bfloat16_computes_in_it_and_keeps_float32_parameters_and_statistics():
    model = ResNet(**{**BASIC, "num_classes": None}, dtype=jnp.bfloat16)

    def run(key):
        images = jnp.ones((2, 32, 32, 3))
        variables = model.init(key, images)
        return variables, model.apply(variables, images, train=True, mutable=["batch_stats"])

    variables, ((features, out), updated) = jax.eval_shape(run, jax.random.key(0))
    assert features.shape == (2, 24)
    assert "logits" not in out
    assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves((variables, updated))} == {jnp.dtype(jnp.float32)}


def test_initial_values():
    model = ResNet(**BOTTLENECK, head_init_std=0.0)

    @jax.jit  # returning few of the parameters keeps the compiler from compiling the others
    def init(key):
        params = model.init(key, jnp.ones((1, 8, 8, 3)))["params"]
        block = params["stage_4"]["block_0"]
        return block["norm2"]["scale"], block["norm3"]["scale"], params["head"]["kernel"]

    middle, last, head = init(jax.random.key(0))
    assert (middle == 1).all()
    assert (last == 0).all()
    assert (head == 0).all()
    # He over the outputs: variance 2 / (3 * 3 * 12), whatever the inputs.
    layer = conv(12, 3, 1, jnp.float32, name=None)
    kernel = layer.init(jax.random.key(0), jnp.ones((1, 3, 3, 48)))["params"]["kernel"]
    assert np.var(kernel) == pytest.approx(2 / 108, rel=0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variant": "51"}, "variant '51' is not one of 18, 34, 50, 101, 152"),
        ({"variant": 50}, "variant 50 is not one of"),
        ({"norm": "layer"}, "norm 'layer' is not one of batch, frozen"),
        ({"stem": "cifar"}, "stem 'cifar' is not one of imagenet, small"),
        ({"depths": (1, 1)}, r"depths \(1, 1\) and widths \(64, 128, 256, 512\) must be as many"),
        ({"widths": (8, 8, 8, 0)}, r"widths \(8, 8, 8, 0\) must be one to four positive"),
    ],
)
def test_wrong_fields_are_named_in_one_line(fields, message):
    with pytest.raises(InputError, match=message) as error:
        ResNet(**fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 2)])
def test_the_pool_and_its_gradient_are_flax_s(size):
    rng = np.random.default_rng(0)
    # Few values, so that windows have several largest: the first one counts.
    x = jnp.asarray(rng.integers(0, 4, (2, *size, 3)), jnp.float32)

    def flax_pool(x):
        return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))

    expected, back = jax.vjp(flax_pool, x)
    found, back_found = jax.vjp(max_pool, x)
    np.testing.assert_array_equal(found, expected)
    broken = x.at[0, 0, 0, 0].set(jnp.nan)
    np.testing.assert_array_equal(max_pool(broken), flax_pool(broken))
    weights = jnp.asarray(rng.integers(1, 9, found.shape), jnp.float32)
    # Where all is 0 the padding may be the first, and a ReLU has no gradient there.
    here = np.asarray(x) > 0
    np.testing.assert_array_equal(back_found(weights)[0] * here, back(weights)[0] * here)
