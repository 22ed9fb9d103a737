import colorsys
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.errors import InputError
from vitlab.ops.augment import (
    color_jitter,
    gaussian_noise,
    random_blur,
    random_erasing,
    random_greyscale,
    random_solarize,
    sample_color_jitter,
)
from vitlab.ops.keys import example_keys

BATCH = 24
with np.load(pathlib.Path(__file__).parents[1] / "fixtures" / "views.npz") as file:
    VIEWS = {name: file[name] for name in file.files if not name.startswith("crop/")}
VIEW = (VIEWS["image"][:12, :14] / np.float32(255)).astype(np.float32)


@pytest.fixture(scope="module")
def images():
    images = np.random.default_rng(0).random((BATCH, 6, 5, 3)).astype(np.float32)
    images[:, 0, :3] = [[0.5, 0.5, 0.5], [0, 0, 0], [1, 1, 1]]  # without a hue
    images[:, 1, :3] = [[1, 0, 0], [1, 1, 0], [0, 0.25, 0.25]]  # where sectors of the circle meet
    return images


def keys(n=BATCH, purpose="jitter"):
    return example_keys(3, purpose, jnp.zeros(n, jnp.int32), jnp.arange(n, dtype=jnp.int32))


def torchvision_color_jitter(image, factors, hue, order):
    """torchvision's tensor ops one after the other, in float64, for one image."""

    def grey(x):
        return x @ [0.2989, 0.587, 0.114] if x.shape[-1] == 3 else x[..., 0]

    def blend(x, other, factor):
        return np.clip(factor * x + (1 - factor) * other, 0, 1)

    x = image.astype(np.float64)
    for op in order:
        if op == 0:
            x = blend(x, 0.0, factors[0])
        elif op == 1:
            x = blend(x, grey(x).mean(), factors[1])
        elif op == 2 and x.shape[-1] == 3:
            x = blend(x, grey(x)[..., None], factors[2])
        elif op == 3 and x.shape[-1] == 3:
            hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in x.reshape(-1, 3)]
            rgb = [colorsys.hsv_to_rgb((h + hue) % 1, s, v) for h, s, v in hsv]
            x = np.array(rgb).reshape(x.shape)
    return x


@pytest.mark.parametrize("channels", [1, 3])
def test_color_jitter_equals_torchvisions_ops_in_the_drawn_order(images, channels):
    images = images[..., :channels]
    drawn = sample_color_jitter(keys(), 0.8, 0.8, 0.8, 0.2)
    out = jax.jit(lambda x, k: color_jitter(x, k, 0.8, 0.8, 0.8, 0.2))(images, keys())
    factors, hue, order, _ = map(np.asarray, drawn)
    expected = [
        torchvision_color_jitter(*one) for one in zip(images, factors, hue, order, strict=True)
    ]
    np.testing.assert_allclose(out, expected, atol=2e-5)


def test_color_jitter_without_hue_still_keeps_the_order(images):
    drawn = sample_color_jitter(keys(), 0.4, 0.4, 0.4, 0.0)
    out = jax.jit(lambda x, k: color_jitter(x, k, 0.4, 0.4, 0.4, 0.0))(images, keys())
    factors, _, order, _ = map(np.asarray, drawn)
    expected = [
        torchvision_color_jitter(image, f, 0.0, o)
        for image, f, o in zip(images, factors, order, strict=True)
    ]
    np.testing.assert_allclose(out, expected, atol=2e-6)


