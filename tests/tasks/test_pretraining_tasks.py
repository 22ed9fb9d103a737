"""What MAE and SimCLR draw for an example, count, and measure, whatever batch it is in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.evaluation import collapse
from vitlab.tasks.task import task_class

BACKBONE = {"name": "vit", "width": 8, "depth": 1, "num_heads": 2, "patch_size": 4}
MAE = {"backbone": BACKBONE, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
SIMCLR = {"backbone": BACKBONE, "projector_layers": 2, "projector_dim": 6}
PLAIN = {"crop_area": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": 0.0, "greyscale": 0.0,
         "color_jitter_prob": 0.0, "blur": (0.0, 0.0)}  # fmt: skip


def make(name, model, augment=None):
    if name == "simclr" and augment is None:
        augment = {"blur_kernel": 0.4}  # of images of 8 pixels
    return task_class(name).from_config(model, {}, augment or {}, (), jnp.float32)


def batch(rows=6, size=8):
    images = np.random.default_rng(0).integers(0, 256, (rows, size, size, 3), np.uint8)
    ids = jnp.arange(rows, dtype=jnp.int32)
    mask = jnp.arange(rows) < rows - 2
    return {"image": jnp.asarray(images), "mask": mask, "id": ids, "epoch": jnp.zeros_like(ids)}


def normalize(pixels):
    return pixels.astype(jnp.float32) / 127.5 - 1


def some(rows, index):
    return {key: value[jnp.asarray(index)] for key, value in rows.items()}


@pytest.fixture(scope="module")
def mae():
    task = make("mae", MAE)
    return task, jax.jit(task.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


@pytest.fixture(scope="module")
def simclr():
    task = make("simclr", SIMCLR)
    return task, jax.jit(task.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model", "drawn"), [
    ("mae", MAE, "noise"), ("simclr", SIMCLR, "image")
])  # fmt: skip
def test_draws_belong_to_the_example_and_the_epoch(name, model, drawn):
    task, rows = make(name, model), batch()
    augment = jax.jit(lambda rows, seed: task.augment(rows, normalize, seed, 0)[drawn])
    first = augment(rows, 0)
    np.testing.assert_allclose(augment(some(rows, [4, 1]), 0), first[jnp.array([4, 1])], atol=1e-6)
    for other in (augment({**rows, "epoch": rows["epoch"] + 1}, 0), augment(rows, 1)):
        assert all(np.abs(a - b).max() > 0.1 for a, b in zip(first, other, strict=True))
    if name == "simclr":
        assert np.abs(first[:, 0] - first[:, 1]).max(axis=(1, 2, 3)).min() > 0.1


def test_views_without_augmentation_are_the_image():
    rows = batch()
    views = make("simclr", SIMCLR, PLAIN).augment(rows, normalize, 0, 0)["image"]
    for view in range(2):
        np.testing.assert_allclose(views[:, view], normalize(rows["image"]), atol=1e-6)


def test_what_is_a_pair_differs_between_the_views():
    rows = batch()
    dark = make("simclr", SIMCLR, {**PLAIN, "solarize": (0.0, 1.0)})
    first, second = dark.augment(rows, normalize, 0, 0)["image"].swapaxes(0, 1)
    np.testing.assert_allclose(first, normalize(rows["image"]), atol=1e-6)
    np.testing.assert_allclose(second, jnp.where(first >= 0, -first, first), atol=1e-6)


def test_views_may_have_another_size():
    task = make("simclr", SIMCLR, {"size": 4, "blur": (0.0, 0.0)})
    views = jax.eval_shape(lambda rows: task.augment(rows, normalize, 0, 0)["image"], batch())
    assert views.shape == (6, 2, 4, 4, 3)
    variables = jax.eval_shape(task.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    table = variables["params"]["backbone"]["position_embedding"]["table"]
    assert table.shape == (1, 1, 8)  # of the views


def test_evaluation_of_mae_is_the_same_in_any_batch(mae):
    """Masks belong to the examples: the mean over a split depends on no order and no batch."""
    task, variables = mae
    rows = batch()
    evaluate = jax.jit(lambda rows: task.evaluate(variables, rows, normalize)["loss"])
    losses = evaluate(rows)
    np.testing.assert_allclose(evaluate(some(rows, [5, 0])), losses[jnp.array([5, 0])], rtol=1e-5)
    mean = task.metrics({"loss": np.asarray(losses)}, None)["loss"]
    np.testing.assert_allclose(mean, losses.mean(), rtol=1e-6)
    shown = jax.jit(lambda rows: task.show(variables, rows, normalize))(rows)
    hidden = np.asarray(shown["hidden"])
    assert hidden.mean() == 0.75
    visible = np.where(hidden, 0, shown["reconstruction"] - normalize(rows["image"]))
    np.testing.assert_allclose(visible, 0, atol=1e-6)


def test_padding_has_no_loss(mae):
    task, variables = mae
    rows = task.augment(batch(), normalize, 0, 0)
    loss = jax.jit(lambda rows: task.loss(variables["params"], {}, rows, jax.random.key(0))[0])
    value, count, _ = loss(rows)["reconstruction"]
    expected, _, _ = loss(some(rows, range(4)))["reconstruction"]
    assert count == 4
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_the_measured_spread_is_that_of_the_projections(simclr):
    task, variables = simclr
    rows = task.augment({**batch(), "mask": jnp.ones(6, bool)}, normalize, 0, 0)
    params = variables["params"]
    state = {k: v for k, v in variables.items() if k != "params"}

    @jax.jit
    def measured(params, state):
        _, metrics, _ = task.loss(params, state, rows, jax.random.key(0))
        views = rows["image"].reshape(-1, 8, 8, 3)
        projections, _ = task.model.apply(
            {"params": params, **state}, views, train=True, mutable=["batch_stats"]
        )[0]
        return metrics["feature_std"][0], projections

    spread, projections = measured(params, state)
    assert 0.5 < spread < 1
    np.testing.assert_allclose(spread, collapse.feature_std(np.asarray(projections)), rtol=1e-5)
