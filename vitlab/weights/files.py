"""Weight files: names, shapes and dtypes from their headers, and data only where it is asked for.

No file is trusted. Nothing in one is unpickled or run, whatever its name says it is: the format is
told from the content. And no size that a file claims is allocated before the bytes are
known to be there.
"""

import contextlib
import dataclasses
import functools
import io
import math
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from vitlab.errors import InputError


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One array of a file, not read yet.

    Attributes:
        shape: its shape, `()` of a scalar.
        dtype: the name of its dtype in numpy or ml_dtypes, such as "float32" or "bfloat16".
        read: gives the array, in that dtype and in this machine's byte order; it raises an
            InputError where the file's data is damaged or truncated.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def open_file(path: os.PathLike | str) -> tuple[dict[str, Any], dict[str, str]]:
    """Lists the tensors of a safetensors, npz or PyTorch file.

    Args:
        path: a file of safetensors (https://github.com/huggingface/safetensors), of `numpy.savez`,
            or of `torch.save`, zipped or from before PyTorch 1.6. Its suffix does not matter.

    Returns:
        The tensors, `{"name": Tensor}`, nested as `{"model": {"name": Tensor}}` where a PyTorch
        file nests them, without what is no tensor; and the strings that a safetensors file says of
        itself.

    Raises:
        InputError: no such file, none of these formats, damaged, without tensors, or with anything
            in it that is not plainly data.
    """
    # torch_files describes what it finds as this module's Tensor.
    from vitlab.weights import torch_files

    path = pathlib.Path(path).expanduser()
    try:
        if not path.is_file():
            what = "is not a file" if path.exists() else "does not exist"
            raise InputError(f"{path} {what}: a safetensors, npz or PyTorch file is wanted")
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as e:
        raise InputError(f"{path} cannot be read ({shown(e)})") from e

    metadata: dict[str, str] = {}
    if head.startswith(b"PK\x03\x04"):
        with damage_of(path):
            archive = zipfile.ZipFile(path)
        names = archive.namelist()
        if any(name.endswith("/data.pkl") for name in names):
            with archive:
                tensors = torch_files.open_zip(path, archive)
        elif any(name.endswith(".npy") for name in names):
            tensors = _open_npz(path, archive)
        else:
            raise InputError(f"{path} is no {_FORMATS}: a zip archive of something else")
    elif head.startswith(torch_files.LEGACY):
        tensors = torch_files.open_legacy(path)
    elif head[6:9] == b"\0\0{":
        tensors, metadata = _open_safetensors(path)
    else:
        raise InputError(f"{path} is {_what_else(head)}")
    if not tensors:
        raise InputError(f"{path} holds no tensors under names: the file of a state dict is wanted")
    return tensors, metadata


_FORMATS = "safetensors, npz or PyTorch file"


