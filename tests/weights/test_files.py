import io
import json
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tests.weights.bad_files import refused
from vitlab.errors import InputError
from vitlab.weights.files import open_file

DTYPES = [
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8",
    "uint64", "uint32", "uint16", "uint8", "bool",
]  # fmt: skip
FIXTURES = Path(__file__).parents[1] / "fixtures"


def arrays():
    """One array of each dtype, a scalar, and one without elements."""
    named = {"zeros/empty": np.zeros((0, 3), np.float32), "scalar": np.float32(0.5)}
    for name in DTYPES:
        dtype = ml_dtypes.bfloat16 if name == "bfloat16" else name
        named[f"block/{name}"] = (np.arange(6) / 2).reshape(2, 3).astype(dtype)
    return {name: np.asarray(array) for name, array in named.items()}


def assert_holds(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        assert (tensors[name].shape, tensors[name].dtype) == (array.shape, array.dtype.name)
        read = tensors[name].read()
        assert (read.shape, read.dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(read, array)


# --- What is no weight file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "`git lfs pull`"),
        (b"\n<!DOCTYPE html>\n<html>", "a web page (HTML)"),
        (b"<html><head>", "a web page (HTML)"),
        (b"\x93NUMPY\x01\x00v\x00{'descr'", "a single array (.npy)"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "no safetensors, npz or PyTorch file"),
        (b'{"model":{"a": 1}}', "no safetensors, npz or PyTorch file"),
        (b"some text", "no safetensors, npz or PyTorch file"),
        (b"PK\x03\x04" + bytes(100), "truncated or damaged"),
    ],
)
def test_other_content(tmp_path, content, message):
    for name in ("a.safetensors", "a.npz", "a.pth"):
        (tmp_path / name).write_bytes(content)
        refused(message, tmp_path / name)


def test_other_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.txt", "a")
    refused("a zip archive of something else", tmp_path / "a.npz")


