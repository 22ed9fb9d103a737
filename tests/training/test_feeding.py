"""Steps on the device: as many a call as can be, and no more under way than a second's worth."""

import contextlib
import types

import numpy as np
import pytest

from vitlab.data.order import Order
from vitlab.training import feeding


class Clock:
    """Time that passes where the devices are waited for, a quarter of a second a step."""

    def __init__(self, seconds):
        self.now, self.seconds, self.under_way = 0.0, seconds, 0

    def monotonic(self):
        return self.now

    def block_until_ready(self):
        self.now += self.seconds * self.under_way
        self.under_way = 0


@pytest.mark.parametrize(("seconds", "most"), [(0.25, 4), (3.0, 1), (1e-4, 7)])
def test_a_call_ends_at_the_limit_and_a_second_is_under_way(seconds, most, monkeypatch):
    clock = Clock(seconds)
    monkeypatch.setattr(feeding, "time", clock)
    monkeypatch.setattr(feeding.jax, "transfer_guard", lambda _: contextlib.nullcontext())
    state, seen = types.SimpleNamespace(step=clock), []

    def step_fn(state, examples, index, count):
        ids, epochs = index
        assert ids.shape == epochs.shape == (count, 4)
        seen.append(ids.ravel())
        clock.under_way += count
        assert clock.under_way * seconds <= max(1, seconds)
        return state

    following = np.array([0, 1, 2, 4, 4, 5], np.int32)  # example 3 is broken
    cache = types.SimpleNamespace(
        max_steps=7,
        read=lambda: ({}, following, "1 of 6 images are broken"),
        to_devices=lambda ids, epochs: ((ids, epochs), len(ids)),
    )
    exp = types.SimpleNamespace(batch_size=4, seed=1, data=types.SimpleNamespace(repeats=2))
    setup = types.SimpleNamespace(cache=cache, source=range(6), experiment=exp)
    feed = feeding.FromDevice(setup, step_fn)
    assert feed.news() == "1 of 6 images are broken"
    assert feed.news() == ""
    step, counts = 0, []
    while step < 40:
        state, count = feed(state, step, 10 - step % 10)
        counts.append(count)
        step += count
        assert 1 <= count <= 7
    assert step == 40  # and it has stopped at 10, 20, 30
    assert {10, 20, 30} <= set(np.cumsum(counts))
    assert max(counts) == most
    assert counts[0] == 1  # before anything is known of their speed
    expected, _ = Order(1, 6, repeats=2, batch_size=4)(range(160))
    np.testing.assert_array_equal(np.concatenate(seen), following[expected])
