"""Which example comes when: permutations of the data, epoch after epoch."""

import collections

import numpy as np
import pytest

from vitlab.data.order import Order, epoch_order


def test_orders_never_change():
    # Recorded: a run that is resumed under another NumPy has to see the same examples.
    assert epoch_order(0, 0, 10).tolist() == [3, 2, 9, 7, 1, 5, 0, 4, 8, 6]
    assert epoch_order(2**63 + 5, 7, 5).tolist() == [1, 4, 0, 3, 2]


def test_seeds_and_epochs_order_apart():
    orders = {tuple(epoch_order(seed, epoch, 50)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_orders_are_uniform():
    # Over 2000 epochs every example is as often in every place: chi-squared with 81 degrees.
    places = np.zeros((10, 10))
    for epoch in range(2000):
        places[np.arange(10), epoch_order(0, epoch, 10)] += 1
    assert ((places - 200) ** 2 / 200).sum() < 81 + 4 * np.sqrt(2 * 81)


def test_the_order_runs_across_epochs_of_any_length():
    order = Order(5, 10)
    whole = np.concatenate([epoch_order(5, epoch, 10) for epoch in range(4)])
    for start, stop in [(0, 10), (7, 33), (10, 20), (29, 30)]:
        ids, epochs = order(range(start, stop))
        assert ids.dtype == epochs.dtype == np.int32
        np.testing.assert_array_equal(ids, whole[start:stop])
        np.testing.assert_array_equal(epochs, np.arange(start, stop) // 10)


@pytest.mark.parametrize(("n", "repeats", "batch_size"), [(10, 3, 8), (7, 2, 16), (5, 3, 2)])
def test_repeats_visit_every_example_as_often_and_draw_apart(n, repeats, batch_size):
    order, apart = Order(5, n, repeats, batch_size), max(batch_size // repeats, 1)
    stop = 4 * n * apart * repeats  # whole epochs, and whole rounds of repeats
    ids, visits = order(range(stop))
    assert set(collections.Counter(ids.tolist()).values()) == {stop // n}
    assert len(set(zip(ids.tolist(), visits.tolist(), strict=True))) == stop
    whole = np.concatenate([epoch_order(5, epoch, n) for epoch in range(stop // n // repeats)])
    np.testing.assert_array_equal(ids.reshape(-1, repeats, apart)[:, 0].ravel(), whole)
    again = [order(range(start, start + apart)) for start in range(0, stop, apart)]
    np.testing.assert_array_equal(np.concatenate(again, 1), (ids, visits))


def test_repeats_are_no_neighbours_which_mixing_would_blend():
    ids, _ = Order(0, 1000, repeats=3, batch_size=64)(range(64 * 20))
    assert all(len(set(batch)) < 64 for batch in ids.reshape(20, 64))
    assert (ids != np.roll(ids, 1)).all()
