import os
import subprocess
import sys

import pytest

from vitlab import allocator

SCRIPT = """
import os, sys
from vitlab import allocator
print("begun", os.getpid(), sys.argv[1:])
allocator.use_huge_pages()
print("goes on", os.environ["GLIBC_TUNABLES"])
"""


@pytest.mark.skipif(
    not (allocator._library_can() and allocator._asking_helps()),
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
    monkeypatch.setattr(allocator, "_can_begin_anew", lambda: True)
    monkeypatch.setattr(allocator, "_library_can", lambda: can)
    monkeypatch.setattr(allocator, "_MODE", tmp_path / "enabled")
    monkeypatch.setattr(allocator.os, "execv", lambda *_: pytest.fail("started anew"))
    if mode:
        (tmp_path / "enabled").write_text(mode)
    allocator.use_huge_pages()
    assert os.environ["GLIBC_TUNABLES"] == tunables


def test_a_script_on_standard_input_goes_on(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    script = SCRIPT.replace('os.environ["GLIBC_TUNABLES"]', '"here"')
    for words in (["-"], ["-", "--a"]):
        run = subprocess.run(
            [sys.executable, *words], input=script, capture_output=True, text=True, check=True
        )
        assert run.stdout.splitlines()[-1] == "goes on here"


@pytest.mark.parametrize(
    "change", ["sys.argv = ['x', 'y']", "sys.ps1 = '>'", "sys.executable = ''"]
)
def test_nobody_loses_what_they_are_at(monkeypatch, change):
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    script = SCRIPT.replace("\nprint", f"\n{change}\nprint", 1).replace(
        'os.environ["GLIBC_TUNABLES"]', "1"
    )
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(run.stdout.splitlines()) == 2
