import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import beta, kstest

from vitlab.errors import InputError
from vitlab.ops.keys import batch_key
from vitlab.ops.mixing import _beta, cutmix, mixup, mixup_or_cutmix

HEIGHT, WIDTH, CLASSES = 12, 9, 5


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    images = rng.random((4, HEIGHT, WIDTH, 3)).astype(np.float32)
    targets = np.eye(CLASSES, dtype=np.float32)[[0, 1, 2, 4]]
    return images, targets


@pytest.fixture(scope="module")
def markers():
    """Two images, all 0 and all 1: what is 1 in the first came from its partner."""
    images = jnp.stack([jnp.zeros((HEIGHT, WIDTH, 1)), jnp.ones((HEIGHT, WIDTH, 1))])
    return images, jnp.eye(2)


def many(mix, markers, n, **settings):
    """The first image and its target of its own class, for n steps."""

    def step(i):
        images, targets = mix(*markers, batch_key(0, "mix", i), **settings)
        return images[0, :, :, 0], targets

    images, targets = map(np.asarray, jax.jit(jax.vmap(step))(jnp.arange(n)))
    np.testing.assert_allclose(targets.sum(axis=-1), 1, atol=1e-6)
    return images, targets[:, 0, 0]


@pytest.fixture(scope="module")
def cut(markers):
    return many(cutmix, markers, 4000, alpha=1.0)


def test_mixup_is_one_convex_sum_of_each_example_and_the_one_before_it(batch):
    images, targets = batch
    mixed, mixed_targets = jax.jit(lambda x, y, k: mixup(x, y, k, 0.8))(
        *batch, batch_key(0, "mix", 3)
    )
    # Example 0 has class 0 and its partner, the last of the batch, class 4.
    weight = np.float64(mixed_targets[0, 0])
    assert 0.5 <= weight < 1
    partner = [3, 0, 1, 2]
    np.testing.assert_allclose(mixed, weight * images + (1 - weight) * images[partner], atol=1e-6)
    np.testing.assert_allclose(
        mixed_targets, weight * targets + (1 - weight) * targets[partner], atol=1e-6
    )


@pytest.mark.parametrize("alpha", [0.1, 0.8, 1.0, 8.0])
def test_shares_have_the_beta_distribution(alpha):
    """Kolmogorov and Smirnov's test on the lower half: close to 1 float32 has no more numbers."""
    keys = jax.vmap(lambda i: batch_key(0, "mix", i))(jnp.arange(20_000))
    for given in (alpha, jnp.float32(alpha)):  # traced where the method is drawn
        shares = np.asarray(jax.jit(jax.vmap(lambda key, a=given: _beta(key, a)))(keys))
        lower = shares[shares < 0.5]
        assert abs(len(lower) / len(shares) - 0.5) < 0.01
        assert kstest(lower, lambda x: 2 * beta(alpha, alpha).cdf(x)).pvalue > 1e-3


def test_nothing_in_a_mixed_step_waits_for_the_host(batch):
    """As a GPU does for each round of a loop whose end is not known."""
    mix = jax.jit(lambda x, y, key: mixup_or_cutmix(x, y, key, 0.8, 1.0))
    traced = mix.trace(*batch, batch_key(0, "mix", 0))
    assert "while" not in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_mixup_weights_are_the_larger_side_of_the_beta_distribution(markers):
    images, weights = many(mixup, markers, 4000, alpha=0.2)
    np.testing.assert_allclose(images, np.broadcast_to(1 - weights[:, None, None], images.shape))
    draws = np.random.default_rng(0).beta(0.2, 0.2, 40_000)
    expected = np.maximum(draws, 1 - draws)
    quantiles = [0.1, 0.2, 0.3, 0.5, 0.7]
    np.testing.assert_allclose(
        np.quantile(weights, quantiles), np.quantile(expected, quantiles), atol=0.03
    )


def test_cutmix_label_weight_is_the_pixel_area_exactly(cut):
    images, weights = cut
    assert set(np.unique(images)) == {0.0, 1.0}
    pasted = images.sum(axis=(1, 2))
    # In whole pixels: the weight is a rounded float32, the area it stands for is not.
    np.testing.assert_allclose((1 - weights) * HEIGHT * WIDTH, pasted, atol=1e-4)
    rows, columns = images.any(axis=2).sum(axis=1), images.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(pasted, rows * columns)


