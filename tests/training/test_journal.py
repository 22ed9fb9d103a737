"""`metrics.jsonl` after crashes, and what goes elsewhere."""

import contextlib
import json
import resource
import struct
import sys
import types

from tensorboardX.proto.event_pb2 import Event

from vitlab.training import journal
from vitlab.training.journal import Journal


def open_journal(workdir, after_step=0, tensorboard=False, log=print):
    def keep(record):
        return record["step"] <= after_step

    return Journal(workdir, after_step, keep, tensorboard, "", "x", {}, log)


@contextlib.contextmanager
def room(size):
    """No file may become larger, as on a disk that is full in the middle of a write."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def events(workdir):
    """All of the event files, the oldest first; that they are whole, too."""
    found = []
    for file in sorted((workdir / "tensorboard").iterdir()):
        data = file.read_bytes()
        while data:
            (size,) = struct.unpack_from("<Q", data)
            assert len(data) >= size + 16
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[size + 16 :]
    return found


def write(tmp_path, after_step, *records):
    log = open_journal(tmp_path, after_step)
    for step, values in records:
        log.write(step, values)
    log.close()


def test_records_past_the_checkpoint_are_cut(tmp_path):
    write(tmp_path, 0, (1, {"a": 1.0}), (2, {"a": 2.0}), (3, {"a": 3.0}))
    write(tmp_path, 2, (3, {"a": 4.0}))
    assert journal.read(tmp_path / "metrics.jsonl") == [
        {"step": 1, "a": 1.0},
        {"step": 2, "a": 2.0},
        {"step": 3, "a": 4.0},
    ]


def test_a_line_that_a_crash_cut_short_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1, "a": 1.0}) + '\n{"step": 2, "a"')
    write(tmp_path, 5, (6, {"a": 6.0}))
    assert [r["step"] for r in journal.read(path)] == [1, 6]


def test_lines_after_a_damaged_one_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for damaged in (b'{"step": 2, "a\xff": 1}', b"\0" * 40, b"3", b"[]", b'{"a": 1}'):
        path.write_bytes(b'{"step": 1}\n' + damaged + b'\n{"step": 3}\n')
        assert journal.read(path) == [{"step": 1}]


def test_tensorboard_events_are_written(tmp_path):
    log = open_journal(tmp_path, tensorboard=True)
    log.write(3, {"train/loss": 0.5, "learning_rate": 0.25})
    log.alarm(4, "it rises")
    written = events(tmp_path)  # at once, not only when it is closed
    log.close()
    assert written[0].file_version == "brain.Event:2"
    shown = [(e.step, v.tag, v.simple_value) for e in written for v in e.summary.value]
    assert shown[:2] == [(3, "train/loss", 0.5), (3, "learning_rate", 0.25)]
    assert (written[-1].step, written[-1].summary.value[0].tensor.string_val) == (4, [b"it rises"])


def test_a_full_disk_costs_whole_records_and_one_line_a_file(tmp_path):
    """Its first write is cut short in the middle; later there is room again."""
    lines = []
    log = open_journal(tmp_path, tensorboard=True, log=lines.append)
    log.write(1, {"a": 1.0})
    files = [tmp_path / "metrics.jsonl", *(tmp_path / "tensorboard").iterdir()]
    for file in files:
        with room(file.stat().st_size + 8):
            log.write(2, {"a": 2.0})
            log.alarm(3, "full")
    log.write(4, {"a": 4.0})
    log.close()
    assert [line.partition(":")[0] for line in lines] == [str(file) for file in files]
    written = [json.loads(line) for line in files[0].read_text().splitlines()]
    # The second time there was room for its short lines.
    assert [record["step"] for record in written] == [1, 2, 3, 4]
    assert [e.step for e in events(tmp_path) if e.summary.value] == [1, 4]


def test_every_start_tells_tensorboard_what_comes_again(tmp_path):
    """Also that of a run which was killed before its first checkpoint."""
    for after_step in (0, 0, 2):
        log = open_journal(tmp_path, after_step, tensorboard=True)
        log.write(after_step + 1, {"a": 1.0})
        log.close()
    starts = [e.step for e in events(tmp_path) if e.HasField("session_log")]
    assert starts == [1, 1, 3]


def test_event_files_are_those_that_tensorboard_reads(tmp_path):
    """The framing of tensorboardX's own writer, bit for bit."""
    from tensorboardX.record_writer import RecordWriter

    log = open_journal(tmp_path, tensorboard=True)
    log.write(3, {"train/loss": 0.5})
    log.close()
    theirs = RecordWriter(str(tmp_path / "theirs"))
    for event in events(tmp_path):
        theirs.write(event.SerializeToString())
    theirs.close()
    (ours,) = (tmp_path / "tensorboard").iterdir()
    assert ours.read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_working_directory_is_one_run_of_weights_and_biases(tmp_path, monkeypatch):
    calls = []

    def init(**settings):
        calls.append(settings)
        return types.SimpleNamespace(log=lambda values, step: None, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for directory in ("a", "a", "b"):  # begun, resumed, and the same config elsewhere
        (tmp_path / directory).mkdir(exist_ok=True)
        workdir = tmp_path / directory
        Journal(workdir, 0, bool, False, "project", "x-1234", {"seed": 3}, print).close()
    first, resumed, other = (call.pop("id") for call in calls)
    assert first == resumed != other
    assert calls[0] == calls[1]
    assert (calls[2]["project"], calls[2]["name"]) == ("project", "x-1234")
    assert (calls[2]["config"], calls[2]["resume"]) == ({"seed": 3}, "allow")
