"""FLOPs of a training step: the closed formula of a ViT, XLA's count, loops and what is computed
again."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training.test_step import CLASSES, NORMALIZE, make_batch, make_state, make_task
from vitlab.models.resnet import ResNet
from vitlab.models.vit import ViT
from vitlab.training import flops
from vitlab.training.step import make_train_step


def vit_forward(tokens, width, depth, mlp, patches, patch_values, classes):
    """Two for each multiplication and addition of a ViT's forward pass, and those of its patches'
    embedding."""
    block = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * mlp
    embedding = patches * patch_values * width
    return 2 * (depth * block + embedding + width * classes), 2 * embedding


def traced(loss, *args):
    return jax.jit(jax.grad(loss)).trace(*args)


def vit_step(**fields):
    """Of ViT-B/16 on one image of 224 x 224; nothing is computed."""
    model = ViT("B/16", num_classes=1000, **fields)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def loss(variables, images):
        return jnp.square(model.apply(variables, images, train=True)[0]).sum()

    return flops.count(traced(loss, variables, images).jaxpr)


def test_a_training_image_of_vit_b16_is_105_gflop():
    forward, embedding = vit_forward(197, 768, 12, 3072, 196, 16 * 16 * 3, 1000)
    # The backward pass is twice the forward, but the images want no gradient.
    expected = 3 * forward - embedding
    assert vit_step(scan=True) == expected
    assert expected / 1e9 == pytest.approx(105.15, abs=0.01)


@pytest.mark.parametrize(
    ("scan", "remat"),
    [
        pytest.param(True, "full", marks=pytest.mark.slow),
        (True, "dots_saveable"),
        pytest.param(False, "full", marks=pytest.mark.slow),
        pytest.param(False, "dots_saveable", marks=pytest.mark.slow),
    ],
)
def test_what_is_computed_again_and_loops_change_nothing(scan, remat):
    def count(**fields):
        task = make_task(depth=3, **fields)
        return step_count(task)

    assert count(scan=scan, remat=remat) == count() > 0


def step_count(task, accumulate=1, frozen=None, wrap=jax.jit):
    optimizer = optax.sgd(0.1)
    state = make_state(task, optimizer)
    frozen = frozen and jax.tree_util.tree_map_with_path(frozen, state.params)
    step = make_train_step(task, optimizer, NORMALIZE, 0, accumulate, None, frozen)
    return flops.count(wrap(step).trace(state, make_batch()).jaxpr)


def test_accumulation_costs_nothing():
    """Though the counts are taken by a pass of their own, which XLA leaves out."""
    assert step_count(make_task(), accumulate=4) == step_count(make_task())


def test_gradients_of_what_is_frozen_do_not_count():
    def all_but_the_head(path, _):
        return "head" not in jax.tree_util.keystr(path)

    task = make_task()
    rows, classes, width = 8, len(CLASSES), 8
    head = 2 * rows * classes * width
    forward = flops.count(
        jax.jit(lambda v, x: task.model.apply(v, x)[0])
        .trace(make_state(task, optax.sgd(0.1)).variables(), jnp.zeros((rows, 8, 8, 1)))
        .jaxpr
    )
    assert step_count(task, frozen=all_but_the_head) == forward + head


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 4])
def test_both_gradients_of_a_convolution_cost_as_much_as_itself(stride, groups):
    images, kernel = jnp.zeros((2, 8, 8, 4)), jnp.zeros((3, 3, 4 // groups, 8))

    def convolved(images, kernel):
        return jax.lax.conv_general_dilated(
            images,
            kernel,
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    forward = flops.count(jax.jit(convolved).trace(images, kernel).jaxpr)
    assert forward == 2 * 2 * (8 // stride) ** 2 * 8 * 9 * (4 // groups)

    def loss(pair):
        return jnp.square(convolved(*pair)).sum()

    assert flops.count(traced(loss, (images, kernel)).jaxpr) == 3 * forward


def test_loops_branches_and_devices():
    x = jnp.zeros((4, 4))
    one = 2 * 4**3

    def count(function):
        return flops.count(jax.jit(function).trace(x).jaxpr)

    assert count(lambda x: jax.lax.scan(lambda c, _: (c @ x, None), x, None, 5)[0]) == 5 * one
    assert count(lambda x: jax.lax.fori_loop(0, 5, lambda _, c: c @ x, x)) == 5 * one
    assert count(lambda x: jax.lax.while_loop(lambda c: c[0, 0] < 1, lambda c: c @ x, x)) == one
    assert count(lambda x: jax.lax.cond(x[0, 0] < 1, lambda: x @ x @ x, lambda: x)) == 2 * one
    assert count(lambda x: (x @ x).sum() * 0 + 1) == one  # it may not be finite
    assert count(lambda x: (x @ x, x)[1]) == 0
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    rows = jax.sharding.PartitionSpec("data")
    assert count(jax.shard_map(lambda x: x @ x, mesh=mesh, in_specs=rows, out_specs=rows)) == one


def test_xla_counts_about_as_many():
    """Its count has the norms, softmaxes and updates too, and skips what meets padding."""
    model = ResNet("18", num_classes=10)
    images = jax.ShapeDtypeStruct((1, 192, 192, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def resnet(variables, images):
        return jnp.square(model.apply(variables, images)[0]).sum()

    vit = ViT(width=64, depth=1, num_heads=1, patch_size=16, num_classes=10)
    tokens = jax.eval_shape(vit.init, jax.random.key(0), images)

    def plain(variables, images):
        return jnp.square(vit.apply(variables, images)[0]).sum()

    for loss, args in ((resnet, (variables, images)), (plain, (tokens, images))):
        program = traced(loss, *args)
        theirs = program.lower().compile().cost_analysis()["flops"]
        assert 0.9 < theirs / flops.count(program.jaxpr) < 1.1, theirs


def test_a_fused_attention_counts_its_products(monkeypatch):
    """cuDNN's, traced where there is none."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(cudnn, "check_is_flash_attention", lambda *args, **kwargs: None)
    x = jax.ShapeDtypeStruct((2, 16, 4, 8), jnp.bfloat16)

    def counts(implementation):
        def attention(x):
            return jax.nn.dot_product_attention(x, x, x, implementation=implementation)

        def loss(x):
            return jnp.square(attention(x).astype(jnp.float32)).sum()

        forward = flops.count(jax.jit(attention).trace(x).jaxpr)
        return forward, flops.count(traced(loss, x).jaxpr)

    forward = 2 * 2 * 2 * 4 * 16 * 16 * 8
    assert counts("cudnn") == counts("xla") == (forward, 3 * forward)
