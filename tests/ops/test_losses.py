import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax

from vitlab.errors import InputError
from vitlab.ops.losses import sigmoid_cross_entropy, smooth_labels, softmax_cross_entropy

LOGITS = np.random.default_rng(0).normal(scale=4, size=(6, 7)).astype(np.float32)
TARGETS = np.random.default_rng(1).dirichlet(np.ones(7), size=6).astype(np.float32)


def test_softmax_cross_entropy_equals_float64():
    expected = -(TARGETS * log_softmax(LOGITS.astype(np.float64), axis=-1)).sum(axis=-1)
    np.testing.assert_allclose(softmax_cross_entropy(LOGITS, TARGETS), expected, rtol=1e-5)


def test_sigmoid_cross_entropy_is_the_mean_over_classes():
    p = expit(LOGITS.astype(np.float64))
    expected = -(TARGETS * np.log(p) + (1 - TARGETS) * np.log1p(-p)).mean(axis=-1)
    np.testing.assert_allclose(sigmoid_cross_entropy(LOGITS, TARGETS), expected, rtol=1e-5)


def test_sigmoid_cross_entropy_takes_binary_targets_as_booleans():
    present = TARGETS > 0.1
    np.testing.assert_array_equal(
        sigmoid_cross_entropy(LOGITS, present),
        sigmoid_cross_entropy(LOGITS, present.astype(np.float32)),
    )


@pytest.mark.parametrize("loss", [softmax_cross_entropy, sigmoid_cross_entropy])
def test_losses_of_bfloat16_logits_are_computed_in_float32(loss):
    logits = jnp.asarray(LOGITS, jnp.bfloat16)
    half = loss(logits, jnp.asarray(TARGETS))
    assert half.dtype == jnp.float32
    np.testing.assert_array_equal(half, loss(logits.astype(jnp.float32), TARGETS))


@pytest.mark.parametrize("loss", [softmax_cross_entropy, sigmoid_cross_entropy])
def test_losses_and_gradients_stay_finite_for_extreme_logits(loss):
    logits = jnp.array([[1e4, -1e4, 0.0]])
    targets = jnp.array([[0.0, 1.0, 0.0]])
    value, gradient = jax.value_and_grad(lambda x: loss(x, targets).sum())(logits)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("loss", [softmax_cross_entropy, sigmoid_cross_entropy])
def test_integer_labels_are_refused_rather_than_broadcast(loss):
    with pytest.raises(InputError, match="targets"):
        loss(LOGITS, np.zeros(7, np.int32))


def test_smoothed_labels_leave_the_true_class_a_part_of_epsilon():
    smoothed = np.asarray(smooth_labels(jnp.eye(4), 0.1))
    np.testing.assert_allclose(np.diag(smoothed), 0.925, rtol=1e-6)
    np.testing.assert_allclose(smoothed.sum(axis=-1), 1, rtol=1e-6)
    assert np.unique(smoothed).size == 2


def test_smoothing_refuses_an_epsilon_out_of_range():
    with pytest.raises(InputError, match="epsilon 1.5"):
        smooth_labels(jnp.eye(4), 1.5)
