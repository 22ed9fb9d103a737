import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.errors import InputError
from vitlab.ops.dropout import drop_path, dropout

KEYS = jax.random.split(jax.random.key(0), 4000)


def test_an_example_is_dropped_whole_or_scaled_up():
    x = jnp.arange(1.0, 1 + 4000 * 6).reshape(4000, 2, 3)
    out = np.asarray(drop_path(x, 0.25, KEYS))
    kept = out[:, 0, 0] != 0
    np.testing.assert_array_equal(out[~kept], 0)
    np.testing.assert_allclose(out[kept], x[kept] / 0.75, rtol=1e-6)
    # 4000 draws of probability 0.75: standard deviation 0.0068 of the mean.
    assert kept.mean() == pytest.approx(0.75, abs=0.03)


def test_rate_zero_is_the_identity_and_the_dtype_stays():
    x = jnp.ones((3, 2), jnp.bfloat16)
    assert drop_path(x, 0.0, KEYS[:3]) is x
    assert drop_path(x, 0.5, KEYS[:3]).dtype == jnp.bfloat16


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_rates_outside_the_unit_interval_are_refused(rate):
    with pytest.raises(InputError, match=r"must be in \[0, 1\)"):
        drop_path(jnp.ones((2, 2)), rate, KEYS[:2])


def test_each_value_is_dropped_or_scaled_up():
    x = jnp.arange(1.0, 1 + 4000 * 6).reshape(4000, 2, 3)
    out = np.asarray(dropout(x, 0.25, KEYS))
    kept = out != 0
    np.testing.assert_allclose(out[kept], x[kept] / 0.75, rtol=1e-6)
    # 24000 draws of probability 0.75: standard deviation 0.0028 of the mean.
    assert kept.mean() == pytest.approx(0.75, abs=0.012)
    assert not kept.reshape(4000, 6).all(1).all()


@pytest.mark.parametrize("op", [dropout, drop_path])
def test_an_example_loses_the_same_in_any_batch(op):
    x = jnp.ones((8, 3))
    whole = op(x, 0.5, KEYS[:8])
    np.testing.assert_array_equal(whole[5:], op(x[5:], 0.5, KEYS[5:8]))
    assert len({float(v) for v in whole.ravel()}) == 2
    assert op(x, 0.5, None) is x
