"""For which machine a function is traced: what several forms of an operation are chosen by."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_ANYWHERE = contextvars.ContextVar("anywhere", default=False)
_CUBLAS = contextvars.ContextVar("cublas", default=False)


def backend() -> str:
    """`jax.default_backend()`, "cpu", "gpu" or "tpu"; "" for what is to run anywhere."""
    return "" if _ANYWHERE.get() else jax.default_backend()


def cublas() -> bool:
    """Whether cuBLAS takes all products, each with what XLA knows it to do after one."""
    return _CUBLAS.get()


def anywhere() -> contextlib.AbstractContextManager[None]:
    """What is traced within is to run anywhere, as an exported file does: no operation takes the
    form that is the fastest on this machine, so that a convolution is one in the file."""
    return _within(_ANYWHERE, True)


def left_to_cublas(whether: bool) -> contextlib.AbstractContextManager[None]:
    """What is traced within is compiled with all products left to cuBLAS, or it is not."""
    return _within(_CUBLAS, whether)


@contextlib.contextmanager
def _within(variable, value) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
