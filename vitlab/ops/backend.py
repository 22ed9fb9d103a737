"""For which machine a function is traced: what several forms of an operation are chosen by."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_ANYWHERE = contextvars.ContextVar("anywhere", default=False)


def backend() -> str:
    """`jax.default_backend()`, "cpu", "gpu" or "tpu"; "" for what is to run anywhere."""
    return "" if _ANYWHERE.get() else jax.default_backend()


@contextlib.contextmanager
def anywhere() -> Iterator[None]:
    """What is traced within is to run anywhere, as an exported file does: no operation takes the
    form that is the fastest on this machine, so that a convolution is one in the file."""
    token = _ANYWHERE.set(True)
    try:
        yield
    finally:
        _ANYWHERE.reset(token)
