import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.errors import InputError
from vitlab.ops.padding import content_mask
from vitlab.ops.windows import pad_to_multiple, sliding_window, upsample, window_starts

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def reference():
    arrays = np.load(FIXTURES / "segmenters.npz")
    prefix = "windows/"
    return {k.removeprefix(prefix): arrays[k] for k in arrays.files if k.startswith(prefix)}


def test_windows_begin_where_the_reference_s_do():
    arrays = reference()
    cases = [name for name in arrays if name.startswith("starts/")]
    assert len(cases) == 5
    for name in cases:
        sizes = map(int, name.removeprefix("starts/").split(","))
        np.testing.assert_array_equal(window_starts(*sizes), arrays[name])


def test_windows_cover_a_side_and_stay_within_it():
    for side in range(1, 40):
        for window in range(1, 20):
            for step in range(1, window + 1):
                starts = window_starts(side, window, step)
                assert starts[0] == 0
                assert (np.diff(starts) > 0).all()
                assert (np.diff(starts) <= step).all()
                assert starts[-1] == max(side - window, 0)


@pytest.mark.parametrize("step", [6, 8])
def test_merged_windows_are_the_reference_s(step):
    """Of a model that sees what a window is as a whole."""
    arrays = reference()

    def predict(images, content):
        mean = images.mean(axis=(1, 2, 3), keepdims=True)
        return images * mean * 4 + images, None

    logits = sliding_window(predict, arrays["image"][None], None, 8, step, stride=1)
    expected = arrays[f"probabilities/{step}"]
    np.testing.assert_allclose(jax.nn.softmax(logits)[0], expected, atol=1e-6)


