import numpy as np

from vitlab.evaluation.neighbours import nearest_neighbours


def test_neighbours_are_by_angle_not_by_length():
    keys = np.array([[0, 1.0], [100, 1], [0.1, 0], [-1, 0]], np.float32)
    nearest, similarity = nearest_neighbours(np.array([[2.0, 0]]), keys, 3)
    np.testing.assert_array_equal(nearest, [[2, 1, 0]])
    np.testing.assert_allclose(similarity, [[1, 100 / np.hypot(100, 1), 0]], rtol=1e-6)


def test_an_image_is_not_its_own_neighbour():
    x = np.random.default_rng(0).normal(size=(4, 3))
    nearest, similarity = nearest_neighbours(x, x, 5, np.eye(4, dtype=bool))
    assert nearest.shape == (4, 4)
    assert (nearest[:, :3] != np.arange(4)[:, None]).all()
    assert np.isneginf(similarity[:, 3]).all()


def test_equal_ones_come_in_order_and_no_feature_is_like_none():
    keys = np.array([[1.0, 0], [2, 0], [0, 0]])
    nearest, similarity = nearest_neighbours(np.array([[1.0, 0], [0, 0]]), keys, 3)
    np.testing.assert_array_equal(nearest, [[0, 1, 2], [0, 1, 2]])
    np.testing.assert_allclose(similarity, [[1, 1, 0], [0, 0, 0]])


def test_features_in_half_precision_are_compared_in_float32():
    """Whose norms, of about 380, have squares that float16 does not hold."""
    x = (12 * np.random.default_rng(0).normal(size=(5, 1024))).astype(np.float16)
    nearest, similarity = nearest_neighbours(x, x, 1)
    np.testing.assert_array_equal(nearest[:, 0], range(5))
    assert similarity.dtype == np.float32
    np.testing.assert_allclose(similarity, 1, rtol=1e-6)
    nothing = np.zeros((1, 1024), np.float16)
    np.testing.assert_array_equal(nearest_neighbours(nothing, x, 2)[1], [[0, 0]])
