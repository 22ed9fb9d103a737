"""Learning-rate schedules against their formulas."""

import math

import numpy as np
import pytest

from vitlab.config import Duration, as_dict, section
from vitlab.errors import InputError
from vitlab.training.schedules import ScheduleConfig, make_schedule

TOTAL, PEAK = 100, 0.5


def values(config, total=TOTAL):
    schedule = make_schedule(config, PEAK, total, batch_size=10, examples=100)
    return np.array([float(schedule(step)) for step in range(total + 1)])


def test_cosine_with_warmup():
    lr = values(ScheduleConfig("cosine", warmup=Duration(20, "steps")))
    steps = np.arange(TOTAL + 1)
    expected = np.where(
        steps < 20, PEAK * steps / 20, PEAK * 0.5 * (1 + np.cos(math.pi * (steps - 20) / 80))
    )
    np.testing.assert_allclose(lr, expected, atol=1e-7)


def test_a_warmup_may_start_above_0():
    lr = values(ScheduleConfig("cosine", warmup=Duration(20, "steps"), start_factor=0.1))
    np.testing.assert_allclose(lr[:21], np.linspace(0.1 * PEAK, PEAK, 21), rtol=1e-6)
    for wrong in (dict(start_factor=0.1), dict(start_factor=-0.1, warmup=Duration(20, "steps"))):
        with pytest.raises(InputError, match="start_factor is -?0.1: .* needs a warm-up"):
            ScheduleConfig(**wrong)


def test_linear_and_constant_with_cooldown():
    lr = values(ScheduleConfig("linear", end_factor=0.1))
    np.testing.assert_allclose(lr, np.linspace(PEAK, 0.1 * PEAK, TOTAL + 1), rtol=1e-6)
    lr = values(ScheduleConfig("constant", cooldown=Duration(4, "epochs")))  # 10 steps an epoch
    np.testing.assert_allclose(lr[:61], PEAK)
    np.testing.assert_allclose(lr[60:], np.linspace(PEAK, 0, 41), atol=1e-7)


def test_poly_is_the_published_power_of_what_is_left():
    lr = values(ScheduleConfig("poly", warmup=Duration(20, "steps")))
    left = 1 - np.arange(81) / 80
    np.testing.assert_allclose(lr[20:], PEAK * left**0.9, atol=1e-6)


def test_rsqrt_halves_when_time_has_quadrupled():
    lr = values(ScheduleConfig("rsqrt", timescale=Duration(10, "steps")))
    assert lr[0] == pytest.approx(PEAK)
    assert lr[30] == pytest.approx(PEAK / 2)


def test_stair_with_warmup_steps_down_at_fractions_of_the_whole():
    lr = values(ScheduleConfig("stair", warmup=Duration(10, "steps"), decay_at=(0.5, 0.75)))
    assert lr[10] == lr[49] == pytest.approx(PEAK)
    assert lr[51] == lr[74] == pytest.approx(PEAK / 10)
    assert lr[76] == lr[100] == pytest.approx(PEAK / 100)
    twice = values(ScheduleConfig("stair", decay_at=(0.5, 0.501)))  # both are step 50
    assert (twice[49], twice[51]) == pytest.approx((PEAK, PEAK / 100))


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="0.5 is step 50 of 100, within the 60 steps of the warm"):
        values(ScheduleConfig("stair", warmup=Duration(60, "steps"), decay_at=(0.5,)))
    with pytest.raises(InputError, match="80 steps of warm-up and 40 of cooldown do not fit"):
        values(ScheduleConfig(warmup=Duration(80, "steps"), cooldown=Duration(40, "steps")))
    with pytest.raises(InputError, match="power does nothing to .* cosine; leave it at 0.9"):
        ScheduleConfig(power=0.5)
    with pytest.raises(InputError, match="timescale does nothing .* leave it at 10000 steps"):
        ScheduleConfig(timescale=Duration(5, "steps"))
    with pytest.raises(InputError, match="decay_factor does nothing to the schedule poly"):
        ScheduleConfig("poly", decay_factor=0.5)
    with pytest.raises(InputError, match="end_factor is -1: it cannot be negative"):
        ScheduleConfig(end_factor=-1)
    with pytest.raises(InputError, match="power and timescale must be above 0"):
        ScheduleConfig("rsqrt", timescale=Duration(0, "steps"))  # 0 / 0 at step 0
    with pytest.raises(InputError, match="stair needs fractions"):
        ScheduleConfig("stair")


@pytest.mark.parametrize("name", ["cosine", "linear", "poly", "constant", "rsqrt", "stair"])
def test_a_config_with_all_defaults_written_out_is_legal(name):
    config = ScheduleConfig(name, decay_at=(0.5,) if name == "stair" else ())
    assert section(as_dict(config), ScheduleConfig) == config
