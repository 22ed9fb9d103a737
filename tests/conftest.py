"""Compiled programs are kept for the session: tests and the processes they start share them."""

import atexit
import os
import shutil
import tempfile

_cache = tempfile.mkdtemp(prefix="vitlab-test-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
# Before JAX is imported, and inherited by every process that a test starts.
os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"
os.environ["JAX_PLATFORMS"] = "cpu"
