"""Optimizers by name, their rules, and updates against hand-worked formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vitlab.errors import InputError
from vitlab.training.optimizer import (
    OptimizerConfig,
    Rule,
    make_optimizer,
    optimizer_names,
)

PARAMS = {
    "embedding": {"kernel": jnp.full((4, 4), 2.0), "bias": jnp.full(4, 2.0)},
    "block_0": {"kernel": jnp.full((4, 4), 2.0)},
    "head": {"kernel": jnp.full((4, 2), 2.0), "bias": jnp.full(2, 2.0)},
}


def layer_of(path):
    return {"embedding": 0, "block_0": 1, "head": 2}[path.split("/")[0]]


def update(config, steps=1, lr=0.1, params=PARAMS):
    tx = make_optimizer(config, optax.constant_schedule(lr), params, layer_of, num_layers=2)
    before, state = params, tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
    return jax.tree.map(lambda new, old: np.asarray(new - old), params, before)


@pytest.mark.parametrize(
    "name", ["adamw", "sgd", "lars", "lamb", "lion", "muon", "adafactor", "adam", "rmsprop"]
)
def test_every_named_optimizer_moves_every_parameter(name):
    change = update(OptimizerConfig(name=name), steps=2)
    assert all((leaf < 0).all() for leaf in jax.tree.leaves(change))


def test_adamw_is_the_formula_and_only_kernels_decay():
    # The first step of Adam has size lr; decoupled decay subtracts lr * decay * parameter.
    change = update(OptimizerConfig(weight_decay=0.3))
    np.testing.assert_allclose(change["head"]["kernel"], -0.1 - 0.1 * 0.3 * 2, rtol=1e-5)
    np.testing.assert_allclose(change["head"]["bias"], -0.1, rtol=1e-5)


def test_sgd_decays_through_the_gradient():
    change = update(OptimizerConfig(name="sgd", weight_decay=0.3, args={"momentum": 0.9}), steps=2)
    first = 1 + 0.3 * 2
    second = 0.9 * first + 1 + 0.3 * (2 - 0.1 * first)
    np.testing.assert_allclose(change["head"]["kernel"], -0.1 * (first + second), rtol=1e-5)
    np.testing.assert_allclose(change["head"]["bias"], -0.1 * (1 + 1.9), rtol=1e-5)


def test_lars_exempts_undecayed_parameters_from_adaptation():
    change = update(OptimizerConfig(name="lars", weight_decay=0.5))
    gradient = 1 + 0.5 * 2
    trust = 1e-3 * np.linalg.norm(np.full((4, 2), 2.0)) / np.linalg.norm(np.full((4, 2), gradient))
    np.testing.assert_allclose(change["head"]["kernel"], -0.1 * trust * gradient, rtol=1e-3)
    np.testing.assert_allclose(change["head"]["bias"], -0.1, rtol=1e-5)


def test_lars_is_the_published_update():
    """Steps of google-research/simclr's lars_optimizer.py (classic momentum), written out."""
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 5)), "bias": rng.normal(size=5)}
    gradients = [{k: rng.normal(size=p.shape) for k, p in params.items()} for _ in range(4)]
    rates = [0.0, 0.5, 1.0, 0.7]
    config = OptimizerConfig(name="lars", weight_decay=0.1, args={"momentum": 0.9})
    tx = make_optimizer(config, lambda step: jnp.asarray(rates)[step], params)
    ours = jax.tree.map(jnp.float32, params)
    state, velocity = tx.init(ours), dict.fromkeys(params, 0.0)
    for rate, grads in zip(rates, gradients, strict=True):
        updates, state = tx.update(jax.tree.map(jnp.float32, grads), state, ours)
        ours = optax.apply_updates(ours, updates)
        for k, g in grads.items():
            trust = 1.0
            if k == "kernel":
                g = g + 0.1 * params[k]
                trust = 1e-3 * np.linalg.norm(params[k]) / np.linalg.norm(g)
            velocity[k] = 0.9 * velocity[k] + rate * trust * g
            params[k] = params[k] - velocity[k]
    for k, p in params.items():
        np.testing.assert_allclose(ours[k], p, rtol=1e-5)


def test_lamb_exempts_undecayed_parameters_from_adaptation():
    change = update(OptimizerConfig(name="lamb", weight_decay=0.5))
    # The first step of Adam is 1 for each; decay adds 0.5 * 2, and the trust ratio is |p| / |u|.
    np.testing.assert_allclose(change["head"]["kernel"], -0.1 * (2 / 2) * 2, rtol=1e-4)
    np.testing.assert_allclose(change["head"]["bias"], -0.1, rtol=1e-4)
    # And both add LAMB's 1e-6 to the root, of which Adam's own would be 1e-8.
    config, small = OptimizerConfig(name="lamb"), jax.tree.map(lambda p: 1e-6 * p, PARAMS)
    tx = make_optimizer(config, optax.constant_schedule(0.1), PARAMS)
    gradients = jax.tree.map(lambda p: p / 2, small)
    change = tx.update(gradients, tx.init(PARAMS), PARAMS)[0]
    np.testing.assert_allclose(change["head"]["bias"], -0.1 / 2, rtol=1e-4)


