"""How a process gets memory from the system, which glibc decides and which costs time.

Linux fills memory in page by page when it is first used: what is given back and taken again is
filled in again.
"""

import ctypes
import os
import pathlib
import sys

_MODE = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLE = "glibc.malloc.hugetlb"
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def use_huge_pages() -> None:
    """Has the C library ask Linux for pages of 2 MiB, for which the process starts itself anew.

    XLA takes the memory of every step anew, and with pages of 4 KiB filling it in is a quarter of a
    small ViT's training step on a CPU. The C library reads its settings when a process starts: so
    the same command line runs again in this process, which keeps its number. Nothing happens where
    that has been done, where the script came on standard input, where a person or a debugger would
    lose what they are at, where the system gives large pages to all or to none, or where the C
    library is not glibc 2.35 or newer.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if _TUNABLE in tunables or not (_can_begin_anew() and _library_can() and _asking_helps()):
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, f"{_TUNABLE}=1")))
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def keep_freed_memory() -> None:
    """Lets the process keep memory for the next image or step, which it would give back after each.

    glibc returns what is free at the heap's end, and maps large arrays anew: hundreds of pages an
    image, up to a quarter of its time, and half of the time of a small model's step. Arrays of more
    than 32 MiB are mapped anew all the same. Other allocators have no `mallopt`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_TRIM_THRESHOLD, 256 << 20)
        mallopt(_MMAP_THRESHOLD, 32 << 20)


def _can_begin_anew() -> bool:
    """Whether the process's command line does again what is being done, and nobody is in it."""
    arguments = sys.argv[1:]
    return (
        bool(sys.executable)
        and sys.argv[0] not in ("", "-")
        and sys.orig_argv[len(sys.orig_argv) - len(arguments) :] == arguments
        and not (sys.flags.interactive or hasattr(sys, "ps1"))
        and sys.gettrace() is None
    )


def _library_can() -> bool:
    try:
        name, version = os.confstr("CS_GNU_LIBC_VERSION").split()
    except (AttributeError, OSError, ValueError):  # another system, another library
        return False
    return name == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 35)


def _asking_helps() -> bool:
    try:
        return "[madvise]" in _MODE.read_text()
    except OSError:
        return False