def test_no_file(tmp_path, monkeypatch):
    refused("does not exist", tmp_path / "none.npz")
    refused("is not a file", tmp_path)
    os.mkfifo(tmp_path / "pipe")
    refused("is not a file", tmp_path / "pipe")
    (tmp_path / "a").touch()

    def denied(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    refused("Permission denied", tmp_path / "a")


@pytest.mark.parametrize("name", ["a.pth", "a.npz", "a.safetensors"])
@pytest.mark.parametrize("protocol", [b"", b"\x80\x02", b"\x80\x04"])
def test_a_pickle_in_disguise(tmp_path, name, protocol):
    touched = tmp_path / "touched"
    command = f"cposix\nsystem\n(S'touch {touched}'\ntR.".encode()
    (tmp_path / name).write_bytes(protocol + command)
    refused("no safetensors, npz or PyTorch file", tmp_path / name)
    assert not touched.exists()


def test_the_content_tells_the_format_not_the_name(tmp_path):
    named = {"a": np.arange(3.0)}
    safetensors.numpy.save_file(named, tmp_path / "a.npz")
    with open(tmp_path / "b.safetensors", "wb") as file:
        np.savez(file, **named)
    for path in ("a.npz", "b.safetensors"):
        assert_holds(open_file(tmp_path / path)[0], named)


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_without_tensors(tmp_path, form):
    path = tmp_path / f"a.{form}"
    if form == "npz":
        np.savez(path, note="only text")
    else:
        safetensors.numpy.save_file({}, path)
    refused("holds no tensors", path)


# --- safetensors


def test_safetensors(tmp_path):
    named = arrays()
    safetensors.numpy.save_file(named, tmp_path / "a.safetensors", {"format": "pt"})
    tensors, metadata = open_file(str(tmp_path / "a.safetensors"))
    assert_holds(tensors, named)
    assert metadata == {"format": "pt"}


def test_safetensors_is_read_a_tensor_at_a_time(tmp_path):
    big = np.zeros(20_000_000, np.float32)
    safetensors.numpy.save_file({"big": big, "small": big[:3]}, tmp_path / "a")
    np.savez(tmp_path / "a.npz", big=big, small=big[:3])
    for name in ("a", "a.npz"):
        tracemalloc.start()
        tensors, _ = open_file(tmp_path / name)
        assert tensors["big"].shape == big.shape
        assert tensors["small"].read().tolist() == [0, 0, 0]
        assert tracemalloc.get_traced_memory()[1] < 5e6
        tracemalloc.stop()


def header(path, tensors, data=b"", length=None):
    """Writes a safetensors file of this header, right or wrong."""
    text = json.dumps(tensors).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def one(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("tensors", "data", "length"),
    [
        ({"a": one()}, 15, None),
        ({"a": one()}, 17, None),
        ({"a": one(), "b": one(offsets=(8, 24))}, 24, None),
        ({"a": one(offsets=(0, 10**12), shape=(25 * 10**10,))}, 16, None),
        ({"a": one(shape=(10**12,))}, 16, None),
        ({"a": one(shape=(2**62, 2**62))}, 16, None),
        ({"a": one(shape=(-4,))}, 16, None),
        ({"a\nb": one("NONE")}, 16, None),
        ({"a": one()}, 16, 100 * 10**9),
        ({"a": one()}, 16, 1000),
        ({"a": one()}, 16, 10),
    ],
)
def test_a_damaged_safetensors(tmp_path, tensors, data, length):
    path = header(tmp_path / "a.safetensors", tensors, bytes(data), length)
    refused("truncated or damaged", path)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_safetensors_of_other_dtypes(tmp_path, dtype):
    path = header(tmp_path / "a", {"a\nb": one(dtype, offsets=(0, 4))}, bytes(4))
    refused(f"a b is {dtype}, which is not read", path)


# --- npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    named = arrays() | {"complex": np.array([1 - 2j], np.complex64)}
    save(tmp_path / "a.npz", **named, versions="text is no tensor")
    tensors, metadata = open_file(tmp_path / "a.npz")
    assert_holds(tensors, named)
    assert metadata == {}


def test_npz_in_other_orders(tmp_path):
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez(tmp_path / "a.npz", fortran=np.asfortranarray(matrix), big=matrix.astype(">f4"))
    assert_holds(open_file(tmp_path / "a.npz")[0], {"fortran": matrix, "big": matrix})


def npy(descr="<f4", shape=(4,), data=bytes(16), version=(1, 0), header=None):
    """A .npy of this header, right or wrong."""
    text = header or f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text) + 1)
    return b"\x93NUMPY" + bytes(version) + length + text.encode() + b"\n" + data


def archive(path, **members):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def test_npz_of_old_names_and_dtypes(tmp_path):
    half = np.arange(4, dtype=ml_dtypes.bfloat16)
    members = {
        "a/b.npy": npy("|V2", data=half.tobytes()),
        "c": npy("<V2", data=half.tobytes(), version=(2, 0)),
        "folder/": b"",
        "readme": b"no array",
    }
    tensors, _ = open_file(archive(tmp_path / "a.npz", **members))
    assert_holds(tensors, {"a/b": half, "c": half})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy("|O"), "holds Python objects, which are never loaded"),
        (npy([("a", "<f4")]), "only numbers are read"),
        (npy([("a", "<i1"), ("b", "<i1")], data=bytes(8)), "only numbers are read"),
        (npy([("a", "|O")]), "holds Python objects"),
        (npy("<M8[s]", data=bytes(32)), "only numbers are read"),
        (npy("|V1", data=bytes(4)), "only numbers are read"),
        (npy(shape=(10**12,)), "4000000000000 bytes, and 16 are there"),
        (npy(shape=(3,)), "12 bytes, and 16 are there"),
        (npy(shape=(-2, -2)), "truncated or damaged"),
        (npy(shape=(2**40, 2**40)), "truncated or damaged"),
        (npy(shape=(0, 10**30), data=b""), "truncated or damaged"),
        (npy(shape=(1,) * 65, data=bytes(4)), "truncated or damaged"),
        (npy(version=(3, 0)), "version (3, 0)"),
        (npy(header="{[]: 1}"), "truncated or damaged"),
        (npy(header="-" * 9000 + "1"), "truncated or damaged"),
        (npy(header="(" * 9000), "truncated or damaged"),
        (npy(header="__import__('os').system('true')"), "truncated or damaged"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "truncated or damaged"),
        (b"\x93NUM", "no .npy array"),
        (b"\x80\x02cposix\nsystem\n(S'true'\ntR.", "no .npy array"),
    ],
)
def test_a_wrong_array(tmp_path, content, message):
    refused(message, archive(tmp_path / "a.npz", **{"a.npy": content}), read="a")


