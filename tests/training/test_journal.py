"""`metrics.jsonl` after crashes, and what goes elsewhere."""

import json
import sys
import types

from vitlab.training import journal
from vitlab.training.journal import Journal


def write(tmp_path, after_step, *records):
    log = Journal(tmp_path, after_step, tensorboard=False, wandb="", name="x", config={})
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
    log = Journal(tmp_path, 0, tensorboard=True, wandb="", name="x", config={})
    log.write(3, {"train/loss": 0.5})
    log.close()
    events = list((tmp_path / "tensorboard").iterdir())
    assert len(events) == 1
    assert b"train/loss" in events[0].read_bytes()


def test_a_working_directory_is_one_run_of_weights_and_biases(tmp_path, monkeypatch):
    calls = []

    def init(**settings):
        calls.append(settings)
        return types.SimpleNamespace(log=lambda values, step: None, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for directory in ("a", "a", "b"):  # begun, resumed, and the same config elsewhere
        (tmp_path / directory).mkdir(exist_ok=True)
        Journal(tmp_path / directory, 0, False, "project", "x-1234", {"seed": 3}).close()
    first, resumed, other = (call.pop("id") for call in calls)
    assert first == resumed != other
    assert calls[0] == calls[1]
    assert (calls[2]["project"], calls[2]["name"]) == ("project", "x-1234")
    assert (calls[2]["config"], calls[2]["resume"]) == ({"seed": 3}, "allow")