def local(images, content):
    """Of each cell of 4 x 4 pixels the mean and whether it is no padding."""
    batch, height, width, channels = images.shape
    cells = images.reshape(batch, height // 4, 4, width // 4, 4, channels).mean(axis=(2, 4))
    if content is None:
        content = jnp.full((batch, 2), jnp.array([height, width]))
    inside = content_mask(content, cells.shape[1:3], 4)[..., None]
    return jnp.concatenate([cells * inside, inside], axis=-1), {}


def of_windows(images, content):
    """What depends on a whole window: its mean and size."""
    cells, _ = local(images, content)
    return cells + cells.mean(axis=(1, 2), keepdims=True) * cells.shape[1], {}


@pytest.mark.parametrize(
    ("window", "step"), [(4, None), (12, 4), (12, 8), (16, None), (28, 8), (32, 8), (36, 4)]
)
@pytest.mark.parametrize("said", [True, False])
def test_what_is_local_is_the_same_through_any_windows(window, step, said):
    images, content = drawn(2, 28, 36, 3), np.array([[28, 21], [9, 36]]) if said else None
    found = sliding_window(local, images, content, window, step, stride=4)
    np.testing.assert_allclose(found, local(images, content)[0], atol=1e-6)


def test_a_window_that_covers_the_image_is_the_image():
    images, seen = drawn(2, 10, 13, 3), []

    def predict(*args):
        seen.append(args)
        return jnp.zeros((2, 3, 4, 1)), {}

    content = np.array([[10, 13], [8, 4]])
    for window in (None, 16, 1024):
        sliding_window(predict, images, content, window, None, 4)
    # As it is: whoever predicts knows better what to do with sides that the stride does not divide.
    assert all(args[0] is images and args[1] is content for args in seen)
    assert len(seen) == 3


@pytest.mark.parametrize("said", [True, False])
def test_sides_that_the_stride_does_not_divide_are_padded_and_said_to_be(said):
    images, content = drawn(2, 26, 33, 3), np.array([[26, 33], [7, 30]])
    found = sliding_window(local, images, content if said else None, 16, 8, stride=4)
    assert found.shape == (2, 7, 9, 4)
    padded = np.pad(images, [(0, 0), (0, 2), (0, 3), (0, 0)])
    content = content if said else np.array([[26, 33]] * 2)
    np.testing.assert_allclose(found, local(padded, content)[0], atol=1e-6)


def test_all_windows_are_one_batch_of_one_shape():
    shapes = []

    def predict(images, content):
        shapes.append((images.shape, content.shape))
        return local(images, content)

    content = np.full((3, 2), [40, 12])
    sliding_window(predict, drawn(3, 40, 12, 3), content, 16, 8, stride=4)
    assert shapes == [((4 * 3, 16, 12, 3), (4 * 3, 2))]  # at 0, 8, 16 and 24; no side to slide on


def test_images_of_a_batch_do_not_see_each_other():
    images, content = drawn(3, 28, 36, 3), np.array([[28, 36], [9, 36], [28, 1]])
    both = sliding_window(of_windows, images, content, 16, 8, stride=4)
    for i in range(3):
        row = slice(i, i + 1)
        one = sliding_window(of_windows, images[row], content[row], 16, 8, stride=4)
        np.testing.assert_allclose(one, both[row], atol=1e-6)
    whole = of_windows(images, content)[0]
    assert np.abs(both - whole).max() > 0.1


@pytest.mark.parametrize("step", [8, 16])
def test_what_windows_see_does_not_depend_on_the_canvas(step):
    """Each image's windows end with its content, whatever lies beyond."""
    sizes, rng = [(16, 22), (30, 17), (9, 40)], np.random.default_rng(0)
    images = [rng.normal(size=(1, *size, 3)).astype(np.float32) for size in sizes]
    content = np.array(sizes)

    def of_seen(images, content):  # the mean of what is seen, wherever padding begins
        cells, _ = local(images, content)
        seen = cells[..., -1:].sum(axis=(1, 2), keepdims=True)
        return cells + cells[..., -1:] * cells.sum(axis=(1, 2), keepdims=True) / seen, {}

    @jax.jit
    def found_in(images, content):
        return sliding_window(of_seen, images, content, 16, step, stride=4)

    alone = [found_in(x, content[i : i + 1])[0] for i, x in enumerate(images)]
    for canvas in ((32, 40), (40, 40), (41, 67)):
        batch = np.concatenate(
            [
                np.pad(
                    x, [(0, 0), (0, canvas[0] - x.shape[1]), (0, canvas[1] - x.shape[2]), (0, 0)]
                )
                for x in images
            ]
        )
        for found, expected in zip(found_in(batch, content), alone, strict=True):
            rows, columns = expected.shape[:2]
            np.testing.assert_allclose(found[:rows, :columns], expected, atol=1e-5)


def test_overlapping_windows_are_averaged():
    """A window says where it begins: cells under two of them get the mean."""

    def predict(images, content):
        first = images[:, :1, :1, :1]
        return jnp.broadcast_to(first, (len(images), 1, 4, 1)), None

    images = np.broadcast_to(np.arange(24.0, dtype=np.float32)[:, None], (1, 4, 24, 1))
    found = sliding_window(predict, images, None, 16, 8, stride=4)
    np.testing.assert_array_equal(found[0, 0, :, 0], [0, 0, 4, 4, 8, 8])


def test_padding_to_a_multiple_says_what_is_no_padding():
    images, content = drawn(2, 8, 12, 3), np.array([[8, 12], [3, 5]])
    for given in (None, content):
        same, said = pad_to_multiple(images, given, 4)
        assert same is images
        assert said is given
        padded, said = pad_to_multiple(images, given, 5)
        assert padded.shape == (2, 10, 15, 3)
        np.testing.assert_array_equal(padded[:, :8, :12], images)
        assert not padded[:, 8:].any()
        assert not padded[:, :, 12:].any()
        np.testing.assert_array_equal(said, [[8, 12]] * 2 if given is None else content)


def test_enlarged_maps_keep_planes():
    """Bilinear: a plane between the centres of the outermost cells stays one, and beyond them the
    outermost value goes on."""
    rows, columns = np.mgrid[:3, :5].astype(np.float32)
    found = upsample((2 * rows - columns)[None, ..., None], 4, (11, 18))[0, ..., 0]
    y, x = np.mgrid[:11, :18]
    y, x = np.clip((y + 0.5) / 4 - 0.5, 0, 2), np.clip((x + 0.5) / 4 - 0.5, 0, 4)
    np.testing.assert_allclose(found, 2 * y - x, atol=1e-6)


def test_maps_that_cover_less_than_the_image_are_refused_in_one_line():
    said = "^3 x 5 cells of 4 pixels do not cover 13 x 20$"
    with pytest.raises(InputError, match=said):
        upsample(jnp.zeros((1, 3, 5, 2)), 4, (13, 20))
    assert upsample(jnp.zeros((1, 3, 5, 2)), 4, (12, 20)).shape == (1, 12, 20, 2)
