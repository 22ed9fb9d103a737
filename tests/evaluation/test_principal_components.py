import numpy as np
import pytest
from sklearn.decomposition import PCA

from vitlab.evaluation.principal_components import component_colours, principal_components


def features(*shape, seed=0):
    """Correlated, with a mean that is not 0."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(shape[-1], shape[-1])) * np.linspace(2, 0.1, shape[-1])
    return (rng.normal(size=shape) @ mixing.T + 5).astype(np.float32)


@pytest.mark.parametrize("shape", [(200, 12), (8, 30)])
def test_components_are_scikit_learns_up_to_the_sign(shape):
    x = features(*shape)
    found, shares = principal_components(x)
    peer = PCA(3, svd_solver="full").fit(x.astype(np.float64))
    expected = peer.transform(x.astype(np.float64))
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-8)
    np.testing.assert_allclose(shares, peer.explained_variance_ratio_, rtol=1e-9)


def test_components_do_not_change_when_the_features_are_rotated_or_moved():
    x = features(100, 9).astype(np.float64)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(9, 9)))
    found, _ = principal_components(x)
    np.testing.assert_allclose(principal_components(x @ rotation - 7)[0], found, atol=1e-8)
    np.testing.assert_allclose(principal_components(-x)[0], found, atol=1e-8)


def test_the_greatest_coordinate_is_positive():
    found, _ = principal_components(features(50, 6))
    greatest = np.abs(found).argmax(axis=0)
    assert (found[greatest, range(3)] > 0).all()


def test_directions_that_are_not_there_have_no_coordinates():
    found, shares = principal_components(np.array([[1.0, 0], [3, 0]]), 3)
    np.testing.assert_allclose(found, [[1, 0, 0], [-1, 0, 0]])
    np.testing.assert_allclose(shares, [1, 0, 0])
    found, shares = principal_components(np.ones((4, 2)), 3)
    assert not found.any()
    assert not shares.any()


def test_the_same_features_have_the_same_colours_in_every_image():
    kinds = features(5, 8)
    which = np.random.default_rng(2).integers(0, 5, (3, 6, 7))
    colours, shares = component_colours(kinds[which])
    assert colours.dtype == np.uint8
    assert colours.shape == (3, 6, 7, 3)
    assert 0.5 < shares.sum() <= 1
    for kind in range(5):
        assert len(np.unique(colours[which == kind], axis=0)) == 1
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 5
    assert (colours.reshape(-1, 3).min(axis=0) == 0).all()
    assert (colours.reshape(-1, 3).max(axis=0) == 255).all()


def test_padding_has_no_say_and_no_colour():
    maps = features(2, 4, 4, 6)
    mask = np.ones((2, 4, 4), bool)
    mask[1, :, 2:] = False
    colours, _ = component_colours(maps, mask)
    odd = maps.copy()
    odd[~mask] = 1e6
    np.testing.assert_array_equal(component_colours(odd, mask)[0], colours)
    assert (colours[~mask] == 0).all()
    assert not component_colours(maps, np.zeros_like(mask))[0].any()


def test_one_odd_patch_does_not_leave_all_others_alike():
    maps = features(2, 20, 20, 6)
    maps[0, 3, 3] += 1e4
    colours, _ = component_colours(maps)
    assert (colours.reshape(-1, 3).std(axis=0)[1:] > 30).all()
