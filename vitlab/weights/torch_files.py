"""PyTorch's files without PyTorch, and without unpickling.

What `torch.save` writes is a program for pickle's stack machine, which `torch_program` reads, and
the bytes of the tensors beside it. The formats are those of
https://github.com/pytorch/pytorch/blob/main/torch/serialization.py.
"""

import functools
import io
import pathlib
import struct
import zipfile
import zlib
from typing import Any, BinaryIO

import numpy as np

from vitlab.errors import InputError
from vitlab.weights.files import Tensor, damage_of, numpy_dtype, shown
from vitlab.weights.torch_program import MOST_BYTES, Bounded, Storage, View, run

# A file from before PyTorch 1.6 starts with this pickle of the number 0x1950a86a20f9469cfc6c.
LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."

_MOST_ENTRIES, _DEEPEST = 200_000, 64


def open_zip(path: pathlib.Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    """The tensors of a file of PyTorch 1.6 or later: `NAME/data.pkl` and `NAME/data/KEY`.

    Args:
        path: the file.
        archive: the same, opened.

    Returns:
        `{"name": Tensor}`, with dicts inside where the file has them.

    Raises:
        InputError: damaged, written without checksums, TorchScript, of a big-endian machine, or
            not plainly data.
    """
    members = {info.filename: info for info in archive.infolist()}
    programs = [name for name in members if name.endswith("/data.pkl")]
    root = programs[0].removesuffix("/data.pkl")
    if any(name.startswith((f"{root}/constants.pkl", f"{root}/code/")) for name in members):
        raise InputError(
            f"{path} is a TorchScript program, which is not supported: torch.save the state_dict()"
        )
    if len(programs) > 1:
        raise InputError(f"{path} is damaged: it holds {len(programs)} pickles, not one")
    order = members.get(f"{root}/byteorder")
    if order and _member(path, archive, order, most=16).strip() != b"little":
        raise InputError(f"{path} was written on a big-endian machine: little-endian is read")
    program = io.BytesIO(_member(path, archive, members[programs[0]], most=MOST_BYTES))
    storages: dict[str, Storage] = {}
    content = run(path, program, storages)
    with damage_of(path), path.open("rb") as file:
        for storage in storages.values():
            info = members.get(f"{root}/data/{storage.key}")
            if info is None or info.compress_type != zipfile.ZIP_STORED:
                raise InputError(
                    f"{path} is damaged: it has no uncompressed {shown(storage.key)} in its data/"
                )
            storage.start, storage.checksum = _start(file, info), info.CRC
            _check_size(path, storage, info.file_size)
    return _tensors(path, content)


def open_legacy(path: pathlib.Path) -> dict[str, Any]:
    """The tensors of a file of PyTorch 1.5 or earlier: five pickles, then the storages.

    Args:
        path: the file.

    Returns:
        `{"name": Tensor}`, with dicts inside where the file has them.

    Raises:
        InputError: damaged, of a big-endian machine, or not plainly data.
    """
    storages: dict[str, Storage] = {}
    with damage_of(path), path.open("rb") as file:
        program = Bounded(file, min(MOST_BYTES, path.stat().st_size))
        _, version, system, content, keys = [run(path, program, storages) for _ in range(5)]
        if version != 1001 or type(system) is not dict or type(keys) is not list:
            raise InputError(f"{path} is damaged, or of an unknown version of PyTorch's format")
        if system.get("little_endian") is not True:
            raise InputError(f"{path} was written on a big-endian machine: little-endian is read")
        for key in keys:
            (count,) = struct.unpack("<q", file.read(8))
            if not isinstance(key, str) or key not in storages or count != storages[key].count:
                raise InputError(f"{path} is damaged: its storages are not those it lists")
            storages[key].start = file.tell()
            _check_size(path, storages[key], storages[key].size)
            file.seek(storages[key].size, io.SEEK_CUR)
    return _tensors(path, content)


def _member(
    path: pathlib.Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int
) -> bytes:
    """The content of a small member."""
    with damage_of(path):
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
            raise InputError(
                f"{path}: {shown(info.filename)} is compressed or over {most} bytes, which "
                "PyTorch's is not: refused"
            )
        with archive.open(info) as member:
            return member.read(min(info.file_size, path.stat().st_size))


def _start(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a member start, behind a header with its name and padding."""
    file.seek(info.header_offset)
    header = file.read(30)
    if not header.startswith(b"PK\x03\x04"):
        raise ValueError(f"no header of {info.filename}")
    return info.header_offset + 30 + sum(struct.unpack_from("<HH", header, 26))


def _check_size(path: pathlib.Path, storage: Storage, found: int) -> None:
    """Refuses a storage that claims another size than it has, or more than the file holds."""
    if storage.size != found or storage.start + found > path.stat().st_size:
        there = max(0, min(found, path.stat().st_size - storage.start))
        raise InputError(
            f"{path} is truncated or damaged: the storage {shown(storage.key)} claims "
            f"{storage.count} elements of {storage.dtype}, {storage.size} bytes, and {there} are "
            "there"
        )


def _tensors(path: pathlib.Path, content: Any) -> dict[str, Any]:
    """The tensors of a dict and of the dicts in it.

    A program of a few bytes can put a dict into itself, or two of each into the next: hence bounds.
    """
    left = _MOST_ENTRIES

    def of(content: dict[str, Any], depth: int) -> dict[str, Any]:
        nonlocal left
        left -= len(content)
        if depth > _DEEPEST or left < 0:
            raise InputError(
                f"{path} nests dicts over {_DEEPEST} deep, or over {_MOST_ENTRIES} entries: refused"
            )
        found: dict[str, Any] = {}
        for name, value in content.items():
            if isinstance(value, View):
                if value.storage.start is None:
                    raise InputError(f"{path} is truncated or damaged: {shown(name)} has no data")
                read = functools.partial(_read, path, value)
                found[name] = Tensor(value.shape, value.storage.dtype, read)
            elif isinstance(value, dict) and (inner := of(value, depth + 1)):
                found[name] = inner
        return found

    return of(content, 1) if isinstance(content, dict) else {}


def _read(path: pathlib.Path, view: View) -> np.ndarray:
    """The array of a tensor, read from the part of its storage that it spans."""
    storage, dtype = view.storage, numpy_dtype(view.storage.dtype)
    with damage_of(path):
        start = storage.start + view.offset * dtype.itemsize
        size = view.extent * dtype.itemsize
        data = np.fromfile(path, np.uint8, size, offset=start)
        if len(data) != size:
            raise InputError(f"{path} is truncated: {len(data)} of {size} bytes at {start}")
        whole = size == storage.size and storage.checksum is not None
        if whole and zlib.crc32(data) != storage.checksum:
            raise InputError(f"{path} is damaged: the storage {shown(storage.key)} has another CRC")
        strides = [stride * dtype.itemsize for stride in view.strides]
        array = np.lib.stride_tricks.as_strided(data.view(dtype), view.shape, strides)
        return np.asarray(array, order="C")
