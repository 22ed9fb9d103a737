import struct
import sys
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.weights.bad_files import refused
from vitlab.errors import InputError
from vitlab.weights import torch_files, torch_program
from vitlab.weights.files import open_file

FIXTURES = Path(__file__).parents[1] / "fixtures"
NUMBERS = np.arange(12, dtype=np.float32)
# What make_torch_files.py puts into "model".
MODEL = {
    "matrix": NUMBERS.reshape(3, 4),
    "transposed": NUMBERS.reshape(3, 4).T,
    "channels_last": np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4),
    "shared_all": NUMBERS[:6] * 10,
    "shared_tail": NUMBERS[4:6] * 10,
    "every_third": np.arange(20, dtype=np.float32)[2::3],
    "parameter": NUMBERS[:4] / 4,
    "half": (NUMBERS[:5] / 2).astype(np.float16),
    "bfloat16": (NUMBERS[:5] / 2).astype(ml_dtypes.bfloat16),
    "double": np.arange(3) / 8,
    "scalar": np.array(7),
    "int32": np.arange(-2, 2, dtype=np.int32),
    "int16": np.arange(-2, 2, dtype=np.int16),
    "int8": np.arange(-2, 2, dtype=np.int8),
    "uint8": np.arange(250, 254, dtype=np.uint8),
    "bool": np.array([True, False, True]),
    "complex": (NUMBERS[:3] * (1 - 1j)).astype(np.complex64),
    "empty": np.zeros((0, 4), np.float32),
}


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_training_checkpoint(form):
    tensors, metadata = open_file(FIXTURES / f"torch_{form}.pth")
    assert metadata == {}
    assert tensors.keys() == {"model", "nested"}
    assert tensors["nested"].keys() == {"deep"}
    assert tensors["nested"]["deep"]["weight"].read().tolist() == [0, 1, 2]
    assert tensors["model"].keys() == MODEL.keys()
    for name, array in MODEL.items():
        tensor = tensors["model"][name]
        assert (tensor.shape, tensor.dtype) == (array.shape, array.dtype.name)
        read = tensor.read()
        assert (read.shape, read.dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(read, array)


# --- Programs written by hand


def text(string):
    return b"X" + struct.pack("<I", len(string)) + string.encode()


def numbers(*values):
    return b"(" + b"".join(f"I{value}\n".encode() for value in values) + b"t"


def storage(count=4, kind="torch\nFloatStorage", key="0", view=b""):
    """The instructions that name a storage; the old format's end with `view`."""
    named = text("storage") + f"c{kind}\n".encode() + text(key) + text("cpu")
    return b"(" + named + f"I{count}\n".encode() + view + b"tQ"


def tensor(shape=(4,), strides=(1,), offset=0, of=None, end=b"I00\nccollections\nOrderedDict\n)R"):
    claims = f"I{offset}\n".encode() + numbers(*shape) + numbers(*strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + (of or storage()) + claims + end + b"tR"


def state(*, w=None, **others):
    """A pickle of a dict: w is a tensor, unless it is said to be something else."""
    items = {"w": tensor() if w is None else w, **others}
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in items.items()) + b"u."


DATA = np.arange(4, dtype=np.float32)
BYTES = DATA.tobytes()


def write_zip(path, program, data=BYTES, compression=zipfile.ZIP_STORED, **others):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in {"data.pkl": program, "data/0": data, **others}.items():
            archive.writestr(f"archive/{name}", content)
    return path


def write_legacy(
    path, program, count=4, data=BYTES, little=b"\x88", keys=b"](X\x01\0\0\0" + b"0e."
):
    system = b"\x80\x02}" + text("little_endian") + little + b"s."
    head = torch_files.LEGACY + b"\x80\x02M\xe9\x03." + system
    path.write_bytes(head + program + b"\x80\x02" + keys + struct.pack("<q", count) + data)
    return path


def old(program):
    """The same program as the format before PyTorch 1.6 has it."""
    return program.replace(b"I4\ntQ", b"I4\nNtQ")


def test_programs_written_by_hand(tmp_path):
    path = write_zip(tmp_path / "a.pth", state())
    np.testing.assert_array_equal(open_file(path)[0]["w"].read(), DATA)
    path = write_legacy(tmp_path / "a.pth", old(state()))
    np.testing.assert_array_equal(open_file(path)[0]["w"].read(), DATA)


def test_python_2(tmp_path):
    """Its strings are bytes, and an OrderedDict gets its items as a list of lists."""
    items = b"ccollections\nOrderedDict\n(](](U\x01w" + old(tensor()) + b"eetR"
    path = write_legacy(tmp_path / "a.pth", b"\x80\x02" + items + b".")
    np.testing.assert_array_equal(open_file(path)[0]["w"].read(), DATA)
    of_type = b"ctorch._utils\n_rebuild_tensor\n"
    program = state(w=of_type + b"(" + storage() + b"I1\n" + numbers(3) + numbers(1) + b"tR")
    path = write_zip(tmp_path / "b.pth", program)
    np.testing.assert_array_equal(open_file(path)[0]["w"].read(), DATA[1:])


def test_what_is_no_tensor_is_left_out(tmp_path):
    others = {
        "text": text("a"),
        "list": b"](" + tensor() + b"e",
        "numbered": b"}(K\x01" + tensor() + b"u",
        "arguments": b"cargparse\nNamespace\n)\x81}" + text("w") + tensor() + b"sb",
        "array": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nI0\ntRNb",
        "set": b"c__builtin__\nset\n](K\x01e\x85R",
        "new": b"\x8f(K\x01\x90",
    }
    path = write_zip(tmp_path / "a.pth", state(**others))
    assert open_file(path)[0].keys() == {"w"}
    refused("holds no tensors", write_zip(tmp_path / "b.pth", state(w=text("a"))))
    refused("holds no tensors", write_zip(tmp_path / "c.pth", b"\x80\x02" + tensor() + b"."))


def test_a_part_of_a_storage_is_all_that_is_read(tmp_path):
    count = 20_000_000
    data = np.arange(count, dtype=np.float32)
    part = tensor((2, 2), (2, 1), count - 4, of=storage(count))
    path = write_zip(tmp_path / "a.pth", state(w=part), data=data.tobytes())
    tracemalloc.start()
    read = open_file(path)[0]["w"].read()
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()
    np.testing.assert_array_equal(read, data[-4:].reshape(2, 2))


# --- Programs that mean harm


def call(module, name, argument):
    return f"c{module}\n{name}\n".encode() + text(argument) + b"\x85R"


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize(
    "instructions",
    [
        lambda command: call("posix", "system", command),
        lambda command: call("os", "system", command),
        lambda command: call("builtins", "eval", f"__import__('os').system('{command}')"),
        lambda command: call("__builtin__", "exec", f"__import__('os').system('{command}')"),
        lambda command: text("os") + text("system") + b"\x93" + text(command) + b"\x85R",
        lambda command: b"(" + text(command) + b"iposix\nsystem\n",
        lambda command: b"(cposix\nsystem\n" + text(command) + b"o",
        lambda command: b"cposix\nsystem\n" + text(command) + b"\x85\x81",
        lambda command: b"cposix\nsystem\n0" + text(command),
        lambda command: b"\x82\x01",
        lambda command: text(command) + b"cposix\nsystem\nQ",
        lambda command: b"Pposix.system\n",
        lambda command: call("torch.storage", "_load_from_bytes", command),
        lambda command: call("builtins", "getattr", command),
        lambda command: call("collections", "OrderedDict.fromkeys", command),
        lambda command: call("collections ", "OrderedDict", command),
        lambda command: call("numpy.core.multiarray", "_reconstruct.__globals__", command),
    ],
)
def test_a_program_that_calls(tmp_path, write, instructions):
    touched, path = tmp_path / "touched", tmp_path / "a.pth"
    w = tensor() if write is write_zip else old(tensor())
    write(path, state(w=w, bad=instructions(f"touch {touched}")))
    refused("refused", path)
    assert not touched.exists()


def test_what_is_refused_is_named(tmp_path):
    path = write_zip(tmp_path / "a.pth", state(bad=call("posix", "system", "true")))
    refused("holds a posix.system, which is no tensor: refused, and nothing of it was run", path)
    assert "antigravity" not in sys.modules
    path = write_zip(tmp_path / "a.pth", state(bad=call("antigravity", "fly", "")))
    refused("holds a antigravity.fly", path)
    assert "antigravity" not in sys.modules
    hostile = text("a\n\x1b[2J" * 1000) + text("b") + b"\x93"
    refused("...", write_zip(tmp_path / "a.pth", state(bad=hostile)))
    path = write_zip(tmp_path / "a.pth", state(bad=b"(K\x01iposix\nsystem\n"))
    refused("the instruction INST", path)


@pytest.mark.parametrize(
    "name",
    [
        "torch._utils\n_rebuild_qtensor",
        "torch._utils\n_rebuild_sparse_tensor",
        "torch._utils\n_rebuild_tensor_v3",
        "torch._tensor\n_rebuild_from_type_v2",
        "torch\nQInt8Storage",
        "torch.storage\nUntypedStorage",
    ],
)
def test_tensors_of_other_kinds(tmp_path, name):
    path = write_zip(tmp_path / "a.pth", state(bad=f"c{name}\n".encode()))
    refused("only dense tensors of plain dtypes are read", path)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize(
    "claim",
    [
        dict(shape=(5,)),
        dict(shape=(4,), offset=1),
        dict(shape=(0,), offset=5),
        dict(shape=(2, 2), strides=(3, 1)),
        dict(shape=(4,), strides=(-1,), offset=3),
        dict(shape=(4,), offset=-1),
        dict(shape=(-2, -2), strides=(1, 1)),
        dict(shape=(10**12,)),
        dict(shape=(10**12,), strides=(0,)),
        dict(shape=(2**64,), strides=(0,)),
        dict(shape=(2, 2), strides=(1,)),
        dict(shape=(1,) * 65, strides=(1,) * 65),
        dict(shape=("01",), strides=(1,)),
    ],
)
def test_a_tensor_that_is_not_in_its_storage(tmp_path, write, claim):
    w = tensor(**{"strides": (1,), **claim})
    refused("is damaged", write(tmp_path / "a.pth", state(w=w if write is write_zip else old(w))))


@pytest.mark.parametrize("count", [3, 5, 25 * 10**9, -4])
def test_a_storage_that_is_not_there(tmp_path, count):
    huge = tensor((max(count, 1),), of=storage(count))
    refused("damaged", write_zip(tmp_path / "a.pth", state(w=huge)))
    huge = tensor((max(count, 1),), of=storage(count, view=b"N"))
    path = write_legacy(tmp_path / "b.pth", state(w=huge), count=count)
    if count == 3:
        assert open_file(path)[0]["w"].read().tolist() == [0, 1, 2]
    else:
        refused("damaged", path)
    refused("damaged", write_legacy(tmp_path / "b.pth", state(w=huge), count=4))


def test_claims_of_an_archive(tmp_path):
    size = 4 * 10**8
    program = state(w=tensor((size,), of=storage(size)))
    path = write_zip(tmp_path / "a.pth", program)
    content = path.read_bytes()
    name = content.rindex(b"archive/data/0")
    sizes = struct.pack("<II", 4 * size, 4 * size)
    path.write_bytes(content[: name - 26] + sizes + content[name - 18 :])
    refused("claims 400000000 elements of float32, 1600000000 bytes", path)


def test_programs_of_claimed_lengths(tmp_path):
    for string in (b"X\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 7 + b"\x7f", b"\x8b\xff\xff\xff\x7f"):
        program = b"\x80\x02" + string + b"abc"
        refused("truncated or damaged", write_zip(tmp_path / "a.pth", program))
        (tmp_path / "b.pth").write_bytes(torch_files.LEGACY + program)
        refused("truncated or damaged", tmp_path / "b.pth")


def test_programs_that_grow(tmp_path):
    itself = b"\x80\x02}q\x00X\x01\0\0\0ah\x00s."
    refused("nests dicts", write_zip(tmp_path / "a.pth", itself))
    laughs = b"}" + b"".join(b"q%c}(X\x01\0\0\0ah%cX\x01\0\0\0bh%cu" % (n, n, n) for n in range(40))
    refused("nests dicts", write_zip(tmp_path / "a.pth", b"\x80\x02" + laughs + b"."))
    # The same, of tuples: as a key, as a shape, as a name, as what is called.
    laughs = b")" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(60))
    path = write_zip(tmp_path / "a.pth", state(bad=b"}" + laughs + b"Ns"))
    assert open_file(path)[0].keys() == {"w"}
    for program in (
        state(w=tensor().replace(numbers(4), laughs)),
        state(bad=laughs + text("a") + b"\x93"),
        state(bad=laughs + b")R"),
        state(bad=laughs + b"Q"),
        state(bad=b"ccollections\nOrderedDict\n" + laughs + b"R"),
    ):
        refused("damaged", write_zip(tmp_path / "a.pth", program))
    first = b"ccollections\nOrderedDict\nq\x00](](" + text("w") + tensor() + b"ee\x85q\x01R"
    path = write_zip(tmp_path / "a.pth", state(first=first, again=b"h\x00h\x01R"))
    assert open_file(path)[0].keys() == {"w", "first"}


def test_programs_that_are_long(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_program, "_MOST_INSTRUCTIONS", 1000)
    path = write_zip(tmp_path / "a.pth", b"\x80\x02" + b"]" * 2000 + b".")
    refused("over 1000 instructions", path)
    monkeypatch.setattr(torch_files, "MOST_BYTES", 100)
    refused("over 100 bytes", path)
    (tmp_path / "b.pth").write_bytes(torch_files.LEGACY + b"\x80\x02" + b"]" * 2000 + b".")
    refused("pickle exhausted", tmp_path / "b.pth")


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02}",
        b"\x80\x020.",
        b"\x80\x02h\x05.",
        b"\x80\x02]Na}NNsNa.",
        b"\x80\x02NN)R.",
        b"\x80\x02Nt.",
        b"\x80\x02}(Nu.",
        b"\x80\x02]NNs.",
        b"\x80\x02I" + b"9" * 5000 + b"\n.",
        b"\x80\x02ctorch\xff\nFloatStorage\n.",
        state(w=storage(kind="argparse\nNamespace")),
        state(w=tensor(of=b"N")),
        state(w=tensor(end=b"NN}(K\x01K\x02u" + text("neg") + b"\x88su")),
        state(w=tensor(), x=tensor(of=storage(kind="torch\nIntStorage"))),
        state(w=tensor(of=storage(key="../0"))),
        state(w=tensor(of=storage(key="1"))),
    ],
)
def test_a_damaged_program(tmp_path, program):
    refused("damaged", write_zip(tmp_path / "a.pth", program))


