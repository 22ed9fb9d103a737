"""Two processes with four devices each, over gloo on this machine, and one process with eight."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.test_main import ROOT, arguments, records, result
from vitlab import checkpoints, distributed
from vitlab.main import main

slow = pytest.mark.slow


# The command, as if every data set were large for a device.
LARGE = """
import sys
from vitlab.main import main
from vitlab.training import device_data
device_data._SMALL = 1e-12
sys.exit(main(sys.argv[1:]))
"""


# The command, taking many steps a call on data on the devices, as on GPUs.
MANY_STEPS = """
import sys
from vitlab.main import main
from vitlab.training import device_data
device_data.STEPS_ON_CPU = 100
sys.exit(main(sys.argv[1:]))
"""

# The command, whose process 1 is slow to end with its error.
LATE = """
import sys, time
from vitlab import distributed
from vitlab.main import main
leave = distributed.leave
def late(*arguments):
    time.sleep(3 * distributed.jax.process_index())
    leave(*arguments)
distributed.leave = late
sys.exit(main(sys.argv[1:]))
"""


def start(workdir, devices, *flags, command=("-m", "vitlab.main"), **overrides):
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, *command, *arguments(workdir, **overrides), *flags],
        cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def start_two(workdir, **overrides):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = ("--coordinator", f"127.0.0.1:{port}", "--num_processes", "2", "--process_id")
    return [start(workdir, 4, *together, str(i), **overrides) for i in range(2)]


def wait_for_checkpoint(workdir, process):
    while not checkpoints.list_checkpoints(workdir / "checkpoints"):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)


def assert_close(ours, theirs):
    assert [r.keys() for r in ours] == [r.keys() for r in theirs]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-4)


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """A run of one process with eight devices."""
    workdir = tmp_path_factory.mktemp("eight") / "run"
    process = start(workdir, 8)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return workdir


@slow
@pytest.mark.parametrize(
    ("mesh", "options"),
    [
        ({"data": 8}, {}),
        ({"data": 2, "fsdp": 2, "tensor": 2}, {}),
        ({"data": 8}, {"data__cache": "device"}),
        ({"data": 4, "fsdp": 2}, {"data__cache": "device", "command": ("-c", LARGE)}),
    ],
)
def test_two_processes_equal_one(eight, tmp_path, mesh, options):
    """Training, an evaluation of 50 examples in batches of 32, checkpoints, one journal; without
    random ops also with the data on the devices, whole or split."""
    workdir = tmp_path / "two"
    processes = start_two(workdir, parallelism__mesh=mesh, **options)
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert_close(records(workdir), records(eight))
    assert result(workdir)["devices"]["count"] == 8
    saved = checkpoints.list_checkpoints(workdir / "checkpoints")
    theirs = checkpoints.list_checkpoints(eight / "checkpoints")
    assert [c.step for c in saved] == [c.step for c in theirs]
    for checkpoint in saved:
        checkpoints.verify(checkpoint)
    assert "step 8/8" in outputs[0]
    assert "step" not in outputs[1].replace("vitlab", "")  # only process 0 speaks


@slow
def test_one_process_killed_ends_the_other_and_the_run_goes_on(eight, tmp_path):
    workdir = tmp_path / "killed"
    slow = {"checkpoint__every_steps": 2, "total_steps": 4000}
    first, second = start_two(workdir, **slow)
    wait_for_checkpoint(workdir, first)
    second.kill()
    output = first.communicate(timeout=60)[0]
    assert first.returncode not in (0, 2)
    assert "another process" in output or "another task died" in output, output
    second.communicate()

    # What is left is whole, and the run goes on from it; SIGTERM to one stops both at one step.
    before = checkpoints.list_checkpoints(workdir / "checkpoints")[-1].step
    first, second = start_two(workdir, **slow)
    while checkpoints.list_checkpoints(workdir / "checkpoints")[-1].step <= before + 2:
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.1)
    second.send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (143, 143), outputs
    assert f"going on from step {before}" in outputs[0]
    last = checkpoints.list_checkpoints(workdir / "checkpoints")[-1].step
    assert all(f"stopped by SIGTERM; step {last} is saved" in output for output in outputs)


@slow
def test_sigterm_stops_processes_that_take_many_steps_a_call(tmp_path):
    workdir = tmp_path / "stopped"
    settings = {
        "total_steps": 100_000, "logging__every_steps": 100, "checkpoint__every_steps": 100,
        "evaluators__test__every_steps": 100_000, "data__cache": "device",
    }  # fmt: skip
    first, second = start_two(workdir, command=("-c", MANY_STEPS), **settings)
    wait_for_checkpoint(workdir, first)
    second.send_signal(signal.SIGTERM)
    try:
        outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    finally:
        first.kill()
        second.kill()
    assert (first.returncode, second.returncode) == (143, 143), outputs
    last = checkpoints.list_checkpoints(workdir / "checkpoints")[-1].step
    assert all(f"stopped by SIGTERM; step {last} is saved" in output for output in outputs)


@slow
def test_every_process_ends_with_the_code_of_an_error_of_all(tmp_path):
    """JAX aborts those that lose process 0, which must wait for them."""
    processes = start_two(tmp_path / "wrong", command=("-c", LATE), model__patch_size=3)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], outputs
    assert all("whole patches of 3" in output for output in outputs)


@slow
@pytest.mark.parametrize(
    ("mesh", "then", "other"),
    [
        ({"data": 2, "fsdp": 2, "tensor": 2}, 1, {}),
        ({"data": 1, "fsdp": 8}, 2, {"data": 1, "tensor": 2}),
        ({"data": 8}, 4, {"data": 1, "fsdp": 4}),
    ],
)
def test_a_run_goes_on_with_other_devices(eight, tmp_path, mesh, then, other):
    """Written on eight devices, with parameters in parts; ended on fewer, in other parts."""
    workdir = tmp_path / "elastic"
    process = start(workdir, 8, parallelism__mesh=mesh, checkpoint__keep=9)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    for step in (6, 8):
        shutil.rmtree(workdir / "checkpoints" / f"{step:08d}")
    (workdir / "result.json").unlink()
    process = start(workdir, then, parallelism__mesh=other)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert "going on from step 4" in output
    assert_close(records(workdir), records(eight))
    assert result(workdir)["devices"]["count"] == then


@slow
def test_an_exception_of_one_process_ends_both(tmp_path):
    """A bug on one of them: its traceback is printed, and nobody waits for it."""
    workdir = tmp_path / "bug"
    (workdir / "report").mkdir(parents=True)
    (workdir / "report" / "curves.png").mkdir()  # process 0 alone draws
    first, second = start_two(workdir, total_steps=2, checkpoint__every_steps=50)
    outputs = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert first.returncode == 1, outputs
    assert "curves.png" in outputs[0]


@pytest.fixture
def initialize(monkeypatch):
    """What `jax.distributed.initialize` was called with."""
    calls = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **settings: calls.append(settings))
    for name in ("NTASKS", "STEP_NODELIST", "STEP_TASKS_PER_NODE", "GPUS_ON_NODE"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
    return calls


def test_a_slurm_step_of_one_task_a_node_takes_all_its_gpus(initialize, monkeypatch):
    distributed.start()
    assert initialize == []  # not under SLURM
    for name, value in (("NTASKS", "4"), ("STEP_NODELIST", "n[1-4]"), ("GPUS_ON_NODE", "8")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    for tasks, devices in (("1(x4)", list(range(8))), ("8(x4)", None), ("1", list(range(8)))):
        monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", tasks)
        distributed.start()
        assert initialize.pop().get("local_device_ids") == devices


def test_flags_of_several_processes_are_checked(initialize, tmp_path, capsys):
    for flags, said in [
        (["--process_id", "0"], "go together"),
        (["--coordinator", "here", "--process_id", "0", "--num_processes", "2"], "HOST:PORT"),
        (["--coordinator", "a:1", "--process_id", "2", "--num_processes", "2"], "below 2"),
        (["--process_id", "one"], "must be a number"),
    ]:
        assert main([*arguments(tmp_path / "w"), *flags]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert said in error
    assert initialize == []
