"""SimCLR's loss against its definition in float64, however the batch is cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.errors import InputError
from vitlab.models.simclr import SimCLR, nt_xent
from vitlab.models.vit import ViT


def defined(z, mask, temperature):
    """Equation 1 of the paper, in float64, view by view; and whether the twin is nearest."""
    z = np.asarray(z, np.float64)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    n = len(z)
    losses, right = np.zeros((n, 2)), np.zeros((n, 2))
    for i in range(n):
        for view in range(2):
            others = [
                z[i, view] @ z[k, other] / temperature
                for k in range(n)
                for other in range(2)
                if k != i and mask[k]
            ]
            twin = z[i, view] @ z[i, 1 - view] / temperature
            losses[i, view] = -np.log(np.exp(twin) / np.exp([twin, *others]).sum())
            right[i, view] = twin > max(others)
    return losses.mean(1), right.mean(1)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_is_the_paper_s(temperature):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(12, 2, 16)).astype(np.float32)
    z[:, 1] += z[:, 0]
    mask = np.arange(12) != 4
    expected, right = defined(z, mask, temperature)
    assert 0 < right[mask].mean() < 1
    for block in (100, 5):
        loss, nearest = jax.jit(nt_xent, static_argnums=(2, 3, 4))(
            z, mask, temperature, None, block
        )
        np.testing.assert_allclose(loss[mask].mean(), expected[mask].mean(), rtol=1e-6)
        np.testing.assert_allclose(loss[mask], expected[mask], atol=1e-6)
        np.testing.assert_array_equal(nearest[mask], right[mask])


def test_blocks_change_no_gradient():
    z = jax.random.normal(jax.random.key(0), (12, 2, 8))
    mask = jnp.ones(12, bool)

    def gradient(block):
        return jax.jit(jax.grad(lambda z: nt_xent(z, mask, 0.2, None, block)[0].sum()))(z)

    whole = gradient(12)
    assert np.abs(whole).max() > 0.1
    np.testing.assert_allclose(gradient(4), whole, atol=1e-6)
    np.testing.assert_allclose(gradient(1), whole, atol=1e-6)


def test_a_batch_of_16k_fits():
    """Forward and backward, by XLA's own plan; the similarities alone are 4 GiB at once."""
    z = jax.ShapeDtypeStruct((16_384, 2, 128), jnp.float32)

    def loss(z):
        return nt_xent(z, jnp.ones(len(z), bool), 0.1)[0].sum()

    plan = jax.jit(jax.grad(loss)).lower(z).compile().memory_analysis()
    assert plan.temp_size_in_bytes < 1.3 * 2**30


def test_random_projections_lose_log_of_the_number_of_views():
    z = jax.random.normal(jax.random.key(0), (64, 2, 1024))
    mask = jnp.ones(64, bool)
    apply = jax.jit(nt_xent)
    loss, _ = apply(z, mask, 1.0)
    np.testing.assert_allclose(loss.mean(), np.log(2 * 64 - 1), atol=0.01)
    # whose twins agree entirely, and no others: the loss goes to zero as the temperature does
    z = jnp.repeat(z[:, :1], 2, axis=1)
    loss, nearest = apply(z, mask, 0.02)
    assert loss.max() < 1e-4
    assert nearest.all()


@pytest.mark.slow
def test_the_projector_is_version_2_s():
    """Three layers, each with batch norm, the last without a shift and without a nonlinearity."""
    model = SimCLR(ViT(width=8, depth=1, num_heads=1, patch_size=8))
    views = jax.random.normal(jax.random.key(0), (6, 8, 8, 3))
    variables = jax.jit(model.init)(jax.random.key(1), views)
    own = {k: v for k, v in variables["params"].items() if k != "backbone"}
    shapes = jax.tree.map(jnp.shape, own)
    assert shapes == {
        **{f"projector_{i}": {"kernel": (8, 8)} for i in range(2)},
        **{f"projector_norm_{i}": {"scale": (8,), "bias": (8,)} for i in range(2)},
        "projector_2": {"kernel": (8, 128)},
        "projector_norm_2": {"scale": (128,)},
    }
    apply = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))
    (projections, stages), state = apply(variables, views)
    assert projections.shape == (6, 128)
    kernel = variables["params"]["projector_2"]["kernel"]
    assert abs(kernel.std() / 0.01 - 1) < 0.1  # as in the authors' code
    np.testing.assert_allclose(projections.mean(0), 0, atol=1e-5)  # of both views together
    assert stages["pre_logits"].shape == (6, 8)
    assert set(state["batch_stats"]) == {f"projector_norm_{i}" for i in range(3)}


def test_bad_input_is_one_line():
    with pytest.raises(InputError, match="backbone has no num_classes"):
        SimCLR(ViT("Ti/16", num_classes=10))
    with pytest.raises(InputError, match="projector_layers is 0"):
        SimCLR(ViT("Ti/16"), projector_layers=0)
