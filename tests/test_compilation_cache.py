import os
import pathlib
import subprocess
import sys

import pytest

from vitlab import compilation_cache

SCRIPT = """
from vitlab import compilation_cache
compilation_cache.use()
import jax, jax.numpy as jnp, logging
class Seen(logging.Handler):
    def emit(self, record):
        if "Persistent compilation cache hit" in record.getMessage():
            print("hit")
logging.getLogger("jax").setLevel(logging.DEBUG)
logging.getLogger("jax").addHandler(Seen())
print(jax.jit(lambda x: jnp.linalg.svd(x)[1].sum())(jnp.ones((3, 3))))
"""


@pytest.fixture
def environment(monkeypatch, tmp_path):
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE"):
        monkeypatch.setenv(name, "")  # so that what `use` sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    return os.environ


def run():
    command = [sys.executable, "-c", SCRIPT]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_what_one_process_compiled_the_next_finds(environment, tmp_path):
    *hits, value = run()
    assert not hits
    assert float(value) == pytest.approx(3, abs=1e-5)
    kept = list(tmp_path.glob("vitlab/compiled/*/jit_*-cache"))
    assert kept
    *hits, again = run()
    assert set(hits) == {"hit"}
    assert again == value
    for file in kept:  # a damaged one is compiled anew
        file.write_bytes(b"damaged")
    *hits, again = run()
    assert not hits
    assert again == value


def test_the_users_own_folder_is_left_alone(environment, tmp_path):
    environment["JAX_COMPILATION_CACHE_DIR"] = "elsewhere"
    compilation_cache.use()
    assert environment["JAX_COMPILATION_CACHE_DIR"] == "elsewhere"
    assert not list(tmp_path.iterdir())


def test_a_home_that_cannot_be_written_keeps_nothing(environment, tmp_path):
    (tmp_path / "vitlab").write_text("a file, where a folder is needed")
    compilation_cache.use()
    assert "JAX_COMPILATION_CACHE_DIR" not in environment


def test_each_kind_of_processor_has_its_own_folder(environment, monkeypatch, tmp_path):
    folders = set()
    for flags in ("flags : avx2", "flags : avx2 avx512f"):
        (tmp_path / "cpuinfo").write_text(f"processor : 0\n{flags}\n")
        monkeypatch.setattr(compilation_cache, "_CPUINFO", tmp_path / "cpuinfo")
        compilation_cache.use()
        folders.add(pathlib.Path(environment.pop("JAX_COMPILATION_CACHE_DIR")))
    assert len(folders) == 2
    assert all(folder.is_dir() for folder in folders)
