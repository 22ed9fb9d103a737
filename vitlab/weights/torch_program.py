"""What a pickle program of PyTorch describes, without pickle and without PyTorch.

Pickle's own interpreter would import and call whatever such a program names. The one here cannot:
`pickletools.genops` splits the program into instructions, as a disassembler does, and `run` carries
out those that put together dicts, lists, tuples, strings and numbers. A name of a Python object
stays a string: that of one of `_TENSORS` makes a note of a tensor's shape and place, that of one of
`_INERT` (a run's arguments, NumPy's scalars) makes nothing, and any other ends the reading before
anything is made of it.

The functions named are those of https://github.com/pytorch/pytorch/blob/main/torch/_utils.py; the
instructions are documented in Python's pickletools.
"""

import dataclasses
import math
import pathlib
import pickletools
import re
from typing import Any, BinaryIO

from vitlab.errors import InputError
from vitlab.weights.files import damage_of, numpy_dtype, shown

# A training checkpoint of a thousand tensors is a tenth of a megabyte and 100,000 instructions.
MOST_BYTES, _MOST_INSTRUCTIONS = 2**28, 2_000_000
_MOST_DIMENSIONS = 64  # of an array of numpy


@dataclasses.dataclass
class Storage:
    """One run of numbers; tensors are views of it.

    Attributes:
        key: its name in the file.
        dtype: of its elements.
        count: the number of its elements, claimed.
        start: its first byte's place in the file; None until that many bytes are known to be there.
        checksum: the CRC-32 of its bytes, where the file has one.
    """

    key: str
    dtype: str
    count: int
    start: int | None = None
    checksum: int | None = None

    @property
    def size(self) -> int:
        """In bytes."""
        return self.count * numpy_dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class View:
    """A tensor of a file: `offset` and `strides` are in elements, `extent` is what they span."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    extent: int


@dataclasses.dataclass(frozen=True)
class _Name:
    """The name of a Python object, such as `collections.OrderedDict`: no more than a string."""

    name: str


class _Nothing:
    """Stands for every object that is no tensor. Whatever is put into it is gone."""


_NOTHING = _Nothing()


class Bounded:
    """The start of a file, of which no more is allocated than there is, whatever is asked for."""

    def __init__(self, file: BinaryIO, most: int):
        self._file, self._left = file, most

    def read(self, count: int) -> bytes:
        return self._take(self._file.read(max(0, min(count, self._left))))

    def readline(self) -> bytes:
        return self._take(self._file.readline(self._left))

    def _take(self, read: bytes) -> bytes:
        self._left -= len(read)
        return read


_STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
    "torch.ComplexFloatStorage": "complex64",
    "torch.ComplexDoubleStorage": "complex128",
}
_DICTS = {"collections.OrderedDict", "collections.defaultdict"}
_TENSORS = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
_PARAMETERS = {
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
}
# What training checkpoints hold beside tensors. Nothing is made of these names: they are listed
# only so that any other, which weights have no use for, is reported.
_INERT = re.compile(
    r"(__builtin__|builtins)\.(set|frozenset|list|tuple|dict|str|unicode|bytes|bytearray|int|long"
    r"|float|bool|complex|object|slice|range|xrange)"
    r"|collections\.(Counter|deque)|argparse\.Namespace|pathlib(\._local)?\.\w*Path"
    r"|_codecs\.encode|numpy\.(dtype|ndarray|_?core\.multiarray\.(_reconstruct|scalar))"
    r"|torch\.(Size|Tensor|device|bool|b?float\w+|u?int\d+|complex\d+)"
    r"|yacs\.config\.CfgNode"
)
_OTHER_TENSORS = re.compile(r"torch\._\w+\._rebuild_\w+|torch\.(storage\.)?\w+Storage")


def _name(path: pathlib.Path, name: str) -> _Name:
    """A name that the program mentions, if it is one of those that are understood."""
    known = name in {*_STORAGES, *_DICTS, *_TENSORS, *_PARAMETERS} or _INERT.fullmatch(name)
    if known:
        return _Name(name)
    if _OTHER_TENSORS.fullmatch(name):
        raise InputError(
            f"{path} holds a {shown(name)}: only dense tensors of plain dtypes are read, not "
            "quantised, sparse or float8 ones or subclasses"
        )
    raise InputError(
        f"{path} holds a {shown(name)}, which is no tensor: refused, and nothing of it was run. "
        "A file of the state_dict() alone is read"
    )


_ARGUMENT = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BYTEARRAY8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_CONSTANT = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": lambda: _NOTHING,
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def run(path: pathlib.Path, program: BinaryIO | Bounded, storages: dict[str, Storage]) -> Any:
    """What a pickle program describes, up to its STOP; adds the storages that it names.

    It is made of dict, list, tuple, str, bytes, int, float, bool, None, View and _Nothing.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop_to_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    with damage_of(path):
        for number, (instruction, argument, _) in enumerate(pickletools.genops(program)):
            if number == _MOST_INSTRUCTIONS:
                raise InputError(f"{path} is a pickle of over {number} instructions: refused")
            code = instruction.name
            if code in _ARGUMENT:
                stack.append(argument)
            elif code in _CONSTANT:
                stack.append(_CONSTANT[code]())
            elif code in ("PUT", "BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif code == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif code in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif code == "MARK":
                marks.append(len(stack))
            elif code in _TUPLES:
                start = len(stack) - _TUPLES[code]
                stack[start:] = [tuple(stack[start:])]
            elif code == "TUPLE":
                stack.append(tuple(pop_to_mark()))
            elif code == "LIST":
                stack.append(pop_to_mark())
            elif code == "DICT":
                items = pop_to_mark()
                stack.append({})
                _set(stack[-1], items)
            elif code == "FROZENSET":
                pop_to_mark()
                stack.append(_NOTHING)
            elif code in ("APPEND", "APPENDS", "ADDITEMS"):
                items = [stack.pop()] if code == "APPEND" else pop_to_mark()
                _append(stack[-1], items)
            elif code in ("SETITEM", "SETITEMS"):
                items = [stack.pop(-2), stack.pop()] if code == "SETITEM" else pop_to_mark()
                _set(stack[-1], items)
            elif code == "GLOBAL":
                stack.append(_name(path, argument.replace(" ", ".", 1)))
            elif code == "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_name(path, ".".join((module, name))))
            elif code in ("REDUCE", "NEWOBJ"):
                arguments, name = stack.pop(), stack.pop()
                stack.append(_make(path, name, arguments))
            elif code == "NEWOBJ_EX":
                del stack[-3:]
                stack.append(_NOTHING)
            elif code == "BUILD":
                # An object's attributes, such as a state dict's _metadata: no tensors.
                stack.pop()
            elif code == "BINPERSID":
                stack.append(_storage(path, stack.pop(), storages))
            elif code == "POP":
                stack.pop()
            elif code == "POP_MARK":
                pop_to_mark()
            elif code == "DUP":
                stack.append(stack[-1])
            elif code not in ("PROTO", "FRAME", "STOP"):
                raise InputError(
                    f"{path} is a pickle with the instruction {code}, which tensors have no use "
                    "for: refused, and nothing of it was run"
                )
        # genops ends with a STOP, or raises.
        return stack.pop()


def _append(target: Any, items: list[Any]) -> None:
    if target is not _NOTHING:
        if type(target) is not list:
            raise ValueError("its pickle appends to what is no list")
        target.extend(items)


def _set(target: Any, items: list[Any]) -> None:
    """Sets keys and values in turn, and leaves out any key that names nothing.

    Only strings are hashed: a tuple of tuples could be made to take forever.
    """
    if target is not _NOTHING:
        if type(target) is not dict or len(items) % 2:
            raise ValueError("its pickle sets items of what is no dict")
        target.update(
            (key, value)
            for key, value in zip(items[::2], items[1::2], strict=True)
            if isinstance(key, str)
        )


def _make(path: pathlib.Path, name: Any, arguments: Any) -> Any:
    """What the object of a name would give for the arguments."""
    if not isinstance(name, _Name) or not isinstance(arguments, tuple):
        raise ValueError("its pickle calls what is no name")
    if name.name in _TENSORS:
        return _view(path, *arguments)
    if name.name in _PARAMETERS:
        return arguments[0]
    if name.name in _DICTS:
        made: dict[str, Any] = {}
        # Python 2 gives an OrderedDict its items at once, in a list for this alone, which is used
        # up here: a program of a few bytes cannot have the same long list copied again and again.
        if name.name == "collections.OrderedDict" and arguments:
            pairs, arguments[0][:] = list(arguments[0]), []
            _set(made, [part for key, value in pairs for part in (key, value)])
        return made
    return _NOTHING


def _storage(path: pathlib.Path, identity: Any, storages: dict[str, Storage]) -> Storage:
    """The storage of `("storage", type, key, device, count)` and, in old files, a view of it."""
    kind, name, key, _, count, *view = identity
    if kind != "storage" or not isinstance(key, str) or not _whole(count):
        raise ValueError("its pickle names a storage in an unknown way")
    if not isinstance(name, _Name) or name.name not in _STORAGES:
        raise ValueError("its pickle names a storage of no known type")
    if view not in ([], [None]):
        raise InputError(f"{path} has views of storages, as PyTorch 0.3 wrote: save it anew")
    storage = storages.setdefault(key, Storage(key, _STORAGES[name.name], count))
    if (storage.dtype, storage.count) != (_STORAGES[name.name], count):
        raise ValueError(f"the storage {key} is two things")
    return storage


def _view(
    path: pathlib.Path,
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> View:
    """A tensor, once all that it claims is known to lie within its storage."""
    if not isinstance(storage, Storage) or metadata:
        raise ValueError("it holds a tensor of an unknown kind")
    if not len(shape) == len(strides) <= _MOST_DIMENSIONS or not all(
        map(_whole, (offset, *shape, *strides))
    ):
        raise InputError(
            f"{path} is damaged: the shape, strides or offset of a tensor in it cannot be"
        )
    extent = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    extent = extent if math.prod(shape) else 0
    # The second, since strides of zero would make any number of elements out of one.
    if offset + extent > storage.count or math.prod(shape) > storage.count:
        raise InputError(
            f"{path} is damaged: a tensor of shape {shown(shape)}, strides {shown(strides)} and "
            f"offset {shown(offset)} claims more than the {storage.count} elements of its storage"
        )
    return View(storage, offset, tuple(shape), tuple(strides), extent)


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63
