"""Checkpoints that are written whole, verified when read, and found again after any crash.

One checkpoint is a directory `checkpoints/STEP` with three things in it:

    arrays/         the tree of arrays, written by Orbax
    meta.json       small facts that are no arrays: step, best metric so far, class names
    manifest.json   the sha256 of every other file; written last, so that a checkpoint without it
                    was interrupted and does not count

Orbax alone restores flipped bits silently, therefore the manifest. Nothing is unpickled.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from vitlab.distributed import all_of, from_first
from vitlab.errors import InputError

Tree = Any


class DamagedError(Exception):
    """A checkpoint's files are not those that were written; the message says which."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint on disk. `step` is its number, `path` its directory."""

    path: epath.Path
    step: int

    def meta(self) -> dict[str, Any]:
        """What was saved beside the arrays; see `read_json`."""
        return read_json(self.path / "meta.json")


def read_json(path: os.PathLike) -> dict[str, Any]:
    """What a JSON file of a working directory holds.

    Raises:
        InputError: it cannot be read, or is damaged.
    """
    path = epath.Path(path)
    try:
        found = json.loads(path.read_text())
    except OSError as e:
        reason = e.strerror or type(e).__name__
        raise InputError(f"{path.parent} lacks its {path.name}: {reason}") from e
    except (ValueError, RecursionError) as e:
        raise InputError(f"{path} is damaged, it is no JSON: {e}") from e
    if not isinstance(found, dict):
        raise InputError(f"{path} is damaged: it holds no object of keys")
    return found


def list_checkpoints(directory: os.PathLike | str) -> list[Checkpoint]:
    """The finished checkpoints below `directory`, oldest first; interrupted ones do not count."""
    directory = _absolute(directory)
    if not directory.is_dir():
        return []
    found = [p for p in directory.iterdir() if p.name.isdigit() and (p / "manifest.json").exists()]
    return sorted((Checkpoint(p, int(p.name)) for p in found), key=lambda c: c.step)


def verify(checkpoint: Checkpoint) -> None:
    """Compares every file with the manifest.

    Raises:
        DamagedError: a file is missing, or differs from the one that was written.
    """
    try:
        manifest = read_json(checkpoint.path / "manifest.json")
    except InputError as e:
        raise DamagedError(str(e)) from e
    for name, digest in manifest.items():
        file = checkpoint.path / name
        if not file.exists():
            raise DamagedError(f"{file} is missing")
        if _sha256(file) != digest:
            raise DamagedError(f"{file} differs from what was written")


def restore(checkpoint: Checkpoint, target: Tree | None = None, only: Sequence[str] = ()) -> Tree:
    """Verifies a checkpoint and reads its arrays.

    Args:
        checkpoint: which one.
        target: a tree of `jax.ShapeDtypeStruct` (or arrays) of the same structure; the arrays are
            laid out by its shardings, on any number of devices. Without it: a nested dict of
            NumPy arrays, named as they were saved.
        only: the top-level entries to read where they exist, such as `"params"`; all without.

    Raises:
        DamagedError: see `verify`.
        InputError: the checkpoint's tree does not fit `target`.
    """
    verify(checkpoint)
    return read(checkpoint, target, only)


def read(checkpoint: Checkpoint, target: Tree | None = None, only: Sequence[str] = ()) -> Tree:
    """As `restore`, of a checkpoint that is verified already."""
    with ocp.Checkpointer(_handler()) as reader:
        stored = _stored(reader, checkpoint, only)
        if target is None:
            kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
            wanted = jax.tree.map(lambda _: 0, stored)
        else:
            wanted = _named(target)
            _check_fit(stored, wanted, checkpoint.path)
            kinds = jax.tree.map(
                lambda x: ocp.ArrayRestoreArgs(sharding=x.sharding, dtype=x.dtype), wanted
            )
        arguments = ocp.args.PyTreeRestore(
            item=wanted, restore_args=kinds, partial_restore=bool(only)
        )
        arrays = reader.restore(checkpoint.path / "arrays", args=arguments)
    if target is None:
        return arrays
    flat = flax.traverse_util.flatten_dict(arrays, sep="/")
    return _unnamed(flat, target)


def check_fit(checkpoint: Checkpoint, target: Tree, only: Sequence[str] = ()) -> None:
    """An InputError if `read` would raise one; it takes no time."""
    with ocp.Checkpointer(_handler()) as reader:
        _check_fit(_stored(reader, checkpoint, only), _named(target), checkpoint.path)


