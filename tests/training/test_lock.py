"""One run at a time in a working directory."""

import errno
import fcntl
import subprocess
import sys

import pytest

from vitlab.errors import InputError
from vitlab.training import lock

HOLDS = """
import pathlib, sys, time
from vitlab.training import lock
with lock.held(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_refused_until_the_first_is_gone_however_it_ended(tmp_path):
    workdir = tmp_path / "deep" / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, workdir], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another run is in it now"), lock.held(workdir):
            pass
        other.kill()
    with lock.held(workdir):
        pass
    with pytest.raises(OSError, match="of the run itself"), lock.held(workdir):
        raise OSError("of the run itself")
    with lock.held(workdir):
        pass


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
    def without(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    with lock.held(tmp_path), lock.held(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--workdir .*file"), lock.held(tmp_path / "file" / "run"):
        pass
