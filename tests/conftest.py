"""Compiled programs are kept while the tests run: all their processes share them."""

import atexit
import os
import shutil
import tempfile

# Before JAX is imported, and inherited by every process of pytest-xdist and that a test starts.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="vitlab-test-")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"
os.environ["JAX_PLATFORMS"] = "cpu"


def pytest_collection_modifyitems(items):
    """The files of whole runs first: what is short fills the time until the last is done."""
    items.sort(key=lambda item: item.path.parent.name != "tests")