def _what_else(head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "empty: fetch it again"
    if head.startswith(b"version https://git-lfs.github.com/spec/v1"):
        return "a Git LFS pointer: fetch the real file with `git lfs pull`"
    if text.startswith((b"<!doctype", b"<html")):
        return f"no {_FORMATS} but a web page (HTML): fetch the file that the page is about"
    if head.startswith(b"\x93NUMPY"):
        return f"no {_FORMATS} but a single array (.npy): numpy.savez gives arrays their names"
    if head[:1] == b"\x80" and head[1] <= 5:
        return f"no {_FORMATS} but a plain pickle, which is never loaded"
    return f"no {_FORMATS}"


@contextlib.contextmanager
def damage_of(path: pathlib.Path) -> Iterator[None]:
    """Turns whatever a library says of the file that it reads into an InputError of one line."""
    try:
        yield
    except InputError:
        raise
    # The libraries do not list what they raise on hostile input, and it is more than one would
    # think: numpy's parser of headers, for one, lets out five kinds of exception.
    except Exception as e:
        raise InputError(f"{path} is truncated or damaged: {shown(e) or type(e).__name__}") from e


def shown(what: object) -> str:
    """What a file says, fit for a line: printable, and no longer than a line bears."""
    text = ascii(" ".join(str(what).split()))[1:-1]
    return text if len(text) <= 120 else f"{text[:117]}..."


def numpy_dtype(name: str) -> np.dtype:
    """The dtype of a Tensor's `dtype`."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


_SAFETENSORS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "C64": "complex64",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "BOOL": "bool",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
}  # fmt: skip


def _open_safetensors(path: pathlib.Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors = {}
    with damage_of(path):
        # This maps the file into memory, and checks that the header is of a size that can be, and
        # that the tensors' bytes are those of the file, each once.
        handle = safetensors.safe_open(path, framework="numpy")
        for name in handle.keys():  # noqa: SIM118 (no dict)
            piece = handle.get_slice(name)
            dtype = _SAFETENSORS.get(piece.get_dtype())
            if dtype is None:
                raise InputError(
                    f"{path}: {shown(name)} is {shown(piece.get_dtype())}, which is not read: "
                    f"{', '.join(_SAFETENSORS)} are"
                )
            read = functools.partial(_read_safetensor, path, handle, name)
            tensors[name] = Tensor(tuple(piece.get_shape()), dtype, read)
        return tensors, dict(handle.metadata() or {})


def _read_safetensor(path: pathlib.Path, handle: safetensors.safe_open, name: str) -> np.ndarray:
    with damage_of(path):
        return handle.get_tensor(name)


# numpy itself reads no longer header than 10,000 bytes; two more are its length, and eight a magic.
_LONGEST_NPY_HEADER = 16384
# More than a network's weights ever compress to: what does is zeros, made to fill the memory.
_BOMB_BYTES, _BOMB_RATIO = 2**30, 200
_CHUNK = 2**24


def _open_npz(path: pathlib.Path, archive: zipfile.ZipFile) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name in tensors:
            raise InputError(f"{path} holds two arrays of the name {shown(name)}")
        tensor = _open_npy(path, archive, info)
        if tensor is not None:
            tensors[name] = tensor
    return tensors


def _open_npy(path: pathlib.Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Tensor | None:
    """What the header of one member says; None of what is text, or no array at all."""
    where = f"{path}, {shown(info.filename)}"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{where} is compressed in a way that numpy does not use: it is not read")
    stored = info.file_size if info.compress_type == zipfile.ZIP_STORED else info.compress_size
    if stored != info.compress_size or stored > path.stat().st_size:
        raise InputError(f"{where} is truncated or damaged: it claims {stored} bytes of the file")
    if info.file_size > max(_BOMB_BYTES, _BOMB_RATIO * info.compress_size):
        raise InputError(
            f"{where} is {info.file_size} bytes in {info.compress_size}: refused, as no weights "
            "compress like this"
        )
    with damage_of(path), archive.open(info) as member:
        # All that is read, however long the header says it is.
        head = io.BytesIO(member.read(_LONGEST_NPY_HEADER))
    if not head.getvalue().startswith(np.lib.format.MAGIC_PREFIX):
        if info.filename.endswith(".npy"):
            raise InputError(f"{where} is damaged: its content is no .npy array")
        return None
    with damage_of(path):
        version = np.lib.format.read_magic(head)
        if version not in _NPY_HEADERS:
            raise InputError(f"{where} is of .npy version {version}: 1.0 and 2.0 are read")
        shape, fortran, dtype = _NPY_HEADERS[version](head)
    if dtype.hasobject:
        raise InputError(f"{where} holds Python objects, which are never loaded: numbers are")
    if dtype.kind in "SU":
        return None
    # numpy does not know the bfloat16 of ml_dtypes in a file: it is two bytes of anything there.
    name = "bfloat16" if dtype == np.dtype("V2") else dtype.newbyteorder("=").name
    if dtype.kind not in "biufc" and name != "bfloat16":
        raise InputError(f"{where} is of the dtype {shown(dtype)}: only numbers are read")
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or head.tell() + size != info.file_size:
        raise InputError(
            f"{where} is truncated or damaged: {shown(shape)} of {name} is {size} bytes, and "
            f"{info.file_size - head.tell()} are there"
        )
    order = "F" if fortran else "C"
    read = functools.partial(
        _read_npy, path, archive, info, head.tell(), size, dtype, name, shape, order
    )
    return Tensor(tuple(shape), name, read)


_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def _read_npy(
    path: pathlib.Path,
    archive: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    start: int,
    size: int,
    dtype: np.dtype,
    name: str,
    shape: tuple[int, ...],
    order: str,
) -> np.ndarray:
    with damage_of(path), archive.open(info) as member:
        member.read(start)
        data = np.empty(size, np.uint8)
        done = 0
        while done < size:
            # To the last byte, at which zipfile compares the checksum.
            chunk = member.read(min(_CHUNK, size - done))
            if not chunk:
                raise InputError(f"{path} is truncated: {shown(info.filename)} ends early")
            data[done : done + len(chunk)] = np.frombuffer(chunk, np.uint8)
            done += len(chunk)
        array = data.view(ml_dtypes.bfloat16 if name == "bfloat16" else dtype)
        return array.reshape(shape, order=order).astype(numpy_dtype(name), copy=False)
