"""When the pictures of a run are drawn, also where there is no room for them."""

import errno
import types

import pytest

from vitlab.training.pictures import Pictures


class Disk:
    """An evaluator that draws onto a disk which may be full."""

    name = "test"
    full = True

    def draw(self, outputs, directory):
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        (directory / "picture").write_text(outputs)


def test_on_a_full_disk_training_goes_on_and_the_last_pictures_come_in_the_end(tmp_path):
    disk, lines = Disk(), []
    pictures = Pictures(tmp_path, lines.append)
    pictures.offer(disk, "first")
    pictures.offer(disk, "second")
    assert lines == [f"{tmp_path}: No space left on device; training goes on"]
    with pytest.raises(OSError, match="No space"):  # a run that is not finished must say so
        pictures.finish()
    disk.full = False
    pictures.finish()
    assert (tmp_path / "test" / "picture").read_text() == "second"


def test_they_take_a_twentieth_of_the_time_at_most(tmp_path, monkeypatch):
    clock, drawn = [0.0], []

    def draw(outputs, directory):
        drawn.append((clock[0], outputs))
        clock[0] += 3

    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    evaluator = types.SimpleNamespace(name="test", draw=draw)
    pictures = Pictures(tmp_path, print)
    for second in range(0, 100, 10):
        clock[0] = max(clock[0], second)
        pictures.offer(evaluator, second)
    assert drawn == [(0, 0), (70, 70)]
    pictures.finish()
    assert drawn[2:] == [(90, 90)]
