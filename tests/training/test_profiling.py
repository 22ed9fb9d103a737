"""`config.profile`: which steps, the files of a trace, and runs that are past it."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from vitlab.errors import InputError
from vitlab.training.experiment import NOT_IN_HASH
from vitlab.training.profiling import Profile, window


def test_which_steps():
    assert window("", 5) == (0, 0)
    assert window("2:5", 5) == (2, 5)
    assert "profile" in NOT_IN_HASH


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("5:5", "config.profile is '5:5' but must be START:STOP with 0 < START < STOP, such as"),
        ("0:5", "must be START:STOP"),
        ("-1:5", "must be START:STOP"),
        ("5", "must be START:STOP"),
        ("a:b", "must be START:STOP"),
        ("5:11", "config.profile is '5:11' but the run has 10 steps"),
    ],
)
def test_wrong_steps_are_one_line(text, said):
    with pytest.raises(InputError) as error:
        window(text, 10)
    assert said in str(error.value)


def run(profile, steps):
    double = jax.jit(lambda x: x @ x)
    state = jnp.eye(8)
    for step in steps:
        state = double(state)
        profile.after(step, state)
    profile.close()


def test_a_trace_opens_and_its_line_says_where(tmp_path):
    lines = []
    # Several steps may come at once.
    run(Profile((2, 5), tmp_path / "profile", lines.append), range(1, 12, 2))
    (perfetto,) = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
    assert len(json.loads(gzip.decompress(perfetto.read_bytes()))["traceEvents"]) > 10
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))  # what TensorBoard reads
    assert len(lines) == 1
    assert lines[0].startswith(f"profile of steps 4 to 5 in {tmp_path / 'profile'}: open ")


def test_a_run_that_is_past_it_or_has_none_traces_nothing(tmp_path):
    for steps in ((2, 5), (0, 0)):
        run(Profile(steps, tmp_path / "profile", print), range(5, 9))
    assert not (tmp_path / "profile").exists()


def test_a_run_that_ends_within_it_leaves_the_trace(tmp_path):
    run(Profile((2, 5), tmp_path / "profile", print), range(1, 4))
    assert list((tmp_path / "profile").rglob("perfetto_trace.json.gz"))
