"""Compiled programs, kept in the user's cache folder: what was compiled once starts at once."""

import os
import pathlib
import platform
import zlib

from vitlab.cache_folder import cache_folder

_CPUINFO = pathlib.Path("/proc/cpuinfo")


def use() -> None:
    """Has JAX keep what it compiles, for this process and later ones; to be called before JAX is
    imported, which reads its settings from the environment.

    In `$XDG_CACHE_HOME/vitlab/compiled`, by default `~/.cache/vitlab/compiled`, at most 4 GiB, the
    least used thrown away first. `JAX_COMPILATION_CACHE_DIR` names another folder, with JAX's own
    settings, and `JAX_ENABLE_COMPILATION_CACHE=0` keeps nothing. Nothing is kept either where the
    folder cannot be written.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = cache_folder("compiled") / _processor()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(4 * 2**30))
        # JAX keeps what took a second; a run compiles some ten programs that take less.
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def _processor() -> str:
    """Names the instructions that there are: computers of several kinds may share the folder, and
    JAX does not tell their programs apart."""
    try:
        lines = _CPUINFO.read_text().splitlines()
        known = next((x for x in lines if x.startswith(("flags", "Features"))), "")
    except OSError:
        known = platform.processor()
    return f"{platform.machine()}-{zlib.crc32(known.encode()):08x}"
