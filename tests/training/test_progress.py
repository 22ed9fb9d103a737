"""What a person sees: a live bar on a terminal, plain lines elsewhere, and the table at the end."""

import io

from rich.console import Console

from vitlab.training.progress import Progress, clock, metrics_table

VALUES = {"train/loss": 1.25, "train/accuracy": 0.5, "images_per_second": 1234.5}


def shown(terminal):
    stream = io.StringIO()
    progress = Progress(Console(file=stream, force_terminal=terminal, width=100), 10, 100)
    progress.advance(20)
    progress.update(20, VALUES)
    progress.line("a [line] of text")
    progress.close()
    return stream.getvalue()


def test_plain_lines_where_there_is_no_terminal():
    lines = shown(terminal=False).splitlines()
    assert lines[0].startswith("step 20/100  loss 1.2500  accuracy 50.00%  1,234 images/s  0:0")
    assert lines[1] == "a [line] of text"
    assert "\x1b" not in "".join(lines)


def test_a_live_bar_on_a_terminal():
    text = shown(terminal=True)
    assert "step 20/100" in text
    assert "loss 1.2500  accuracy 50.00%  1,234 images/s" in text
    assert "━" in text
    assert "\x1b[" in text


def test_time_left_counts_only_this_start(monkeypatch):
    times = iter([0.0, 5.0])
    monkeypatch.setattr("vitlab.training.progress.time.monotonic", lambda: next(times))
    stream = io.StringIO()
    progress = Progress(Console(file=stream), 10, 100)
    progress.update(20, VALUES)  # 10 steps in 5 s, 80 to go
    assert "0:40 left" in stream.getvalue()


def test_clock_and_table():
    assert (clock(7.6), clock(75), clock(3725)) == ("0:08", "1:15", "1:02:05")
    console = Console(file=io.StringIO(), width=80)
    console.print(metrics_table({"val/accuracy": 0.5, "test/accuracy": 0.25, "test/nll": 1.0}))
    text = console.file.getvalue()
    assert "0.5000" in text
    assert "0.2500" in text
    assert text.count("accuracy") == 1
