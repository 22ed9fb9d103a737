"""Completion, by the shells themselves."""

import json
import pathlib
import shlex
import shutil
import subprocess

import pytest

from vitlab.commands.cli import VERBS, main


@pytest.fixture
def script(capsys):
    def of(shell):
        assert main(["completion", shell]) == 0
        return capsys.readouterr().out

    return of


@pytest.fixture
def completed(script, tmp_path):
    """What bash offers for the last of some words, in a folder with two folders and a file."""
    for name in ("runs/flowers", "two words"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "rose.jpg").touch()

    def complete(*words):
        program = (
            f"{script('bash')}\nset -u\nCOMP_WORDS=({shlex.join(words)})\n"
            f"COMP_CWORD={len(words) - 1}\n"
            # The function that `complete` has registered for this command.
            'set -- $(complete -p vitlab); "$3" vitlab\n'
            'printf "%s\\n" ${COMPREPLY[@]+"${COMPREPLY[@]}"}'
        )
        run = subprocess.run(
            ["bash", "--norc", "-c", program], cwd=tmp_path, capture_output=True, text=True
        )
        assert run.stderr == ""
        return sorted(filter(None, run.stdout.split("\n")))

    return complete


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes(completed):
    common = ["--help", "--json", "--quiet"]
    assert completed("vitlab", "") == sorted([*VERBS, "--help", "--version"])
    assert completed("vitlab", "ex") == ["export"]
    assert completed("vitlab", "nothing", "") == []
    # Options of the verb, and of its action.
    assert completed("vitlab", "export", "runs", "--fo") == ["--format"]
    assert completed("vitlab", "data", "check", "--") == sorted(["--split", *common])
    assert "--draw" in completed("vitlab", "data", "preview", "x", "--")
    # Values, also behind a sign of equality, which bash makes a word.
    formats = ["onnx", "safetensors", "stablehlo", "tflite"]
    assert completed("vitlab", "export", "--format", "") == formats
    assert completed("vitlab", "export", "--format", "=") == formats
    assert completed("vitlab", "export", "--format", "=", "on") == ["onnx"]
    assert completed("vitlab", "predict", "--min_score", "") == []
    # Plain arguments, wherever flags, options and sources of three words stand.
    protocols = ["few_shot", "knn", "linear", "logistic"]
    assert completed("vitlab", "evaluate", "runs", "") == protocols
    assert completed("vitlab", "evaluate", "--json", "runs", "knn", "l") == ["linear", "logistic"]
    source = ["--data", "folder", ":", "x"]
    assert completed("vitlab", "evaluate", *source, "--split", "val", "runs", "f") == ["few_shot"]
    # Files and folders.
    assert completed("vitlab", "predict", "--out", "r") == ["runs"]
    assert completed("vitlab", "predict", "runs", "r") == ["rose.jpg", "runs"]
    assert completed("vitlab", "evaluate", "runs/") == ["runs/flowers"]
    assert completed("vitlab", "evaluate", "t") == ["two words"]
    assert completed("vitlab", "evaluate", "--data", "folder", ":", "ru") == ["runs"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_legal(shell, script, tmp_path):
    if not shutil.which(shell):
        pytest.skip(f"needs {shell}")
    path = tmp_path / "script"
    path.write_text(script(shell))
    run = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


def test_fish_completes(script, tmp_path):
    if not shutil.which("fish"):
        pytest.skip("needs fish")
    path = tmp_path / "vitlab.fish"
    path.write_text(script("fish"))
    lines = ["vitlab ex", "vitlab evaluate --data x runs l", "vitlab export --format s"]
    asked = "; ".join(f"complete -C '{line}'" for line in lines)
    program = ["fish", "--no-config", "-c", f"source {path}; {asked}"]
    run = subprocess.run(program, capture_output=True, text=True)
    found = [line.partition("\t")[0] for line in run.stdout.splitlines()]
    assert found == ["export", "linear", "logistic", "safetensors", "stablehlo"], run.stderr


def test_a_script_starts_no_python_and_knows_every_option(script):
    for shell in ("bash", "zsh", "fish"):
        text = script(shell)
        assert "python" not in text.lower()
        for name in ("format", "unchecked", "min_score", "among", "train_split", "quiet"):
            assert name in text


def test_as_json(script, capsys):
    text = script("fish")
    assert main(["completion", "fish", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"shell": "fish", "script": text.rstrip("\n")}


def test_its_help_says_how_to_install_it(capsys):
    assert main(["completion", "--help"]) == 0
    text = capsys.readouterr().out
    for place in ("~/.bashrc", "~/.zshrc", "~/.config/fish/completions/vitlab.fish"):
        assert place in text
    assert pathlib.Path("~/.bashrc").expanduser().name == ".bashrc"