def test_npz_with_python_objects(tmp_path):
    np.savez(tmp_path / "a.npz", fine=np.ones(2), bad=np.array([{}], object))
    refused("bad.npy holds Python objects", tmp_path / "a.npz")


def test_npz_with_a_name_twice(tmp_path):
    path = archive(tmp_path / "a.npz", **{"a": npy(), "a.npy": npy()})
    refused("two arrays of the name a", path)


def test_a_damaged_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(1000.0))
    content = path.read_bytes()
    path.write_bytes(content[:-30])
    refused("truncated or damaged", path)
    path.write_bytes(content[:4000] + b"\xff" + content[4001:])
    refused("Bad CRC-32", path, read="a")
    np.savez_compressed(path, a=np.random.default_rng(0).normal(size=1000))
    content = path.read_bytes()
    path.write_bytes(content[:4000] + bytes(9) + content[4009:])
    refused("truncated or damaged", path, read="a")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_npz_of_other_compressions(tmp_path, compression):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as file:
        file.writestr("a.npy", npy())
    refused("compressed in a way that numpy does not use", tmp_path / "a.npz")


def claim(path, size, compressed):
    """Has the archive's directory claim these sizes of its one member."""
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")
    sizes = struct.pack("<II", compressed, size)
    path.write_bytes(content[: start + 20] + sizes + content[start + 28 :])
    return path


def test_npz_of_claimed_sizes(tmp_path):
    size = 3 * 2**30
    member = npy(shape=(size // 4,))
    path = archive(tmp_path / "a.npz", **{"a.npy": member})
    claim(path, len(member) - 16 + size, len(member) - 16 + size)
    refused("truncated or damaged", path, read="a")
    claim(path, len(member) - 16 + size, len(member))
    refused("truncated or damaged", path, read="a")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", member)
    packed = zipfile.ZipFile(path).getinfo("a.npy").compress_size
    refused("no weights compress like this", claim(path, len(member) - 16 + size, packed), "a")


def test_a_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr("vitlab.weights.files._BOMB_BYTES", 2**20)
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(2**20))
    refused("no weights compress like this", tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", a=np.zeros(2**20))
    assert open_file(tmp_path / "a.npz")[0]["a"].read().shape == (2**20,)


# --- Any damage at all


def read_all(tensors):
    for tensor in tensors.values():
        read_all(tensor) if isinstance(tensor, dict) else tensor.read()


@pytest.mark.parametrize("form", ["safetensors", "npz", "npz_compressed", "zip", "legacy"])
def test_damage_is_reported_in_one_line(tmp_path, form):
    path = tmp_path / "a"
    if form in ("zip", "legacy"):
        content = (FIXTURES / f"torch_{form}.pth").read_bytes()
    else:
        written = io.BytesIO()
        if form == "safetensors":
            written.write(safetensors.numpy.save(arrays()))
        else:
            save = np.savez if form == "npz" else np.savez_compressed
            save(written, **arrays())
        content = written.getvalue()
    rng = np.random.default_rng(0)
    read, messages = 0, []
    for number in range(400):
        damaged = bytearray(content)
        for place in rng.integers(len(content), size=rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(len(content))] if number % 4 == 0 else damaged)
        try:
            read_all(open_file(path)[0])
            read += 1
        except InputError as e:
            messages.append(str(e))
    assert read
    assert len(messages) > 100
    assert not any("\n" in message or len(message) > 500 for message in messages)
