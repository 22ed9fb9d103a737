"""`vitlab` itself: helps that fit, command lines that are legal, mistakes, and how it ends."""

import importlib
import re
import shlex
import subprocess
import sys
from typing import get_args

import pytest

import vitlab
from vitlab.commands.arguments import COMMON, parse
from vitlab.commands.cli import USAGE, VERBS, main
from vitlab.commands.help import help_text

MODULES = {verb: importlib.import_module(f"vitlab.commands.{verb}") for verb in VERBS}


def options(verb):
    return {option.name: option for option in MODULES[verb].VERB.options}


def test_the_help_fits_a_screen(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert all(any(line.split()[:1] == [verb] for line in lines) for verb in VERBS)
    assert main([]) == 2


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_each_verb_has_the_same_shape(verb, capsys):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    headings = re.findall(r"(?m)^([a-z][a-z ]*):", text)
    arguments = ["arguments"] if MODULES[verb].VERB.arguments else []
    assert headings == ["usage", *arguments, "options", "examples", "writes", "exit codes"]
    for option in (*options(verb), *(each.name for each in COMMON)):
        assert re.search(rf"(?m)^  --{option} ", text), option
    assert main([verb, "x", "-h"]) == 0
    assert capsys.readouterr().out == text


def test_every_example_is_a_legal_command_line():
    lines = [line for module in MODULES.values() for line in module.VERB.examples]
    lines += [line.strip() for line in USAGE.splitlines() if line.startswith("  vitlab ")]
    assert len(lines) > 2 * len(VERBS)
    for line in lines:
        program, verb, *words = shlex.split(re.split(r" [|>]+ ", line)[0])
        assert program == "vitlab"
        parse(MODULES[verb].VERB, words)


def test_every_option_of_an_outline_exists():
    for verb, module in MODULES.items():
        for usage in module.VERB.usages:
            assert set(re.findall(r"--([a-z_]+)", usage)) <= set(options(verb)), usage


def test_the_tables_have_what_the_code_has():
    from vitlab.data.decode import MAX_PIXELS
    from vitlab.deploy.export import Dtype, Format
    from vitlab.deploy.predictor import Augmentation
    from vitlab.tasks.predictions import LEAST_SCORE
    from vitlab.training.benchmark import Data
    from vitlab.training.experiment import Protocol
    from vitlab.training.inspection import KINDS
    from vitlab.training.peers import Name, What
    from vitlab.weights.saving import WRITTEN

    assert tuple(MODULES["evaluate"].VERB.arguments[1].choices) == get_args(Protocol)
    assert tuple(options("export")["format"].choices) == get_args(Format)
    assert tuple(options("export")["dtype"].choices) == get_args(Dtype)
    assert tuple(options("predict")["tta"].choices) == get_args(Augmentation)
    assert tuple(options("inspect")["what"].choices) == KINDS
    assert set(options("convert")["to"].choices) == set(WRITTEN)
    assert tuple(options("bench")["against"].choices) == get_args(Name)
    assert tuple(options("bench")["what"].choices) == get_args(What)
    assert tuple(options("bench")["data"].choices) == get_args(Data)
    assert options("predict")["min_score"].default == LEAST_SCORE
    assert options("predict")["max_pixels"].default == MAX_PIXELS


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vitlab {vitlab.__version__}\n"


@pytest.mark.parametrize("module", ["vitlab", "vitlab.commands.cli"])
def test_it_is_a_module_too(module):
    command = [sys.executable, "-m", module, "--version"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, f"vitlab {vitlab.__version__}\n")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("dta", "there is no verb 'dta'; did you mean 'data'?"),
        ("nothing", "there is no verb 'nothing'; choose from bench, completion, convert,"),
        ("train", "to train: python -m vitlab.main --config FILE"),
        ("--json predict", "--json stands where a verb does: vitlab VERB --json"),
        (
            "export run",
            "needs --format onnx, stablehlo, tflite or safetensors, such as vitlab export runs",
        ),
        (
            "export run --format onx",
            "but must be onnx, stablehlo, tflite or safetensors; did you mean",
        ),
        ("export run --format onnx --check no", "--check does not exist; did you mean '--unchec"),
        ("predict run", "needs IMAGE, such as vitlab predict runs/flowers rose.jpg"),
        ("predict run x.jpg --tta flop", "argument --tta is 'flop' but must be flip"),
        ("evaluate run kn", "there is no protocol 'kn'; did you mean 'knn'?"),
        ("completion bsh", "there is no shell 'bsh'; did you mean 'bash'?"),
        (
            "bench",
            "vitlab bench needs --config FILE[:ARG], such as vitlab bench --config configs/q",
        ),
        ("bench x --config y", "'x' is one argument too many: vitlab bench takes options alone, s"),
        ("bench --config y --config.seed", "argument --config.seed needs a value: VALUE, an over"),
        ("bench --config y --against tim", "but must be timm, torchvision, hf-detr or hf-mae; did"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(line, said, capsys):
    for words in (line.split(), [*line.split(), "--json"]):
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert said in err
        assert err.startswith("vitlab: error: ")
        assert (out, err.count("\n")) == ("", 1)


def test_what_needs_no_model_loads_none():
    lines = ["--help", "--version", "", "dta", *(f"{verb} --help" for verb in VERBS)]
    lines += [
        "completion bash",
        "export x --format y",
        "evaluate x kn",
        "convert a b",
        "data check x",
    ]
    code = (
        "import sys; from vitlab.commands.cli import main; "
        f"[main(line.split()) for line in {lines}]; "
        "print(sorted({'jax', 'flax', 'grain', 'matplotlib', 'scipy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "[]", run.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_ctrl_c_ends_a_verb_without_a_word(verb, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(MODULES[verb], "run", interrupted)
    example = MODULES[verb].VERB.examples[0].partition(" >")[0]
    assert main(shlex.split(example)[1:]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_verb_without_special_exit_codes_says_so():
    assert help_text(MODULES["convert"].VERB).endswith(
        "exit codes: 0 done, 1 failed, 2 wrong input, 130 stopped by Ctrl-C"
    )
