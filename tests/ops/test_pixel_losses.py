"""Losses of dense prediction: torch's numbers, loops in float64, and what void may change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.errors import InputError
from vitlab.ops.pixel_losses import dice, hardest, pixel_cross_entropy

CLASSES = 4


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, CLASSES, (3, 5, 6))
    labels[2] = -1  # an image that is all void
    return 3 * rng.normal(size=(3, 5, 6, CLASSES)).astype(np.float32), labels


def softmax(logits):
    e = np.exp(np.float64(logits) - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_weights_and_void_are_as_in_torch():
    """torch.nn.functional.cross_entropy(logits, labels, weight, ignore_index=255) of torch 2.13,
    with logits[c, y, x] = sin(7 c + 3 y + x)."""
    c, y, x = np.meshgrid(np.arange(3), np.arange(2), np.arange(3), indexing="ij")
    logits = np.moveaxis(np.sin(7 * c + 3 * y + x), 0, -1)[None].astype(np.float32)
    labels = np.array([[[0, 1, 2], [-1, 2, 0]]])
    losses, weights = pixel_cross_entropy(logits, labels, (1.0, 2.0, 0.5))
    assert float(losses.sum() / weights.sum()) == pytest.approx(1.353117126, rel=1e-6)
    losses, weights = pixel_cross_entropy(logits, labels)
    assert float(losses.sum() / weights.sum()) == pytest.approx(1.450416548, rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_cross_entropy_and_focal_loss_by_a_loop(drawn, gamma):
    logits, labels = drawn
    class_weights = (1.0, 0.5, 3.0, 2.0)
    losses, weights = pixel_cross_entropy(*drawn, class_weights, gamma)
    p = softmax(logits)
    for place in np.ndindex(labels.shape):
        label = labels[place]
        weight = class_weights[label] if label >= 0 else 0
        right = p[(*place, label)]
        assert float(weights[place]) == weight
        expected = -weight * (1 - right) ** gamma * np.log(right)
        assert float(losses[place]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("offset", [0.0, -100.0, 1e6])
def test_an_offset_of_all_logits_changes_nothing(offset):
    """Not where pixels are void either, whose gradient stays 0; so logits may drift."""
    logits = jnp.array([[[[1.0, 2.0, 4.0]], [[3.0, 1.0, 0.0]]]])
    labels = jnp.array([[[2], [-1]]])

    def loss(logits):
        return pixel_cross_entropy(logits, labels, gamma=2.0)[0].sum()

    expected = jax.value_and_grad(loss)(logits)
    got = jax.value_and_grad(loss)(logits + offset)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9)
    assert (got[1][0, 1] == 0).all()


def test_a_label_that_is_no_class_is_never_silent():
    """255 for void, say, where it is not told."""
    assert np.isnan(pixel_cross_entropy(jnp.zeros((1, 1, 1, 3)), jnp.array([[[255]]]))[0]).all()


def test_the_hardest_pixels_of_each_image_are_kept(drawn):
    losses, weights = pixel_cross_entropy(*drawn)
    kept, counted = hardest(losses, weights, 0.3)
    for image, known, found, number in zip(losses, weights, kept, counted, strict=True):
        known = np.asarray(image)[np.asarray(known) > 0]
        most = int(np.ceil(0.3 * len(known)))
        assert float(number.sum()) == most
        expected = np.sort(known)[::-1][:most].sum()
        np.testing.assert_allclose(found.sum(), expected, rtol=1e-5)
    whole = hardest(losses, weights, 1.0)
    np.testing.assert_allclose(whole[0].sum(), losses.sum(), rtol=1e-6)
    with pytest.raises(InputError, match="share 0 must be in"):
        hardest(losses, weights, 0)


def test_dice_by_a_loop(drawn):
    logits, labels = drawn
    values, counts = dice(*drawn)
    p = softmax(logits)
    for image in range(3):
        known = labels[image] >= 0
        there = np.unique(labels[image][known])
        total = 0.0
        for label in there:
            mask = labels[image] == label
            inside = p[image, ..., label] * known
            total += 1 - (2 * (inside * mask).sum() + 1) / (inside.sum() + mask.sum() + 1)
        assert float(counts[image]) == len(there)
        assert float(values[image]) == pytest.approx(total, rel=1e-5)


def test_perfect_logits_cost_nothing(drawn):
    _, labels = drawn
    logits = 50.0 * jax.nn.one_hot(labels, CLASSES)
    assert float(pixel_cross_entropy(logits, labels)[0].sum()) == pytest.approx(0, abs=1e-5)
    assert float(dice(logits, labels)[0].sum()) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_void_has_no_gradient_and_a_void_batch_no_nan(drawn, gamma):
    logits, labels = drawn

    @jax.jit
    def gradient(logits, labels):
        def loss(logits):
            losses, weights = hardest(*pixel_cross_entropy(logits, labels, gamma=gamma), 0.5)
            value, count = dice(logits, labels)
            return losses.sum() + value.sum(), (weights.sum(), count.sum())

        return jax.value_and_grad(loss, has_aux=True)(logits)

    _, found = gradient(logits, labels)
    assert np.isfinite(found).all()
    assert not np.asarray(found)[labels < 0].any()
    assert np.abs(found).max() > 0
    (value, counts), found = gradient(logits, np.full_like(labels, -1))
    assert float(value) == 0
    assert [float(count) for count in counts] == [0, 0]
    assert not np.asarray(found).any()


def test_a_certain_pixel_has_a_finite_gradient_of_the_focal_loss():
    logits = jnp.array([[[[200.0, 0.0]]]])
    loss = jax.grad(lambda x: pixel_cross_entropy(x, jnp.zeros((1, 1, 1), int), gamma=0.5)[0].sum())
    assert np.isfinite(loss(logits)).all()


def test_bfloat16_is_computed_in_float32(drawn):
    logits, labels = drawn
    half = jnp.asarray(logits, jnp.bfloat16)
    losses, weights = pixel_cross_entropy(half, labels)
    assert losses.dtype == weights.dtype == jnp.float32
    np.testing.assert_allclose(
        losses, pixel_cross_entropy(half.astype(jnp.float32), labels)[0], rtol=1e-6
    )


def test_what_does_not_fit_is_one_line(drawn):
    logits, labels = drawn
    with pytest.raises(InputError, match="class_weights has 2 numbers for 4 classes"):
        pixel_cross_entropy(logits, labels, (1.0, 2.0))
    with pytest.raises(InputError, match="dice: logits .* and labels .* must be"):
        dice(logits, labels[:2])