class Writer:
    """Saves checkpoints in the background, one at a time, and deletes those no longer wanted.

    Args:
        directory: the `checkpoints` directory; made if it is not there.
        keep: how many of the latest to keep. The best is kept besides.
        log: told, in one line, of anything that a person should know.
    """

    def __init__(self, directory: os.PathLike | str, keep: int, log: Callable[[str], None]):
        self.directory = _absolute(directory)
        self.keep = keep
        self.log = log
        self.directory.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            for path in self.directory.iterdir():
                if path.name.isdigit() and not (path / "manifest.json").exists():
                    self._remove(path)  # an interrupted write
        self._orbax = ocp.AsyncCheckpointer(_handler())
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: concurrent.futures.Future | None = None

    def save(self, step: int, state: Tree, meta: Mapping[str, Any], best_step: int | None) -> None:
        """Starts a save and returns as soon as `state` may be overwritten.

        Args:
            step: the checkpoint's number.
            state: the arrays.
            meta: JSON facts to keep beside them.
            best_step: the checkpoint to keep whatever its age, if there is one.

        A save that fails (a full disk) is logged, not raised: older checkpoints stay whole and
        training goes on. `wait` tells.
        """
        self.wait()
        path = self.directory / f"{step:08d}"
        arrays = _named(state)
        needed = sum(x.nbytes for x in jax.tree.leaves(arrays))
        free = shutil.disk_usage(self.directory).free
        if not all_of(free >= needed):
            self._failed(step, f"needs {_size(needed)} of room and {_size(free)} is free")
            return
        if jax.default_backend() == "cpu":
            # Orbax reads CPU arrays in place, while the next step reuses (donates) their memory.
            arrays = jax.tree.map(jnp.copy, arrays)
        reason = "another process could not make its directory"
        try:
            if jax.process_index() == 0:
                if path.exists():
                    path.rmtree()
                path.mkdir(parents=True, exist_ok=True)
            made = True
        except OSError as e:
            made, reason = False, str(e)
        if not all_of(made):
            self._failed(step, reason, needed)
            return
        try:
            self._orbax.save(path / "arrays", args=ocp.args.PyTreeSave(arrays))
        except (OSError, ValueError, RuntimeError) as e:
            self._failed(step, str(e), needed)
            self._remove(path)
            return
        self._pending = self._thread.submit(self._finish, path, step, dict(meta), best_step, needed)

    def wait(self) -> bool:
        """Blocks until the last save is on disk. False if it failed."""
        if self._pending is None:
            return True
        ok = self._pending.result()
        self._pending = None
        return ok

    def close(self) -> None:
        """Waits, and ends the background threads."""
        self.wait()
        self._thread.shutdown()
        try:
            self._orbax.close()
        except (OSError, ValueError, RuntimeError) as e:  # left over from a save that failed
            self.log(f"closing the checkpoints: {_short(str(e))}")

    def _finish(self, path, step, meta, best_step, needed) -> bool:
        try:
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                _write_durably(path / "meta.json", json.dumps(meta, indent=1, sort_keys=True))
                files = sorted(p for p in _walk(path) if p.name != "manifest.json")
                manifest = {os.fspath(p.relative_to(path)): _sha256(p) for p in files}
                _write_durably(path / "manifest.json", json.dumps(manifest, indent=1))
        except (OSError, ValueError, RuntimeError) as e:
            self._failed(step, str(e), needed)
            self._remove(path)
            return False
        if jax.process_index() == 0:
            # Later ones than this were damaged: the run went on from one before them.
            steps = [c.step for c in list_checkpoints(self.directory)]
            wanted = {*[s for s in steps if s <= step][-self.keep :], best_step}
            for unwanted in set(steps) - wanted:
                self._remove(self.directory / f"{unwanted:08d}")
        return True

    def _remove(self, path: epath.Path) -> None:
        """Deletes a checkpoint, manifest first, so that a crash midway leaves no half that counts;
        what cannot be deleted, as on NFS while another program reads it, is no reason to stop."""
        if jax.process_index() == 0 and path.exists():
            try:
                (path / "manifest.json").unlink(missing_ok=True)
                path.rmtree(missing_ok=True)
            except OSError as e:
                self.log(f"{path} could not be deleted: {_short(str(e))}")

    def _failed(self, step: int, reason: str, needed: int | None = None) -> None:
        room = f"; it needs {_size(needed)} of room" if needed else ""
        said = f"{_short(reason)}{room}"
        self.log(f"checkpoint of step {step} was not saved: {said}. Older ones are whole.")
        self._pending = concurrent.futures.Future()
        self._pending.set_result(False)


