"""Several processes, one for each host, that train together (`jax.distributed`).

What is decided by one of them alone (a full disk, a damaged file) must be known to all before the
next collective, or they wait for each other forever.
"""

import contextlib
import importlib.util
import os
import re
import sys
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

from vitlab.errors import InputError

# A process that has not been heard of for this long is taken for dead, and ends the others.
HEARTBEAT_SECONDS = 30

# How long a process that ends with an error waits for the others to end too.
_LEAVE_SECONDS = 10


def start(coordinator: str = "", process_id: int = -1, num_processes: int = 0) -> None:
    """Joins the other processes of the run, before JAX looks for its devices.

    Args:
        coordinator: `HOST:PORT` of process 0, where it listens and the others find it.
        process_id: of this process, from 0.
        num_processes: of the run. Without all three the place is found in the environment of a
            SLURM step or a Cloud TPU; where neither is, the run is one process.

    Raises:
        InputError: only some of the three are given or they are wrong, or JAX cannot start. (If the
            others do not come, JAX itself ends the process after five minutes, and says so.)
    """
    given = (bool(coordinator), process_id >= 0, num_processes > 0)
    if any(given) and not all(given):
        raise InputError("--coordinator, --process_id and --num_processes go together")
    if jax.distributed.is_initialized():
        return
    if all(given):
        if not re.fullmatch(r".+:\d+", coordinator):
            raise InputError(f"--coordinator is {coordinator!r} but must be HOST:PORT")
        if process_id >= num_processes:
            raise InputError(f"--process_id is {process_id}: it must be below {num_processes}")
        settings = {
            "coordinator_address": coordinator,
            "process_id": process_id,
            "num_processes": num_processes,
            "cluster_detection_method": "deactivate",
        }
    elif "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        settings = {"cluster_detection_method": "slurm", **_slurm_devices()}
    elif importlib.util.find_spec("libtpu"):
        settings = {}
    else:
        return
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS, **settings)
    except (ValueError, RuntimeError) as e:
        if settings:
            raise InputError(f"the processes cannot start together: {e}") from e
        # A machine with libtpu that is no Cloud TPU, or a notebook that uses JAX already.


def _slurm_devices() -> dict[str, list[int]]:
    """All GPUs of the node for its only task; JAX would give each task the one of its own index."""
    alone = re.match(r"1(\D|$)", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "")
    return {"local_device_ids": list(range(int(gpus)))} if alone and gpus.isdecimal() else {}


def leave(code: int, last_words: str = "") -> None:
    """Ends one of several processes with an error, theirs as well or its own alone.

    If all end (a signal, a wrong config), process 0 must not be the first: JAX aborts whoever
    loses it, whatever exit code that one was about to give. If it fails alone, the others may be
    waiting for its arrays; they notice that it is gone.
    """
    if jax.process_count() == 1:
        return
    print(last_words, end="", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()

    def disconnect():
        with contextlib.suppress(RuntimeError):  # the others are gone
            jax.distributed.shutdown()

    together = threading.Thread(target=disconnect, daemon=True)
    together.start()
    try:
        together.join(_LEAVE_SECONDS)
    finally:  # Ctrl-C once more
        os._exit(code)


def from_first(value: int) -> int:
    """Process 0's value, on every process."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.array(value, np.int32)))


def metrics_from_first(metrics: dict[str, float]) -> dict[str, float]:
    """Process 0's values, on every process, of metrics that each computed for itself.

    Their last bits may differ between hosts, and what is saved as the best must not.
    """
    if jax.process_count() == 1:
        return metrics
    values = multihost_utils.broadcast_one_to_all(np.array(list(metrics.values()), np.float32))
    return dict(zip(metrics, map(float, values), strict=True))


def all_of(ok: bool) -> bool:
    """Whether it is so on every process."""
    if jax.process_count() == 1:
        return ok
    return bool(multihost_utils.process_allgather(np.array(ok)).all())


def wait_for_all(place: str) -> None:
    """Waits until every process is at `place`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(place)


def preempted(call: int) -> bool:
    """Whether SIGTERM came to any of several processes; all are told so in the same call.

    Args:
        call: how many calls came before this one. Not the step: JAX agrees on a later number, and
            says so at that very one, while several steps may be taken at once.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(call)
