"""`vitlab VERB ...`: everything but training, which is `python -m vitlab.main`."""

import importlib
import itertools
import sys
from collections.abc import Sequence

import vitlab
from vitlab import allocator, compilation_cache
from vitlab.commands.arguments import parse
from vitlab.commands.help import help_text
from vitlab.commands.terminal import output
from vitlab.config import nearest
from vitlab.errors import InputError
from vitlab.training.exit_codes import exit_code, helped

# Each is a module here of its name, with its command line as VERB and what it does as run.
VERBS = {
    "data": "check a data set before it costs a night, or draw what it holds",
    "evaluate": "measure a run on a whole split, and write a report to read",
    "predict": "what a run, or published weights, say of images, with pictures",
    "inspect": "pictures of what a backbone sees: attention, features, neighbours",
    "export": "a run as one file: ONNX, StableHLO, TFLite, safetensors",
    "bench": "how fast a config is here, what limits it, and a peer beside it",
    "convert": "published weights into another library's format, or a look at them",
    "completion": "let the shell complete all of this: bash, zsh, fish",
}

USAGE = """\
usage: vitlab VERB ...

verbs:
{verbs}

examples: from training to a file for other programs
  python -m vitlab.main --config configs/quickstart.py --workdir runs/digits
  vitlab predict runs/digits scan.png
  vitlab export runs/digits --format onnx

options:
  --help      this, and after a verb what that takes
  --version   the version

exit codes: 0 done, 1 failed, 2 wrong input, 130 stopped by Ctrl-C""".format(
    verbs="\n".join(f"  {verb:<12}{does}" for verb, does in VERBS.items())
)


def console() -> int:
    """The command `vitlab`."""
    allocator.use_huge_pages()
    allocator.keep_freed_memory()
    compilation_cache.use()
    return main()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb, and turns errors into one line and an exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    return exit_code(lambda: _run(argv))


def _run(argv: list[str]) -> int | None:
    if not argv or argv[0] in ("-h", "--help"):
        helped(USAGE)
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"vitlab {vitlab.__version__}")
        return 0
    if argv[0] == "train":
        raise InputError("to train: python -m vitlab.main --config FILE")
    if argv[0] not in VERBS:
        if argv[0].startswith("-"):
            raise InputError(f"{argv[0]} stands where a verb does: vitlab VERB {argv[0]}")
        raise InputError(f"there is no verb {argv[0]!r}{nearest(argv[0], VERBS)}")
    verb = importlib.import_module(f"vitlab.commands.{argv[0]}")
    if {"-h", "--help"} & set(itertools.takewhile("--".__ne__, argv)):
        helped(help_text(verb.VERB))
        return 0
    given = parse(verb.VERB, argv[1:])
    with output(given.quiet, given.json) as out:
        return verb.run(given, out)


if __name__ == "__main__":
    sys.exit(console())