def _short(reason: str) -> str:
    full = "No space left on device"  # the end of many lines of TensorStore's
    return full if full in reason else " ".join(reason.split())[:300]


def latest_intact(
    directory: os.PathLike | str, target: Tree, log: Callable[[str], None]
) -> tuple[Tree, dict[str, Any]] | None:
    """Restores the newest checkpoint that is whole, saying which damaged ones it passed over.

    Returns:
        The restored tree and its meta, or None if the directory holds no checkpoint.

    Raises:
        InputError: there are checkpoints, and every one is damaged.
    """
    # One process of several looks, and the others read what it found.
    step = from_first(_latest_whole(directory, log) if jax.process_index() == 0 else 0)
    if step == _NONE:
        return None
    if step == _DAMAGED:
        raise InputError(
            f"every checkpoint in {directory} is damaged; delete that directory to start again"
        )
    checkpoint = Checkpoint(_absolute(directory) / f"{step:08d}", step)
    return read(checkpoint, target), checkpoint.meta()


_NONE, _DAMAGED = -1, -2


def _latest_whole(directory: os.PathLike | str, log: Callable[[str], None]) -> int:
    checkpoints = list_checkpoints(directory)
    for checkpoint in reversed(checkpoints):
        try:
            verify(checkpoint)
            return checkpoint.step
        except (DamagedError, OSError) as e:
            log(f"checkpoint of step {checkpoint.step} is damaged ({e}); trying the one before")
    return _DAMAGED if checkpoints else _NONE


def locate(path: os.PathLike | str) -> Checkpoint:
    """The checkpoint that a user means: its own directory, or the newest of a working directory.

    Raises:
        InputError: there is none at `path`.
    """
    path = _absolute(path)
    if (path / "manifest.json").exists() and path.name.isdigit():
        return Checkpoint(path, int(path.name))
    for directory in (path / "checkpoints", path):
        found = list_checkpoints(directory)
        if found:
            return found[-1]
    if not path.exists():
        raise InputError(f"{path} does not exist")
    raise InputError(
        f"{path} has no finished checkpoint in it; give a working directory or one of its "
        "checkpoints/STEP"
    )


def _absolute(path: os.PathLike | str) -> epath.Path:
    """Orbax refuses any other."""
    return epath.Path(path).expanduser().resolve()


def _handler() -> ocp.PyTreeCheckpointHandler:
    return ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)


def _named(tree: Tree) -> dict[str, Any]:
    """Any pytree as nested dicts of its leaves under their own names, without empty nodes."""
    flat = {_key(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return flax.traverse_util.unflatten_dict(flat)


def _unnamed(flat: Mapping[str, Any], target: Tree) -> Tree:
    return jax.tree_util.tree_map_with_path(lambda path, _: flat["/".join(_key(path))], target)


def _key(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path)


def _stored(reader: ocp.Checkpointer, checkpoint: Checkpoint, only: Sequence[str]) -> Tree:
    """What is known of a checkpoint's arrays, by name."""
    stored = reader.metadata(checkpoint.path / "arrays").item_metadata.tree
    return {k: v for k, v in stored.items() if not only or k in only}


def _check_fit(stored: Tree, wanted: Tree, path: epath.Path) -> None:
    have = flax.traverse_util.flatten_dict(stored, sep="/")
    want = flax.traverse_util.flatten_dict(wanted, sep="/")
    for name in sorted(have.keys() ^ want.keys()):
        which = "lacks" if name in want else "has an unexpected"
        raise InputError(f"checkpoint {path} {which} {name}: it is of another model or optimizer")
    for name, leaf in want.items():
        if tuple(have[name].shape) != tuple(leaf.shape):
            raise InputError(
                f"checkpoint {path}: {name} has shape {tuple(have[name].shape)}, "
                f"this run needs {tuple(leaf.shape)}"
            )


def _walk(directory: epath.Path):
    for entry in directory.iterdir():
        if entry.is_dir():
            yield from _walk(entry)
        else:
            yield entry


def _sha256(file: epath.Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _write_durably(file: epath.Path, text: str) -> None:
    """Whole or not at all, also after a crash."""
    partial = file.parent / f".{file.name}.partial"
    with partial.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)


def _size(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"
