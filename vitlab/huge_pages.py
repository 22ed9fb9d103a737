"""Large pages of memory for the arrays of a program on a CPU."""

import os
import pathlib
import sys

_MODE = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLE = "glibc.malloc.hugetlb"


def use() -> None:
    """Has the C library ask Linux for pages of 2 MiB, for which the process starts itself anew.

    XLA takes the memory of every step from the C library and gives it back. Linux fills it in page
    by page, and with pages of 4 KiB that is a quarter of a small ViT's training step. The C library
    reads its settings when a process starts: so the same command line runs again in this process,
    which keeps its number. Nothing happens where that has been done, where the system gives large
    pages to all or to none, or where the C library is not glibc 2.35 or newer.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if _TUNABLE in tunables or not (_library_can() and _asking_helps()):
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, f"{_TUNABLE}=1")))
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _library_can() -> bool:
    try:
        name, version = os.confstr("CS_GNU_LIBC_VERSION").split()
    except (AttributeError, ValueError):  # another system, another library
        return False
    return name == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 35)


def _asking_helps() -> bool:
    try:
        return "[madvise]" in _MODE.read_text()
    except OSError:
        return False
