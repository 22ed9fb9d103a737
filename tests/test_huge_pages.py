import subprocess
import sys

import pytest

from vitlab import huge_pages

SCRIPT = """
import os, sys
from vitlab import huge_pages
print("begun", os.getpid(), sys.argv[1:])
huge_pages.use()
print("goes on", os.environ["GLIBC_TUNABLES"])
"""


@pytest.mark.skipif(
    not (huge_pages._library_can() and huge_pages._asking_helps()),
    reason="large pages cannot be asked for here",
)
@pytest.mark.parametrize("before", ["", "glibc.malloc.arena_max=3"])
def test_the_same_command_runs_again_once_in_the_same_process(tmp_path, monkeypatch, before):
    monkeypatch.setenv("GLIBC_TUNABLES", before)
    (tmp_path / "script.py").write_text(SCRIPT)
    run = subprocess.Popen(
        [sys.executable, "-B", tmp_path / "script.py", "--a", "b c"],
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = run.communicate()[0].splitlines()
    begun = f"begun {run.pid} ['--a', 'b c']"
    tunables = ":".join(filter(None, (before, "glibc.malloc.hugetlb=1")))
    assert lines == [begun, begun, f"goes on {tunables}"]


@pytest.mark.parametrize(
    ("tunables", "can", "mode"),
    [
        ("glibc.malloc.hugetlb=0", True, "always [madvise] never"),
        ("", False, "always [madvise] never"),
        ("", True, "[always] madvise never"),
        ("", True, "always madvise [never]"),
        ("", True, None),
    ],
)
def test_nothing_happens_where_it_would_not_help(tmp_path, monkeypatch, tunables, can, mode):
    monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    monkeypatch.setattr(huge_pages, "_library_can", lambda: can)
    monkeypatch.setattr(huge_pages, "_MODE", tmp_path / "enabled")
    monkeypatch.setattr(huge_pages.os, "execv", lambda *_: pytest.fail("started anew"))
    if mode:
        (tmp_path / "enabled").write_text(mode)
    huge_pages.use()
