"""One run at a time in a working directory: two would delete each other's checkpoints."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator
from typing import Any

import jax

from vitlab import distributed
from vitlab.errors import InputError


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator[None]:
    """Makes a working directory, and keeps other runs out of it until the end of the context.

    The system itself lets go of the lock of a process that is gone, however it ended. Of several
    processes of one run the first has it. File systems without locks keep nobody out.

    Raises:
        InputError: another run is in the directory; or it cannot be written, or not every process
            sees it.
    """
    first = jax.process_index() == 0
    file: Any = contextlib.nullcontext()
    try:
        if first:
            workdir.mkdir(parents=True, exist_ok=True)
            file = (workdir / ".lock").open("a")  # which NFS locks only where it may be written
    except OSError as e:
        raise InputError(f"--workdir {e.filename or workdir}: {e.strerror or e}") from e
    with file:
        distributed.wait_for_all("the working directory is there")
        if not distributed.all_of(workdir.is_dir()):
            raise InputError(f"--workdir {workdir} must be one that every process sees")
        if not distributed.all_of(not first or _lock(file)):
            raise InputError(
                f"--workdir {workdir}: another run is in it now; wait for its end, or give another"
            )
        yield


def _lock(file: Any) -> bool:
    """Locks an open file; False if another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # no locks here, as on NFS without its lock manager
    return True
