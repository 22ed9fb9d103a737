"""How a command ends: one line for a person, and a code for a script."""

import signal
import sys
from collections.abc import Callable
from typing import Any

from vitlab.errors import DivergedError, InputError, WorkerError


def exit_code(run: Callable[[], Any]) -> int:
    """Runs a command, and turns every error that a user can meet into one line and a code."""
    import absl.logging
    import jax

    from vitlab.training.loop import StoppedError

    # Orbax and Grain log tracebacks of errors that they also raise.
    absl.logging.set_verbosity(absl.logging.FATAL)
    try:
        run()
    except InputError as e:
        return failed(f"error: {e}", 2)
    except DivergedError as e:
        return failed(f"diverged: {e}", 3)
    except StoppedError as e:
        return failed(str(e), 128 + e.signum)
    except (OSError, WorkerError) as e:
        return failed(f"error: {e}", 1)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except jax.errors.JaxRuntimeError as e:
        reason = " ".join(str(e).split())[:300]
        if "RESOURCE_EXHAUSTED" in reason:
            return failed(f"error: a device has no memory left ({reason})", 1)
        if jax.process_count() == 1:
            raise
        return failed(f"error: this or another process of the run failed ({reason})", 1)
    return 0


def failed(line: str, code: int) -> int:
    """Prints the line that says why a command ends with this code, and returns the code."""
    print(f"vitlab: {line}", file=sys.stderr, flush=True)
    return code
