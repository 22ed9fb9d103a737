"""`python -m vitlab.main --config FILE[:arg] [--config.KEY=VALUE ...] [--workdir DIR]` trains."""

import dataclasses
import pathlib
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

from vitlab import allocator, compilation_cache
from vitlab import config as config_lib
from vitlab.commands.arguments import overridden
from vitlab.errors import InputError
from vitlab.training.exit_codes import exit_code, failed, helped

USAGE = """\
usage: python -m vitlab.main --config FILE[:ARG] [--config.KEY=VALUE ...] [--workdir DIR]

Trains what a config says. The same command again resumes an interrupted run.

options:
  --config FILE[:ARG]   a config file, with what its get_config(arg) takes
  --config.KEY=VALUE    an override; may add a key, dots lead into sections
  --workdir DIR         where everything goes; default runs/NAME-HASH
  --coordinator HOST:PORT, --process_id I, --num_processes N
                        one of several processes, one a host; under SLURM and on a Cloud TPU they
                        find each other without
  --help                this help

examples:
  python -m vitlab.main --config configs/quickstart.py
  python -m vitlab.main --config configs/vit_s16_imagenet.py:epochs=300 --workdir runs/vit
  python -m vitlab.main --config configs/quickstart.py --config.optimizer.lr=3e-4

writes: DIR/config.json, checkpoints, metrics.jsonl, tensorboard, report, result.json.

exit codes: 0 finished, 1 the result could not be saved, or a worker or another process died, 2
  wrong input, 3 diverged, 130 or 143 stopped by a signal with a checkpoint written (one of several
  processes saves on SIGTERM alone)

What comes after training, such as predicting and exporting: vitlab --help."""


_EXAMPLES = {
    "--config": "configs/quickstart.py",
    "--workdir": "runs/vit",
    "--coordinator": "host0:1234",
    "--process_id": "0",
    "--num_processes": "2",
}


@dataclasses.dataclass
class Command:
    """What the command line says."""

    spec: str | None = None  # of the config; None asks for the usage
    overrides: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    workdir: pathlib.Path | None = None
    coordinator: str = ""
    process_id: int = -1
    num_processes: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, trains, and turns errors into one line and an exit code."""
    began = time.monotonic()
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        command = parse(argv)
        if command.spec is None:
            return exit_code(lambda: helped(USAGE)) or (0 if argv else 2)
        config = config_lib.load(command.spec, command.overrides)
        # Heavy imports only now, so that a wrong command line is answered at once.
        from vitlab import distributed
    except InputError as e:
        return failed(f"error: {e}", 2)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    try:
        code = _train(config, command, began)
    except BaseException:
        distributed.leave(1, traceback.format_exc())
        raise
    if code:
        distributed.leave(code)
    return code


def _train(config: dict[str, Any], command: Command, began: float) -> int:
    def run():
        # What takes long is here, so that Ctrl-C ends it as anything else.
        from rich.console import Console

        from vitlab import distributed
        from vitlab.training.loop import train

        distributed.start(command.coordinator, command.process_id, command.num_processes)
        name = pathlib.Path(command.spec.partition(":")[0]).stem
        train(config, command.workdir, name, Console(force_jupyter=False), began)

    return exit_code(run)


def parse(argv: Sequence[str]) -> Command:
    """The command line as a `Command`.

    Raises:
        InputError: an argument that does not exist, or one without its value.
    """
    command = Command()
    names = {name: name.removeprefix("--") for name in _EXAMPLES if name != "--config"}
    arguments = iter(argv)
    for argument in arguments:
        if argument in ("-h", "--help"):
            return Command()
        name, equals, value = argument.partition("=")
        key = overridden(name)
        if name != "--config" and name not in names and not key:
            legal = ["--config", "--help", *names]
            raise InputError(
                f"argument {argument!r} does not exist{config_lib.nearest(name, legal)}; what the "
                "config says is changed by --config.KEY=VALUE"
            )
        if not equals:
            value = next(arguments, None)
        # An override may be empty, and nothing else.
        if value is None or (not equals and value.startswith("--")) or not (value or key):
            example = _EXAMPLES.get(name, "VALUE")
            raise InputError(f"argument {name} needs a value, such as {name}={example}")
        if name == "--config":
            command.spec = value
        elif name == "--workdir":
            if "://" in value:
                raise InputError(
                    f"--workdir {value}: a working directory is a local folder, such as runs/vit"
                )
            command.workdir = pathlib.Path(value)
        elif name == "--coordinator":
            command.coordinator = value
        elif name in names:
            if not value.isdecimal():
                raise InputError(
                    f"argument {name} is {value!r} but must be a number, such as {_EXAMPLES[name]}"
                )
            setattr(command, names[name], int(value))
        else:
            command.overrides.append((key, value))
    if command.spec is None and argv:
        raise InputError("--config is missing, such as --config configs/quickstart.py")
    return command


if __name__ == "__main__":
    allocator.use_huge_pages()
    allocator.keep_freed_memory()
    compilation_cache.use()
    sys.exit(main())
