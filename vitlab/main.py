"""`python -m vitlab.main --config FILE[:arg] [--config.KEY=VALUE ...] [--workdir DIR]` trains."""

import pathlib
import signal
import sys
from collections.abc import Sequence

from vitlab import config as config_lib
from vitlab.errors import DivergedError, InputError, WorkerError

USAGE = """\
usage: python -m vitlab.main --config FILE[:arg] [--config.KEY=VALUE ...] [--workdir DIR]

  --config configs/quickstart.py            a config file
  --config configs/vit_s16_imagenet.py:epochs=300
                                            with arguments for its get_config(arg)
  --config.optimizer.lr=3e-4                an override; may add a key, dots lead into sections
  --workdir DIR                             where everything goes; default runs/NAME-HASH

The same command again resumes an interrupted run. Exit codes: 0 finished, 1 the result could not
be saved or a worker died, 2 wrong input, 3 diverged, 130 or 143 stopped by a signal with a
checkpoint written."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, trains, and turns errors into one line and an exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        spec, overrides, workdir = parse(argv)
        if spec is None:
            print(USAGE)
            return 0 if argv else 2
        config = config_lib.load(spec, overrides)
        # Heavy imports only now, so that a wrong command line is answered at once.
        import absl.logging
        from rich.console import Console

        from vitlab.training.loop import StoppedError, train

        # Orbax and Grain log tracebacks of errors that they also raise.
        absl.logging.set_verbosity(absl.logging.FATAL)
        name = pathlib.Path(spec.partition(":")[0]).stem
        console = Console()
        try:
            train(config, workdir, name, console)
        except StoppedError as e:
            print(f"vitlab: {e}", file=sys.stderr)
            return 128 + e.signum
    except InputError as e:
        print(f"vitlab: error: {e}", file=sys.stderr)
        return 2
    except DivergedError as e:
        print(f"vitlab: diverged: {e}", file=sys.stderr)
        return 3
    except (OSError, WorkerError) as e:
        print(f"vitlab: error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def parse(
    argv: Sequence[str],
) -> tuple[str | None, list[tuple[str, str]], pathlib.Path | None]:
    """The config's spec (None for `--help`), the overrides in order, and the working directory.

    Raises:
        InputError: an argument that does not exist, or one without its value.
    """
    spec, workdir, overrides = None, None, []
    arguments = iter(argv)
    for argument in arguments:
        if argument in ("-h", "--help"):
            return None, [], None
        name, equals, value = argument.partition("=")
        if name not in ("--config", "--workdir") and not name.startswith("--config."):
            legal = ["--config", "--workdir", "--help"]
            raise InputError(
                f"argument {argument!r} does not exist{config_lib.nearest(name, legal)}"
            )
        if not equals:
            value = next(arguments, None)
            if value is None or value.startswith("--"):
                raise InputError(f"argument {name} needs a value")
        if name == "--config":
            spec = value
        elif name == "--workdir":
            if "://" in value:
                raise InputError(f"--workdir {value}: a working directory is a local folder")
            workdir = pathlib.Path(value)
        else:
            overrides.append((name.removeprefix("--config."), value))
    if spec is None and argv:
        raise InputError("--config is missing, such as --config configs/quickstart.py")
    return spec, overrides, workdir


if __name__ == "__main__":
    sys.exit(main())
