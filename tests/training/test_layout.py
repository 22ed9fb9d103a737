import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from vitlab.errors import InputError
from vitlab.models.vit import ViT
from vitlab.training.layout import (
    AXES,
    LAYOUT,
    LayoutRule,
    bytes_on_a_device,
    lay_out,
    lay_out_like,
)
from vitlab.training.optimizer import KERNELS_DECAY, OptimizerConfig, Rule, make_optimizer

ADAMW = OptimizerConfig(weight_decay=0.1, clip_norm=1.0)


def mesh(data=1, fsdp=1, tensor=1):
    return AbstractMesh((data, fsdp, tensor), AXES)


@pytest.fixture(scope="module")
def vit_b():
    model = ViT("B/16", num_classes=1000, pool="map", num_registers=4)
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]


def held(params, sizes, config=ADAMW):
    """Bytes on one device of the parameters, the optimizer's state and the average of a ViT-B."""
    own = lay_out(LAYOUT, params, sizes)
    optimizer = make_optimizer(config, optax.constant_schedule(1e-3), params)
    state = {
        "params": params,
        "optimizer": jax.eval_shape(optimizer.init, params),
        "ema": {"params": params},
    }
    placed = lay_out_like(state, params, own, sizes)
    return bytes_on_a_device(
        jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, placed)
    )


def test_eight_devices_hold_an_eighth_of_a_vit_b(vit_b):
    whole = held(vit_b, mesh(data=8))
    assert whole / held(vit_b, mesh(fsdp=8)) > 7.8
    assert whole / held(vit_b, mesh(fsdp=4, tensor=2)) > 7.5
    assert whole / held(vit_b, mesh(tensor=4)) > 3


@pytest.mark.parametrize("name", ["adamw", "lamb", "lion", "lars", "muon", "adafactor"])
def test_every_optimizers_state_is_split(vit_b, name):
    decay = 0.0 if name == "adafactor" else 0.1  # two groups, of what decays and what does not
    frozen = Rule("patch_embedding/.*", freeze=True)
    config = OptimizerConfig(name=name, weight_decay=decay, rules=(frozen, *KERNELS_DECAY))
    assert held(vit_b, mesh(data=8), config) / held(vit_b, mesh(fsdp=8), config) > 7


def test_heads_and_mlp_are_split_and_joined(vit_b):
    specs = jax.tree.map(lambda s: s.spec, lay_out(LAYOUT, vit_b, mesh(2, 2, 2)))
    block = specs["encoder"]["block_0"]
    assert block["attention"]["value"] == {"kernel": P("fsdp", "tensor"), "bias": P("tensor")}
    assert block["attention"]["out"] == {"kernel": P("tensor", "fsdp"), "bias": P()}
    assert block["mlp"]["fc1"]["kernel"] == P("fsdp", "tensor")
    assert block["mlp"]["fc2"]["kernel"] == P("tensor", "fsdp")
    assert block["norm1"] == {"scale": P(), "bias": P()}  # small: whole
    assert specs["head"]["kernel"] == P(None, "fsdp")  # 768 x 1000: the larger one


def test_a_stem_of_convolutions_is_split_as_what_is_no_block():
    model = ViT(width=256, depth=1, num_heads=4, patch_size=4, stem="conv")
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    for sizes in (mesh(2, 2, 2), mesh(fsdp=2), mesh(tensor=2)):
        stem = lay_out(LAYOUT, params, sizes)["patch_embedding"]
        split = P(None, None, None, "fsdp") if sizes.shape["fsdp"] > 1 else P()
        assert stem["out"]["kernel"].spec == split


def test_a_rule_of_ones_own(vit_b):
    rules = (LayoutRule("head/kernel", ("tensor",)), LayoutRule(".*"))
    head = lay_out(rules, vit_b, mesh(1, 2, 2))["head"]
    assert head["kernel"].spec == P("tensor")


def test_tensor_is_refused_with_depthwise_convolutions():
    """XLA multiplies their gradients: see the reason in `lay_out`."""
    params = {"block": {"dwconv": {"kernel": jax.ShapeDtypeStruct((7, 7, 1, 64), jnp.float32)}}}
    lay_out(LAYOUT, params, mesh(data=2, fsdp=2))
    with pytest.raises(InputError, match="mesh.tensor must be 1"):
        lay_out(LAYOUT, params, mesh(tensor=2))


def test_what_does_not_divide_is_one_line(vit_b):
    with pytest.raises(InputError, match="mesh.tensor is 5, which does not divide"):
        lay_out(LAYOUT, vit_b, mesh(tensor=5))
    with pytest.raises(InputError, match="splits 3 dimensions"):
        lay_out((LayoutRule(".*", ("data", "fsdp", "tensor")),), vit_b, mesh())
    with pytest.raises(InputError, match="matches no parameter"):
        lay_out((LayoutRule("haed/.*"), LayoutRule(".*")), vit_b, mesh())
