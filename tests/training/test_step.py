"""The train step: accumulation, averages, divergence, and independence of the device count."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vitlab.errors import InputError
from vitlab.ops import keys
from vitlab.tasks.classification import Classification
from vitlab.training.step import TrainState, make_train_step, normalizer

CLASSES = ("a", "b", "c")
MODEL = {"name": "vit", "width": 8, "depth": 1, "num_heads": 2, "patch_size": 4, "pool": "gap",
         "head_init_std": 0.1}  # fmt: skip
NORMALIZE = normalizer(np.float32([2 / 255]), np.float32([-1]))


def make_task(augment=None, **model):
    return Classification.from_config({**MODEL, **model}, {}, augment or {}, CLASSES, jnp.float32)


def make_batch(rows=8):
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (rows, 8, 8, 1), np.uint8),
        "label": rng.integers(0, 3, rows, np.int32),
        "mask": np.ones(rows, bool),
        "id": np.arange(rows, dtype=np.int32),
        "epoch": np.zeros(rows, np.int32),
    }


def make_state(task, optimizer):
    variables = task.init(keys.batch_key(0, "init", 0), jnp.zeros((1, 8, 8, 1)))
    params = variables.pop("params")
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=variables,
        opt_state=optimizer.init(params),
        ema={"params": params, **variables},
        totals={},
        nonfinite_step=jnp.full((), -1, jnp.int32),
    )


def run(task, steps=1, accumulate=1, ema_decay=None, lr=0.1, batch=None):
    optimizer = optax.sgd(lr)
    step = jax.jit(make_train_step(task, optimizer, NORMALIZE, 0, accumulate, ema_decay))
    state = make_state(task, optimizer)
    history = [state]
    for _ in range(steps):
        state = step(state, batch or make_batch())
        history.append(state)
    return history


def assert_close(a, b, tolerance=1e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance)


@pytest.fixture(scope="module")
def mixed():
    return make_task({"mixup": 0.5})


@pytest.mark.slow
def test_accumulation_equals_the_large_batch_in_what_is_dropped():
    task = make_task(dropout=0.2, drop_path=0.5, patch_dropout=0.25, depth=2, remat="full")
    whole = run(task)[-1]
    assert_close(whole.params, run(task, accumulate=2)[-1].params)
    far = run(make_task(depth=2))[-1]
    with pytest.raises(AssertionError):
        assert_close(whole.params, far.params, 1e-3)


@pytest.mark.slow
def test_accumulation_equals_the_large_batch(mixed):
    batch = make_batch()
    batch["mask"][5:] = False  # parts with different counts: 3, 2 (and 2, 2, 1, 0)
    whole = run(mixed, batch=batch)[-1]
    for parts in (2, 4):
        split = run(mixed, accumulate=parts, batch=batch)[-1]
        assert_close(whole.params, split.params)
        assert_close(whole.totals, split.totals, 1e-5)


@pytest.mark.slow
def test_parts_of_a_batch_are_augmented_one_after_the_other():
    """A step of 16 parts never holds the whole batch in float32, mixed though it is."""
    task = make_task({"mixup": 0.5, "color_jitter": (0.4, 0.4, 0.4, 0.0)}, patch_size=32)
    batch = {**make_batch(64), "image": np.zeros((64, 64, 64, 1), np.uint8)}
    variables = task.init(keys.batch_key(0, "init", 0), jnp.zeros((1, 64, 64, 1)))
    optimizer = optax.sgd(0.1)
    params = variables["params"]
    state = TrainState(0, params, {}, optimizer.init(params), None, {}, jnp.int32(-1))
    step = make_train_step(task, optimizer, NORMALIZE, 0, accumulate=16)
    plan = jax.jit(step).lower(state, batch).compile().memory_analysis()
    assert plan.temp_size_in_bytes < 4 * batch["image"].size


def test_accumulation_is_refused_where_examples_see_each_other():
    task = make_task()
    resnet = {"name": "resnet", "variant": "18", "widths": (8, 8, 8, 8), "depths": (1, 1, 1, 1)}
    task = Classification.from_config(resnet, {}, {}, CLASSES, jnp.float32)
    optimizer = optax.sgd(0.1)
    step = make_train_step(task, optimizer, NORMALIZE, 0, accumulate=2)
    with pytest.raises(InputError, match="config.accumulate: a model with batch statistics"):
        jax.eval_shape(step, jax.eval_shape(lambda: make_state(task, optimizer)), make_batch())


@pytest.mark.slow
def test_the_average_follows_its_recursion(mixed):
    history = run(mixed, steps=2, ema_decay=0.75)
    expected = history[0].params
    for state in history[1:]:
        expected = jax.tree.map(lambda e, p: 0.75 * e + 0.25 * p, expected, state.params)
    assert_close(history[-1].ema["params"], expected)


def test_totals_hold_the_sums_over_steps(mixed):
    history = run(mixed, steps=3)
    total, count = history[-1].totals["loss"]
    assert float(count) == 3
    assert float(history[-1].totals["accuracy"][1]) == 24
    losses = [float(state.totals["loss"][0]) for state in history[1:]]
    assert losses[-1] == float(total) > losses[0] > 0


def test_the_first_step_that_is_not_finite_is_remembered(mixed):
    history = run(mixed, steps=3, lr=1e38)
    assert int(history[1].nonfinite_step) == -1  # the step's own loss was finite
    assert int(history[2].nonfinite_step) == int(history[3].nonfinite_step) == 2


@pytest.mark.parametrize("part", ["params", "model_state", "opt_state", "ema"])
def test_a_state_is_finite_if_all_of_its_parts_are(part):
    tree = {"n": jnp.zeros(3, jnp.int32), "x": jnp.ones((2, 3), jnp.bfloat16)}
    state = TrainState(0, tree, tree, tree, None, {}, -1)
    assert state.is_finite()
    tree = {**tree, "x": tree["x"].at[1, 2].set(jnp.inf)}
    assert not state.replace(**{part: tree}).is_finite()


@pytest.mark.slow
def test_a_step_is_a_function_of_seed_and_step_alone():
    task = make_task({"mixup": 0.5, "noise": 0.1, "erasing": 0.5}, dropout=0.2, drop_path=0.1)
    first, second = run(task, steps=2), run(task, steps=2)
    for a, b in zip(jax.tree.leaves(first[-1]), jax.tree.leaves(second[-1]), strict=True):
        np.testing.assert_array_equal(a, b)
