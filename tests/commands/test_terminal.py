"""What goes to standard output, what to standard error, and what only to a terminal."""

import json
import os
import pty
import subprocess
import sys

import pytest
from rich.table import Table

from vitlab.commands.terminal import output

VITLAB = [
    sys.executable,
    "-c",
    "import sys; from vitlab.commands.cli import main; sys.exit(main())",
]


def answered(capsys, **flags):
    with output(**flags) as out:
        print("on the way")
        with out.progress(2) as advance:
            advance()
            out.text("a line")
            out.rows([{"row": 1}, {"row": 2}])
            out.broken("a file")
        out.document({"AP": float("nan"), "sizes": (1, 2)})
    return capsys.readouterr()


def test_text_is_told_as_it_comes(capsys):
    assert answered(capsys) == ("on the way\na line\n", "vitlab: broken: a file\n")


def test_quiet_leaves_the_result(capsys):
    assert answered(capsys, quiet=True) == ("a line\n", "vitlab: broken: a file\n")


def test_json_is_all_of_standard_output(capsys):
    out, err = answered(capsys, as_json=True)
    assert err == "on the way\nvitlab: broken: a file\n"
    first, second, document = out.split("\n", 2)
    assert [json.loads(first), json.loads(second)] == [{"row": 1}, {"row": 2}]
    # NaN is no JSON.
    assert json.loads(document) == {"AP": None, "sizes": [1, 2]}
    assert answered(capsys, as_json=True, quiet=True) == (out, "vitlab: broken: a file\n")


def test_a_table_is_plain_elsewhere(capsys):
    table = Table("metric")
    table.add_row("accuracy")
    with output() as out:
        out.text(table)
    shown = capsys.readouterr().out
    assert "accuracy" in shown
    assert "\x1b" not in shown


def environment(**more):
    without = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS")
    return {**{k: v for k, v in os.environ.items() if k not in without}, "TERM": "xterm", **more}


def on_a_terminal(command, **more):
    """What a command prints on a terminal of its own."""
    main, other = pty.openpty()
    streams = dict(stdin=other, stdout=other, stderr=other)
    with subprocess.Popen(command, env=environment(**more), **streams):
        os.close(other)
        printed = b""
        try:
            while read := os.read(main, 1 << 16):
                printed += read
        except OSError:  # Linux says so where the other end is closed.
            pass
        os.close(main)
    return printed.decode()


COMMANDS = [
    ([*VITLAB, "data", "--help"], "\x1b[1musage:\x1b[0m vitlab data check"),
    ([sys.executable, "-m", "vitlab.main", "--help"], "\x1b[1musage:\x1b[0m python -m vitlab.main"),
    ([*VITLAB, "dta"], "vitlab: \x1b[1;31merror:\x1b[0m there is no verb 'dta'"),
]


@pytest.mark.parametrize(("command", "said"), COMMANDS)
def test_colours_are_for_terminals(command, said):
    assert said in on_a_terminal(command)
    piped = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert "\x1b" not in piped.stdout + piped.stderr
    plain = on_a_terminal(command, NO_COLOR="1")
    assert plain.replace("\r\n", "\n") == piped.stdout + piped.stderr


@pytest.mark.slow
def test_a_bar_is_for_terminals():
    command = [*VITLAB, "data", "check", "digits"]
    assert "decoding every image" in on_a_terminal(command)
    quiet = on_a_terminal([*command, "--quiet"])
    assert quiet == ""
    piped = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert piped.stderr == ""
    assert piped.stdout.endswith("nothing is broken\n")


@pytest.mark.parametrize("verb", [["--help"], ["completion", "bash"], ["data", "check", "digits"]])
def test_a_pipe_that_nobody_reads_ends_it_quietly(verb):
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run([*VITLAB, *verb], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (run.returncode, run.stderr) == (128 + 13, "")
