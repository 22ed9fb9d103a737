"""Colours of classes."""

import numpy as np

from vitlab.class_colors import class_colors

WRONG, RIGHT = (0xD5, 0x5E, 0x00), (0xD9, 0xD9, 0xD9)  # of the errors' pictures


def test_the_colour_of_a_class_is_its_own():
    """Of the first 24 also to the eye, and none is the colour of errors or of the void."""
    every = class_colors(np.arange(168))
    assert len(np.unique(every, axis=0)) == 168
    np.testing.assert_array_equal(class_colors(np.array([[5]])), every[None, 5:6])
    first = np.concatenate([every[:24], [WRONG, RIGHT, [255] * 3]]).astype(int)
    apart = np.abs(first[:, None] - first).sum(axis=-1) + 1000 * np.eye(len(first), dtype=int)
    assert apart.min() >= 60