def test_cutmix_boxes_follow_timms_rule(cut):
    """The mean image of the box against a float64 loop over timm's `rand_bbox`."""
    images, _ = cut
    rng = np.random.default_rng(0)
    expected = np.zeros((HEIGHT, WIDTH))
    steps = 20_000
    for side in np.sqrt(1 - rng.beta(1.0, 1.0, steps)):
        h, w = int(HEIGHT * side), int(WIDTH * side)
        y, x = rng.integers(HEIGHT), rng.integers(WIDTH)
        top, left = max(y - h // 2, 0), max(x - w // 2, 0)
        expected[top : y + (h + 1) // 2, left : x + (w + 1) // 2] += 1 / steps
    np.testing.assert_allclose(images.mean(axis=0), expected, atol=0.035)


def test_cutmix_boxes_are_as_large_as_timms(cut):
    """Of no pixel, and of odd sides alone, as often, and all as large on the mean, as the boxes of
    timm 1.0.31's `rand_bbox((12, 9), lam)`: at each centre, of 4000 lam evenly in (0, 1). In timm
    1.0.28 0.049 of them have no pixel."""
    images, _ = cut
    sides = np.stack([images.any(axis=2).sum(axis=1), images.any(axis=1).sum(axis=1)])
    assert np.mean(sides.min(axis=0) == 0) == pytest.approx(0.0123, abs=0.007)
    assert np.mean((sides % 2 == 1).all(axis=0)) == pytest.approx(0.2414, abs=0.025)
    assert images.mean() == pytest.approx(0.2878, abs=0.015)


def test_cutmix_pastes_the_partners_pixels_unchanged(batch):
    images, targets = batch
    mixed, mixed_targets = jax.jit(lambda x, y, k: cutmix(x, y, k, 1.0))(
        *batch, batch_key(0, "mix", 0)
    )
    own, partner = mixed == images, mixed == images[[3, 0, 1, 2]]
    assert (own | partner).all()
    assert 0 < partner.mean() < 1
    share = own.mean(axis=(1, 2, 3))
    np.testing.assert_allclose((mixed_targets * targets).sum(axis=1), share, atol=1e-6)


@pytest.fixture(scope="module")
def either(markers):
    return many(
        mixup_or_cutmix, markers, 3000, mixup_alpha=0.8, cutmix_alpha=1.0, prob=0.8, switch_prob=0.3
    )


def test_either_method_is_chosen_with_its_probability(either):
    images, weights = either
    binary = np.isin(images, [0, 1]).all(axis=(1, 2))
    untouched = weights == 1
    assert abs(np.mean(~binary) - 0.8 * 0.7) < 0.03
    # Most boxes of no pixel at all come from CutMix: a tenth of its draws at this size.
    assert 0.2 - 0.03 < untouched.mean() < 0.2 + 0.8 * 0.3 * 0.15
    np.testing.assert_array_equal(images[untouched], 0)


def test_either_method_keeps_the_weight_of_pixels(either):
    images, weights = either
    np.testing.assert_allclose(weights, 1 - images.mean(axis=(1, 2)), atol=1e-6)


def test_an_alpha_of_zero_leaves_its_method_out(markers):
    @jax.jit
    @jax.vmap
    def step(i):
        key = batch_key(0, "mix", i)
        return mixup_or_cutmix(*markers, key, 0.0, 1.0)[0], mixup_or_cutmix(*markers, key, 0.8, 0.0)

    images, (mixed, targets) = jax.tree.map(np.asarray, step(jnp.arange(50)))
    assert np.isin(images, [0, 1]).all()
    assert images[:, 0].any()
    weights = np.broadcast_to(targets[:, 0, 0, None, None, None], mixed[:, 0].shape)
    np.testing.assert_allclose(mixed[:, 0], 1 - weights)
    assert (weights < 1).mean() > 0.8


@pytest.mark.slow
def test_devices_that_share_a_batch_mix_it_as_one(batch):
    images, targets = batch
    key = batch_key(0, "mix", 1)

    def share(x):
        return x.reshape(2, -1, *x.shape[1:])

    whole = mixup_or_cutmix(images, targets, key, 0.8, 1.0)
    assert np.abs(whole[0] - images).max() > 0.1
    parts = jax.vmap(
        lambda i, t: mixup_or_cutmix(i, t, key, 0.8, 1.0, axis_name="data"), axis_name="data"
    )(share(images), share(targets))
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(share(a), b, atol=1e-6)


def test_mixing_refuses_what_it_cannot_do(batch):
    images, targets = batch
    key = batch_key(0, "mix", 0)
    with pytest.raises(InputError, match="alpha 0"):
        mixup(images, targets, key, 0)
    with pytest.raises(InputError, match="alpha -1"):
        cutmix(images, targets, key, -1)
    with pytest.raises(InputError, match="not both 0"):
        mixup_or_cutmix(images, targets, key, 0.0, 0.0)
    with pytest.raises(InputError, match="switch_prob 2"):
        mixup_or_cutmix(images, targets, key, 0.8, 1.0, switch_prob=2)
    with pytest.raises(InputError, match="targets"):
        mixup(images, targets[:3], key, 0.8)
    with pytest.raises(InputError, match="uint8"):
        mixup((images * 255).astype(np.uint8), targets, key, 0.8)
