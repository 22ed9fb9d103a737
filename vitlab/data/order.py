"""Which example a training sees when: a function of the seed and the position alone."""

from typing import Any

import numpy as np


def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The order in which one epoch visits the examples: int32[num_examples], a permutation.

    Drawn whole, 0.1 ms for two thousand examples and 25 ms for ImageNet: Grain's lazy shuffle
    takes up to 25 microseconds for each single example of a small data set.
    """
    key = np.array([int(seed) % 2**64, epoch], np.uint64)
    # The last word of the counter sets these draws apart from those of `pipeline.example_rng`.
    bits = np.random.Philox(key=key, counter=np.array([0, 0, 0, 1], np.uint64))
    return np.random.Generator(bits).permutation(np.arange(num_examples, dtype=np.int32))


class Order:
    """Which examples a training visits, one after the other.

    Position g is example `order[g % n]` of epoch `g // n`, where `order` is that epoch's
    permutation of the n examples. With `repeats` (Hoffer et al. 2019, arXiv:1901.09335) an example
    has that many positions, `batch_size // repeats` apart: as far as a batch allows, so that mixing
    does not blend neighbours that are the same image.

    Args:
        seed: of the shuffling.
        num_examples: of the split.
        repeats: how often an example comes before it is another's turn.
        batch_size: see above; without repeats it changes nothing.
    """

    def __init__(self, seed: int, num_examples: int, repeats: int = 1, batch_size: int = 1):
        self._seed, self._num_examples, self._repeats = seed, num_examples, repeats
        self._apart = max(batch_size // repeats, 1)
        self._orders: dict[int, np.ndarray] = {}

    def __call__(self, positions: range) -> tuple[np.ndarray, np.ndarray]:
        """The examples at consecutive global positions, and what sets the draws of their visits
        apart, `epoch * repeats + repeat`: int32[n] each."""
        round_, place = np.divmod(np.arange(positions.start, positions.stop), self._apart)
        turn, repeat = np.divmod(round_, self._repeats)
        epochs, index = np.divmod(turn * self._apart + place, self._num_examples)
        ids = np.empty(len(positions), np.int32)
        for epoch in np.unique(epochs):
            of_it = epochs == epoch
            ids[of_it] = self._order(int(epoch))[index[of_it]]
        return ids, (epochs * self._repeats + repeat).astype(np.int32)

    def _order(self, epoch: int) -> np.ndarray:
        orders = self._orders
        if epoch not in orders:
            # Two epochs are kept, for batches across a border. Threads that meet here draw the same
            # order twice at worst.
            orders = {e: order for e, order in orders.items() if abs(e - epoch) == 1}
            orders[epoch] = epoch_order(self._seed, epoch, self._num_examples)
            self._orders = orders
        return orders[epoch]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_orders": {}}
