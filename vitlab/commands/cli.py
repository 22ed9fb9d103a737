"""`vitlab VERB ...`: everything but training, which is `python -m vitlab.main`."""

import importlib
import sys
from collections.abc import Sequence

from vitlab.config import nearest
from vitlab.training.exit_codes import exit_code, failed

USAGE = """\
usage: vitlab VERB ...

  data       check a data set before it costs a night, or draw what is annotated in it
  evaluate   measure a run on a whole split, its own or other data, and write a report to read
  predict    what a run says of any images, in a file and in pictures
  inspect    pictures of what a run's backbone sees: attention, features in colours, neighbours
  export     a run as one file for other programs: ONNX, StableHLO, safetensors
  convert    published weights into another library's format, or a look at what they are

vitlab VERB --help says more. To train: python -m vitlab.main --config FILE.
Exit codes: 0 done, 1 failed, 2 wrong input."""

_NAMES = ("convert", "data", "evaluate", "export", "inspect", "predict")
VERBS = {verb: f"vitlab.commands.{verb}" for verb in _NAMES}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb, and turns errors into one line and an exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    if argv[0] not in VERBS:
        return failed(f"error: there is no verb {argv[0]!r}{nearest(argv[0], VERBS)}", 2)
    verb = importlib.import_module(VERBS[argv[0]])
    if {"-h", "--help"} & set(argv):
        print(verb.USAGE)
        return 0
    codes: list[int | None] = []  # A verb may end with a code of its own.
    return exit_code(lambda: codes.append(verb.run(argv[1:]))) or codes[0] or 0