def test_color_jitter_draws_uniform_factors_orders_and_decisions():
    n = 4000
    drawn = jax.jit(lambda k: sample_color_jitter(k, 0.8, 1.5, 0.1, 0.2, p=0.3))(keys(n))
    factors, hue, order, applied = map(np.asarray, drawn)
    for values, low, high in [
        (factors[:, 0], 0.2, 1.8),
        (factors[:, 1], 0.0, 2.5),
        (factors[:, 2], 0.9, 1.1),
        (hue, -0.2, 0.2),
    ]:
        assert low <= values.min()
        assert values.max() <= high
        deciles = (np.sort(values)[:: n // 10] - low) / (high - low)
        np.testing.assert_allclose(deciles, np.arange(10) / 10, atol=0.035)
    orders, counts = np.unique(order, axis=0, return_counts=True)
    assert len(orders) == 24
    assert counts.min() > n / 24 * 0.6
    assert abs(applied.mean() - 0.3) < 0.035


def test_an_example_that_is_not_jittered_keeps_its_bits(images):
    jitter = jax.jit(lambda x, k: color_jitter(x, k, 0.4, 0.4, 0.4, 0.1, p=0.5))
    out = np.asarray(jitter(images, keys()))
    applied = np.asarray(sample_color_jitter(keys(), 0.4, 0.4, 0.4, 0.1, p=0.5).applied)
    assert 0 < applied.sum() < BATCH
    np.testing.assert_array_equal(out[~applied], images[~applied])
    assert (np.abs(out - images).max(axis=(1, 2, 3)) > 1e-3)[applied].all()
    order = np.random.default_rng(1).permutation(BATCH)
    np.testing.assert_array_equal(jitter(images[order], keys()[order]), out[order])


def test_color_jitter_refuses_what_it_cannot_do(images):
    with pytest.raises(InputError, match="hue"):
        color_jitter(images, keys(), 0.4, 0.4, 0.4, 0.6)
    with pytest.raises(InputError, match="saturation"):
        color_jitter(images, keys(), 0.4, 0.4, -0.4, 0.1)
    with pytest.raises(InputError, match="p 1.5"):
        color_jitter(images, keys(), 0.4, 0.4, 0.4, 0.1, p=1.5)
    with pytest.raises(InputError, match="1 or 3"):
        color_jitter(images[..., :2], keys(), 0.4, 0.4, 0.4, 0.1)


def boxes(erased):
    """Top, bottom, left, right (exclusive ends) of each full rectangle in bool[n, h, w]."""
    rows, columns = erased.any(axis=2), erased.any(axis=1)
    top, left = rows.argmax(axis=1), columns.argmax(axis=1)
    height, width = rows.sum(axis=1), columns.sum(axis=1)
    np.testing.assert_array_equal(erased.sum(axis=(1, 2)), height * width)
    np.testing.assert_array_equal(rows[:, ::-1].argmax(axis=1), erased.shape[1] - top - height)
    np.testing.assert_array_equal(columns[:, ::-1].argmax(axis=1), erased.shape[2] - left - width)
    return top, top + height, left, left + width


@pytest.fixture(scope="module")
def erased():
    n, height, width = 3000, 64, 48
    images = jnp.full((n, height, width, 1), 9.0)  # which no noise is
    out = jax.jit(lambda x, k: random_erasing(x, k, 0.5))(images, keys(n, "erase"))
    return np.asarray(out)[..., 0] != 9


def test_random_erasing_takes_one_rectangle_of_the_given_area_and_ratio(erased):
    chosen = erased.any(axis=(1, 2))
    assert abs(chosen.mean() - 0.5) < 0.03
    top, bottom, left, right = boxes(erased[chosen])
    height, width = bottom - top, right - left
    # Rounding a side moves it by at most half a pixel.
    area = 64 * 48
    assert ((height + 0.5) * (width + 0.5) >= 0.02 * area).all()
    assert ((height - 0.5) * (width - 0.5) <= area / 3).all()
    assert ((height + 0.5) / (width - 0.5) >= 0.3).all()
    assert ((height - 0.5) / (width + 0.5) <= 1 / 0.3).all()


def test_random_erasing_draws_as_timms_rule_does(erased):
    """Against a float64 loop that tries again until the rectangle is smaller than the image."""
    rng = np.random.default_rng(0)
    expected = []
    while len(expected) < 3000:
        area = rng.uniform(0.02, 1 / 3) * 64 * 48
        ratio = np.exp(rng.uniform(np.log(0.3), -np.log(0.3)))
        h, w = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if h < 64 and w < 48:
            expected.append(
                (h * w, h / w, rng.integers(0, 64 - h + 1), rng.integers(0, 48 - w + 1))
            )
    top, bottom, left, right = boxes(erased[erased.any(axis=(1, 2))])
    height, width = bottom - top, right - left
    got = np.stack([height * width, height / width, top, left], axis=1)
    quantiles = [0.1, 0.3, 0.5, 0.7, 0.9]
    error = np.quantile(got, quantiles, axis=0) - np.quantile(expected, quantiles, axis=0)
    assert (np.abs(error).max(axis=0) < 0.15 * np.std(expected, axis=0)).all()


def test_random_erasing_reaches_the_last_row_and_column(erased):
    assert erased[:, [0, -1], :].any(axis=(0, 2)).all()
    assert erased[:, :, [0, -1]].any(axis=(0, 1)).all()


def test_random_erasing_fills_with_noise_of_unit_variance_for_each_pixel_and_channel():
    images = jnp.full((64, 16, 16, 3), 9.0)
    erase = jax.jit(lambda x, k: random_erasing(x, k, 1.0))
    out = np.asarray(erase(images, keys(64)))
    noise = out[(out != 9).all(axis=-1)]
    assert len(noise) > 1000
    assert abs(noise.mean()) < 0.06
    assert abs(noise.std() - 1) < 0.05
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.1
    order = np.random.default_rng(1).permutation(64)
    np.testing.assert_array_equal(erase(images, keys(64)[order]), out[order])


def test_random_erasing_leaves_an_image_that_no_rectangle_fits():
    images = jnp.ones((8, 2, 2, 1))
    out = jax.jit(lambda x, k: random_erasing(x, k, 1.0, area=(0.9, 1.0), ratio=(1.0, 1.0)))(
        images, keys(8)
    )
    np.testing.assert_array_equal(out, images)


@pytest.mark.parametrize(
    "wrong",
    [
        {"probability": 1.1},
        {"probability": 0.5, "area": (0.5, 0.1)},
        {"probability": 0.5, "ratio": (0.0, 1.0)},
    ],
)
def test_random_erasing_refuses_what_it_cannot_do(wrong):
    with pytest.raises(InputError, match=list(wrong)[-1]):
        random_erasing(jnp.ones((1, 4, 4, 3)), keys(1), **wrong)


def test_gaussian_noise_has_its_deviation_and_stays_in_range():
    keys = example_keys(0, "noise", jnp.zeros(4, jnp.int32), jnp.arange(4))
    images = jnp.full((4, 16, 16, 3), 0.5)
    noisy = np.asarray(gaussian_noise(images, keys, 0.1))
    assert noisy.std() == pytest.approx(0.1, rel=0.05)
    assert len({image.tobytes() for image in noisy}) == 4
    noisy = np.asarray(gaussian_noise(images, keys, 2.0))
    assert (noisy.min(), noisy.max()) == (0, 1)


@pytest.mark.parametrize("name", [name for name in VIEWS if name.startswith("blur/")])
def test_random_blur_is_torchvisions(name):
    kernel_size, sigma = name.split("/")[1:]
    sigma = (float(sigma),) * 2
    out = jax.jit(lambda x, k: random_blur(x, k, int(kernel_size), sigma, p=1.0))(
        VIEW[None], keys(1)
    )
    np.testing.assert_allclose(out[0], VIEWS[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_random_solarize_is_torchvisions(threshold):
    assert (VIEWS["image"][:12, :14] == 0.2 * 255).any()  # the threshold itself is inverted
    out = random_solarize(VIEW[None], keys(1), 1.0, threshold)
    np.testing.assert_array_equal(out[0], VIEWS[f"solarize/{threshold}"])


def test_random_greyscale_is_torchvisions_and_leaves_one_channel():
    out = random_greyscale(VIEW[None], keys(1), 1.0)
    np.testing.assert_allclose(out[0], VIEWS["greyscale"], rtol=0, atol=2e-7)
    np.testing.assert_array_equal(
        random_greyscale(VIEW[None, ..., :1], keys(1), 1.0), VIEW[None, ..., :1]
    )


@pytest.mark.parametrize(
    "op",
    [
        lambda x, k: random_greyscale(x, k, 0.3),
        lambda x, k: random_blur(x, k, 3, (0.5, 1.0), p=0.3),
        lambda x, k: random_solarize(x, k, 0.3),
    ],
    ids=["greyscale", "blur", "solarize"],
)
def test_an_op_takes_its_share_of_the_images_whatever_the_batch(op):
    n, op = 2000, jax.jit(op)
    images = np.random.default_rng(0).random((n, 4, 3, 3)).astype(np.float32)
    out = np.asarray(op(images, keys(n)))
    # The rest keep their bits.
    assert (out != images).any(axis=(1, 2, 3)).mean() == pytest.approx(0.3, abs=0.035)
    assert out.min() >= 0
    assert out.max() <= 1
    order = np.random.default_rng(1).permutation(n)
    np.testing.assert_array_equal(op(images[order], keys(n)[order]), out[order])
    np.testing.assert_allclose(op(images[5:8], keys(n)[5:8]), out[5:8], atol=1e-6)


def test_random_blur_draws_its_deviation_uniformly():
    n = 4000
    images = jnp.zeros((n, 5, 5, 1)).at[:, 2, 2].set(1.0)
    out = np.asarray(jax.jit(lambda x, k: random_blur(x, k, 3, (0.5, 2.0), 1.0))(images, keys(n)))
    sigma = np.sqrt(-0.5 / np.log(out[:, 2, 1, 0] / out[:, 2, 2, 0]))
    np.testing.assert_allclose(
        np.quantile(sigma, np.arange(11) / 10), np.linspace(0.5, 2, 11), atol=0.03
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: random_greyscale(x, keys(1), -0.1), "p -0.1"),
        (lambda x: random_greyscale(x[..., :2], keys(1), 0.5), "1 or 3"),
        (lambda x: random_blur(x, keys(1), 2), "kernel_size 2 must be odd"),
        (lambda x: random_blur(x, keys(1), 9), "kernel_size 9 must be below"),
        (lambda x: random_blur(x, keys(1), 3, sigma=(0.0, 1.0)), "sigma"),
        (lambda x: random_blur(x, keys(1), 3, sigma=(2.0, 1.0)), "sigma"),
        (lambda x: random_blur(x, keys(1), 3, p=2.0), "p 2.0"),
        (lambda x: random_solarize(x, keys(1), 1.1), "p 1.1"),
        (lambda x: random_solarize(x, keys(1), 0.5, threshold=128), "threshold 128"),
    ],
)
def test_the_ops_of_views_refuse_what_they_cannot_do(call, words):
    with pytest.raises(InputError, match=words):
        call(jnp.ones((1, 4, 5, 3)))