# --- Archives


def test_other_archives(tmp_path):
    path = tmp_path / "a.pth"
    refused("TorchScript", write_zip(path, state(), **{"constants.pkl": b"\x80\x02)."}))
    refused("TorchScript", write_zip(path, state(), **{"code/__torch__.py": b"def f(): pass"}))
    refused("big-endian", write_zip(path, state(), byteorder=b"big"))
    assert open_file(write_zip(path, state(), byteorder=b"little"))[0].keys() == {"w"}
    refused("compressed", write_zip(path, state(), compression=zipfile.ZIP_DEFLATED))
    refused("2 pickles", write_zip(path, state(), **{"b/data.pkl": state()}))


def test_other_legacy_files(tmp_path):
    path = tmp_path / "a.pth"
    refused("big-endian", write_legacy(path, old(state()), little=b"\x89"))
    refused(
        "its storages are not", write_legacy(path, old(state()), keys=b"](" + text("1") + b"e.")
    )
    refused("its storages are not", write_legacy(path, old(state()), keys=b"](K\x00e."))
    refused("has no data", write_legacy(path, old(state()), keys=b"]."))
    refused("truncated", write_legacy(path, old(state()), data=BYTES[:-1]))
    viewed = b"(" + text("1") + b"K\x00K\x04t"
    refused("views of storages", write_legacy(path, state(w=tensor(of=storage(view=viewed)))))
    path.write_bytes(torch_files.LEGACY + b"\x80\x02M\xea\x03." + b"\x80\x02}." * 3)
    refused("unknown version", path)


def test_a_damaged_storage(tmp_path):
    path = write_zip(tmp_path / "a.pth", state())
    content = path.read_bytes()
    start = content.index(BYTES)
    path.write_bytes(content[: start + 5] + b"\xff" + content[start + 6 :])
    refused("another CRC", path)


def test_a_file_that_shrinks(tmp_path):
    path = write_zip(tmp_path / "a.pth", state())
    tensors, _ = open_file(path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match="is truncated"):
        tensors["w"].read()
