"""How the tests of sources say that one is refused."""

import pytest

from vitlab.data.sources import open_source
from vitlab.errors import InputError


def fails(spec, message, split="train", read=lambda source: None):
    """That opening the source, or else reading from it, fails so, in one line."""
    with pytest.raises(InputError) as caught:
        read(open_source(spec, split))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def refused(message, spec, split="train"):
    """That opening the source, or else reading its first segments, fails so, in one line."""
    fails(spec, message, split, lambda source: source.segments(0))