@pytest.mark.parametrize("name", ["dog", "prodigy", "dadapt_adamw"])
def test_what_estimates_one_number_for_all_parameters_has_one_without_decay(name):
    ours = update(OptimizerConfig(name=name), steps=3)
    plain = getattr(optax.contrib, name)(optax.constant_schedule(0.1))
    params, state = PARAMS, plain.init(PARAMS)
    for _ in range(3):
        updates, state = plain.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
    expected = jax.tree.map(lambda new, old: np.asarray(new - old), params, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


def test_muon_decays_kernels_that_are_no_matrices_too_and_no_biases():
    params = {"conv": {"kernel": jnp.full((2, 2, 1, 4), 2.0), "bias": jnp.full(4, 2.0)}, **PARAMS}
    decayed, plain = (
        update(OptimizerConfig(name="muon", weight_decay=decay), params=params)
        for decay in (0.5, 0.0)
    )
    for module, name in (("conv", "kernel"), ("head", "kernel")):
        change = decayed[module][name] - plain[module][name]
        np.testing.assert_allclose(change, -0.1 * 0.5 * 2, rtol=1e-4)
    np.testing.assert_array_equal(decayed["conv"]["bias"], plain["conv"]["bias"])


def test_adafactor_has_a_decay_of_its_own_that_no_rate_scales():
    with pytest.raises(InputError, match="optax's adafactor has none"):
        update(OptimizerConfig(name="adafactor", weight_decay=0.1))
    zero = OptimizerConfig(name="adafactor", lr=0.0, args={"weight_decay_rate": 0.1})
    change = update(zero, lr=0.0)
    np.testing.assert_allclose(change["head"]["kernel"], -0.2, rtol=1e-4)
    assert not change["head"]["bias"].any()


def test_a_rule_scales_adafactors_decay():
    def change(rate, *rules):
        args = {"weight_decay_rate": rate}
        return update(OptimizerConfig(name="adafactor", args=args, rules=rules), lr=0.0)

    half = change(0.1, Rule("head/.*", weight_decay=0.5), Rule(".*"))
    np.testing.assert_allclose(half["head"]["kernel"], -0.1, rtol=1e-4)
    np.testing.assert_allclose(half["block_0"]["kernel"], -0.2, rtol=1e-4)


@pytest.mark.parametrize("name", ["prodigy", "dadapt_adamw"])
def test_what_divides_by_the_first_rate_has_one(name):
    rise = optax.linear_schedule(0.0, 1.0, 5)
    with pytest.raises(InputError, match="divides by the learning rate of the first step"):
        make_optimizer(OptimizerConfig(name=name), rise, PARAMS)
    from_a_tenth = optax.linear_schedule(0.1, 1.0, 5)
    plans = [(from_a_tenth, {})] + [(rise, {"safeguard_warmup": True})] * (name == "prodigy")
    for schedule, args in plans:
        tx = make_optimizer(OptimizerConfig(name=name, args=args), schedule, PARAMS)
        change, _ = tx.update(jax.tree.map(jnp.ones_like, PARAMS), tx.init(PARAMS), PARAMS)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(change))


def test_layer_decay_and_rate_factors():
    rules = (Rule("head/.*", lr=10.0), Rule(".*"))
    change = update(OptimizerConfig(name="sgd", layer_decay=0.5, rules=rules))
    np.testing.assert_allclose(change["head"]["kernel"], -0.1 * 10, rtol=1e-5)
    np.testing.assert_allclose(change["block_0"]["kernel"], -0.1 * 0.5, rtol=1e-5)
    np.testing.assert_allclose(change["embedding"]["bias"], -0.1 * 0.25, rtol=1e-5)


def test_frozen_parameters_do_not_move_and_have_no_state():
    config = OptimizerConfig(rules=(Rule("embedding/.*", freeze=True), Rule(".*")))
    change = update(config, steps=3)
    assert not change["embedding"]["kernel"].any()
    assert change["head"]["kernel"].all()
    tx = make_optimizer(config, optax.constant_schedule(0.1), PARAMS)
    moments = sum(x.size for x in jax.tree.leaves(tx.init(PARAMS)) if x.ndim)
    assert moments == 2 * sum(
        x.size for k in ("block_0", "head") for x in jax.tree.leaves(PARAMS[k])
    )


def test_clipping_is_by_the_global_norm():
    change = update(OptimizerConfig(name="sgd", clip_norm=0.5), lr=1.0)
    norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(change)))
    assert norm == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "adammw"}, "no optimizer 'adammw'; did you mean 'adamw'?"),
        ({"args": {"beta1": 0.9}}, "args.beta1 is no argument of optax's adamw"),
        ({"name": "adam", "weight_decay": 0.1}, "optax's adam has none"),
        ({"rules": (Rule("head/.*"),)}, "no rule covers block_0/kernel"),
        (
            {"rules": (Rule("haed/.*", freeze=True), Rule(".*"))},
            "pattern 'haed/.*' matches no parameter",
        ),
        ({"rules": (Rule(".*", freeze=True),)}, "freezes every parameter"),
        ({"args": {"b1": "high"}}, "optax's adamw fails"),
        ({"name": "adafactor", "args": {"weight_decay_rate": "x"}}, "optax's adafactor fails"),
    ],
)
def test_mistakes_are_one_line(config, message):
    with pytest.raises(InputError, match="^[^\n]*$") as error:
        update(OptimizerConfig(**config))
    assert message in str(error.value)


def test_bfloat16_first_moment():
    config = OptimizerConfig(args={"b1": 0.9, "mu_dtype": "bfloat16"})
    state = make_optimizer(config, optax.constant_schedule(0.1), PARAMS).init(PARAMS)
    assert {x.dtype.name for x in jax.tree.leaves(state) if x.ndim} == {"bfloat16", "float32"}


def test_names_hold_what_the_field_uses():
    names = set(optimizer_names())
    assert {"adamw", "sgd", "lars", "lamb", "lion", "muon", "adafactor"} <= names
    # What needs more than a gradient and a scheduled rate, what is not linear in that, and what is
    # no name of optax's for users.
    assert not names & {"lbfgs", "dpsgd", "rprop", "sm3", "fromage", "_deprecated_dpsgd"}
