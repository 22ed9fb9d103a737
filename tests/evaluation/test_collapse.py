import numpy as np
import pytest

from vitlab.errors import InputError
from vitlab.evaluation.collapse import effective_rank, feature_std


def orthogonal(n, r, seed=0):
    """f64[n, r] with orthonormal columns."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, r)))[0]


def test_std_of_gaussian_features_is_one():
    features = np.random.default_rng(0).normal(size=(5000, 64))
    assert feature_std(features) == pytest.approx(1, abs=1e-3)


def test_std_of_simsiams_definition():
    features = np.random.default_rng(0).normal(size=(300, 16)) + 1
    directions = features / np.linalg.norm(features, axis=1, keepdims=True)
    per_dim = directions.std(axis=0)
    assert feature_std(features) == pytest.approx(np.sqrt(np.mean(per_dim**2) * 16), rel=1e-5)
    # For unit vectors this is the length that their mean lacks.
    expected = np.sqrt(1 - np.sum(directions.mean(axis=0) ** 2))
    assert feature_std(features) == pytest.approx(expected, rel=1e-5)


def test_features_of_one_direction_have_collapsed():
    direction = np.random.default_rng(0).normal(size=(1, 32))
    scaled = direction * np.linspace(0.1, 10, 50)[:, None]
    assert feature_std(scaled) == pytest.approx(0, abs=1e-6)
    assert effective_rank(scaled) == pytest.approx(1, abs=1e-3)


def test_rank_of_constant_features_is_one():
    assert effective_rank(np.full((50, 32), 3.0)) == pytest.approx(1, abs=1e-6)
    assert feature_std(np.full((50, 32), 3.0)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("n", "dim"), [(100, 40), (40, 100), (60, 60)])
@pytest.mark.parametrize("r", [1, 2, 17, 40])
def test_rank_of_r_equal_orthogonal_directions_is_r(n, dim, r):
    features = orthogonal(n, r) @ orthogonal(dim, r, seed=1).T
    assert effective_rank(features) == pytest.approx(r, rel=1e-4)


@pytest.mark.parametrize("shape", [(200, 30), (30, 200)])
def test_rank_equals_the_papers_formula(shape):
    features = np.random.default_rng(0).normal(size=shape) * np.geomspace(1, 1e-3, shape[1])
    values = np.linalg.svd(features, compute_uv=False)
    p = values / values.sum() + 1e-7  # the paper's epsilon
    assert effective_rank(features) == pytest.approx(np.exp(-np.sum(p * np.log(p))), rel=1e-4)


@pytest.mark.parametrize("measure", [feature_std, effective_rank])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_scale_changes_nothing(measure, scale):
    features = np.random.default_rng(0).normal(size=(100, 20)) + 0.5
    assert measure(features * scale) == pytest.approx(measure(features), rel=1e-5)


def test_degenerate_features():
    zero, one = np.zeros((10, 4)), np.ones((1, 4))
    assert (feature_std(zero), effective_rank(zero)) == (0, 0)
    assert (feature_std(one), effective_rank(one)) == (0, pytest.approx(1))


@pytest.mark.parametrize("measure", [feature_std, effective_rank])
@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((0, 4)), r"features \(0, 4\) must be \[examples, dim\]"),
        (np.zeros(4), r"features \(4,\) must be \[examples, dim\]"),
        ([[0.0, 1.0], [np.nan, 1.0]], "features of example 1 must be finite"),
        ([[0.0, 1e300]], "features of example 0 must be finite"),
    ],
)
def test_features_that_are_no_features_are_refused(measure, features, message):
    with pytest.raises(InputError, match=message):
        measure(features)
