import math
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from vitlab.errors import InputError
from vitlab.ops.positions import apply_rope, resize_position_embedding, rope_2d, sincos_2d

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "position_resize.npz"
GRID = (3, 5)


@pytest.mark.parametrize(("endpoint", "denominator"), [(True, 3), (False, 4)])
def test_sincos_is_the_formula_of_big_vision_and_of_mae(endpoint, denominator):
    # big_vision divides the index of the frequency by their number less 1, MAE by their number.
    table = np.asarray(sincos_2d(GRID, 16, endpoint=endpoint))
    assert table.shape == (*GRID, 16)
    for row, column, i in np.ndindex(*GRID, 4):
        omega = 10_000.0 ** -(i / denominator)
        quarters = table[row, column].reshape(4, 4)[:, i]
        expected = [f(p * omega) for p in (column, row) for f in (math.sin, math.cos)]
        np.testing.assert_allclose(quarters, expected, atol=1e-7)


def test_rope_rotates_pairs_by_the_angle_of_the_patch_centre():
    head_dim, theta = 8, 50.0
    x = np.random.default_rng(0).normal(size=(2, 15, 3, head_dim)).astype(np.float32)
    rotated = apply_rope(jnp.asarray(x), rope_2d(GRID, head_dim, theta))
    expected = np.zeros_like(x)
    for row, column, i in np.ndindex(*GRID, head_dim // 2):
        axis, frequency = divmod(i, head_dim // 4)
        coordinate = ((row, column)[axis] + 0.5) / GRID[axis] * 2 - 1
        angle = 2 * math.pi * coordinate / theta ** (2 * frequency / (head_dim / 2))
        rotation = complex(math.cos(angle), math.sin(angle))
        token = row * GRID[1] + column
        pair = (x[:, token, :, i] + 1j * x[:, token, :, i + head_dim // 2]) * rotation
        expected[:, token, :, i] = pair.real
        expected[:, token, :, i + head_dim // 2] = pair.imag
    np.testing.assert_allclose(rotated, expected, atol=1e-5)


def test_rope_products_depend_on_the_offset_alone():
    x, y = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    table = rope_2d((4, 4), 8)
    rotate = [apply_rope(jnp.broadcast_to(v, (1, 16, 1, 8)), table)[0, :, 0] for v in (x, y)]
    products = np.asarray(rotate[0] @ rotate[1].T).reshape(4, 4, 4, 4)
    assert abs(products[0, 1, 2, 2] - products[1, 0, 3, 1]) < 1e-5
    assert abs(products[0, 1, 2, 2] - products[0, 1, 2, 3]) > 1e-3


def test_rope_takes_a_table_per_example_and_keeps_the_dtype():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 15, 3, 8)), jnp.bfloat16)
    table = rope_2d(GRID, 8)
    order = np.stack([np.arange(15), np.arange(15)[::-1]])
    shuffled = apply_rope(jnp.take_along_axis(x, order[..., None, None], axis=1), table[order])
    straight = jnp.take_along_axis(apply_rope(x, table), order[..., None, None], axis=1)
    assert shuffled.dtype == jnp.bfloat16
    np.testing.assert_array_equal(shuffled, straight)


@pytest.mark.parametrize("grid", [(9, 6), (3, 4)])
def test_resizing_is_torch_interpolation(grid):
    fixture = np.load(FIXTURE, allow_pickle=False)
    table = jnp.asarray(fixture["params/table"])

    def error(key, **settings):
        resized = resize_position_embedding(table, grid, old_grid=(5, 7), **settings)
        return np.abs(resized - fixture[f"outputs/{key}-{grid[0]}-{grid[1]}"]).max()

    for method in ("bicubic", "bilinear"):
        for antialias in (True, False):
            assert error(f"{method}-{antialias:d}", method=method, antialias=antialias) < 2e-5
    assert error("offset", antialias=False, offset=0.1) < 2e-5


@pytest.mark.parametrize("grid", [(9, 6), (3, 4)])
def test_resizing_with_aligned_corners_is_the_zoom_of_big_vision(grid):
    table = np.random.default_rng(0).normal(size=(5, 7, 3)).astype(np.float32)
    zoom = scipy.ndimage.zoom(table, (grid[0] / 5, grid[1] / 7, 1), order=1)
    settings = {"method": "bilinear", "antialias": False, "align_corners": True}
    resized = resize_position_embedding(table.reshape(1, 35, 3), grid, old_grid=(5, 7), **settings)
    np.testing.assert_allclose(resized[0], zoom.reshape(-1, 3), atol=1e-5)


def test_resizing_keeps_the_prefix_and_the_dtype():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2 + 16, 4)), jnp.bfloat16)
    resized = resize_position_embedding(table, (6, 5), num_prefix=2)
    assert resized.shape == (1, 2 + 30, 4)
    assert resized.dtype == jnp.bfloat16
    np.testing.assert_array_equal(resized[:, :2], table[:, :2])
    np.testing.assert_array_equal(resize_position_embedding(table, (4, 4), num_prefix=2), table)


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="17 rows after 0 prefix rows"):
        resize_position_embedding(jnp.zeros((1, 17, 4)), (6, 6))
    with pytest.raises(InputError, match="'nearest'"):
        resize_position_embedding(jnp.zeros((1, 16, 4)), (6, 6), method="nearest")
    with pytest.raises(InputError, match="4 divides, got 18"):
        sincos_2d((2, 2), 18)
    with pytest.raises(InputError, match="4 divides, got 6"):
        rope_2d((2, 2), 6)
