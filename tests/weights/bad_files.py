"""What every file that is wrong must end in."""

import tracemalloc

import pytest

from vitlab.errors import InputError
from vitlab.weights.files import open_file


def refused(message, path, read="w"):
    """That opening the file, or else reading of it, fails so, in one line and little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            open_file(path)[0][read].read()
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
