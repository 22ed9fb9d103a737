"""Checkpoints: whole or not at all, verified, and found again."""

import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vitlab import checkpoints
from vitlab.errors import InputError


@pytest.fixture
def state():
    params = {"a": {"kernel": jnp.arange(64 * 64, dtype=jnp.float32).reshape(64, 64)}}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, mu_dtype=jnp.bfloat16))
    return {"params": params, "opt_state": tx.init(params), "ema": None, "step": jnp.int32(3)}


@pytest.fixture
def saved(tmp_path, state):
    lines = []
    writer = checkpoints.Writer(tmp_path / "checkpoints", keep=2, log=lines.append)
    for step in (1, 2, 3, 4):
        writer.save(step, state | {"step": jnp.int32(step)}, {"note": step}, best_step=1)
    assert writer.wait()
    writer.close()
    assert not lines
    return tmp_path


def target(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def steps(path):
    return [c.step for c in checkpoints.list_checkpoints(path / "checkpoints")]


def test_the_latest_and_the_best_are_kept(saved):
    assert steps(saved) == [1, 3, 4]
    assert sorted(p.name for p in (saved / "checkpoints").iterdir()) == [
        "00000001", "00000003", "00000004"
    ]  # fmt: skip


def test_everything_comes_back_with_its_dtype(saved, state):
    restored, meta = checkpoints.latest_intact(saved / "checkpoints", target(state), print)
    assert meta == {"note": 4}
    assert int(restored["step"]) == 4
    expected = state | {"step": jnp.int32(4)}
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    part = checkpoints.restore(checkpoints.locate(saved), only=["params", "nothing"])
    assert list(part) == ["params"]
    np.testing.assert_array_equal(part["params"]["a"]["kernel"], state["params"]["a"]["kernel"])


def _damage_flip(directory):
    files = [p for p in (directory / "arrays").rglob("*") if p.is_file()]
    file = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def _damage_truncate(directory):
    file = max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])


def _damage_delete(directory):
    next(p for p in (directory / "arrays").rglob("*") if p.is_file()).unlink()


def _damage_manifest(directory):
    (directory / "manifest.json").write_text("[]")


@pytest.mark.parametrize(
    "damage", [_damage_flip, _damage_truncate, _damage_delete, _damage_manifest]
)
def test_a_damaged_checkpoint_falls_back_and_says_so(saved, state, damage):
    damage(saved / "checkpoints" / "00000004")
    lines = []
    restored, _ = checkpoints.latest_intact(saved / "checkpoints", target(state), lines.append)
    assert int(restored["step"]) == 3
    assert len(lines) == 1
    assert "step 4 is damaged" in lines[0]


def test_all_damaged_is_an_error_not_a_fresh_start(saved, state):
    for directory in (saved / "checkpoints").iterdir():
        _damage_truncate(directory)
    with pytest.raises(InputError, match="every checkpoint in"):
        checkpoints.latest_intact(saved / "checkpoints", target(state), lambda _: None)


def test_a_save_after_a_fallback_replaces_the_damaged_future(saved, state):
    _damage_truncate(saved / "checkpoints" / "00000004")
    writer = checkpoints.Writer(saved / "checkpoints", keep=1, log=print)
    writer.save(3, state, {}, None)
    assert writer.wait()
    writer.close()
    assert steps(saved) == [3]


def test_an_interrupted_save_does_not_count_and_is_cleared(saved, state):
    (saved / "checkpoints" / "00000004" / "manifest.json").unlink()
    assert steps(saved) == [1, 3]
    checkpoints.Writer(saved / "checkpoints", keep=2, log=print).close()
    assert not (saved / "checkpoints" / "00000004").exists()
    (saved / "checkpoints" / "mine").mkdir()
    checkpoints.Writer(saved / "checkpoints", keep=2, log=print).close()
    assert (saved / "checkpoints" / "mine").exists()


def test_an_old_one_that_cannot_be_deleted_stops_nothing(tmp_path, state, monkeypatch):
    """On NFS a file that another program has open leaves its folder not empty."""

    def busy(path, missing_ok=False):
        raise OSError(39, "Directory not empty")

    lines = []
    writer = checkpoints.Writer(tmp_path / "checkpoints", keep=1, log=lines.append)
    monkeypatch.setattr(type(writer.directory), "rmtree", busy)
    for step in (1, 2):
        writer.save(step, state, {}, best_step=None)
        assert writer.wait()
    writer.close()
    assert steps(tmp_path) == [2]
    assert len(lines) == 1
    assert "00000001 could not be deleted: " in lines[0]


def test_no_room_keeps_the_older_ones_and_says_how_much_is_needed(saved, state, monkeypatch):
    lines = []
    usage = checkpoints.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage)
    writer = checkpoints.Writer(saved / "checkpoints", keep=1, log=lines.append)
    writer.save(5, state, {}, None)
    assert not writer.wait()
    writer.close()
    assert steps(saved) == [1, 3, 4]
    assert lines == [
        "checkpoint of step 5 was not saved: needs 40.0 KiB of room and 1.0 KiB is free. "
        "Older ones are whole."
    ]


def test_a_disk_that_fills_up_while_saving(tmp_path, state):
    """A real file system of 130 KiB, on which the arrays fit and what lies around them does not."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=130k", "tmpfs", tmp_path], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small file system")
    try:
        rng = np.random.default_rng(0)
        big = {"params": jnp.asarray(rng.normal(size=(100, 100)), jnp.float32)}
        lines = []
        writer = checkpoints.Writer(tmp_path / "checkpoints", keep=2, log=lines.append)
        writer.save(1, big, {}, None)
        assert writer.wait()
        writer.save(2, big, {}, None)
        assert not writer.wait()
        writer.close()
        assert steps(tmp_path) == [1]
        checkpoints.verify(checkpoints.locate(tmp_path))
        assert lines == [
            "checkpoint of step 2 was not saved: No space left on device; it needs 39.1 KiB of "
            "room. Older ones are whole."
        ]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_tree_that_does_not_fit_is_named(saved, state):
    other = target(state)
    other["params"]["a"]["extra"] = other["step"]
    with pytest.raises(InputError, match="lacks params/a/extra"):
        checkpoints.restore(checkpoints.locate(saved), other)
    other = target(state)
    other["params"]["a"]["kernel"] = other["step"]
    with pytest.raises(InputError, match=r"params/a/kernel has shape \(64, 64\), this run needs"):
        checkpoints.restore(checkpoints.locate(saved), other)


def test_locate(saved, tmp_path):
    assert checkpoints.locate(saved).step == 4
    assert checkpoints.locate(saved / "checkpoints" / "00000003").step == 3
    with pytest.raises(InputError, match="does not exist"):
        checkpoints.locate(tmp_path / "nothing")
    with pytest.raises(InputError, match="has no finished checkpoint"):
        checkpoints.locate(saved / "checkpoints" / "00000003" / "arrays")
