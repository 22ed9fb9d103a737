"""`load`: published weights as a module with its variables, every key of the file accounted for."""

import contextlib
import dataclasses
import re
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn

from vitlab.config import coerce, nearest
from vitlab.errors import InputError
from vitlab.models.detr import DETR
from vitlab.models.vit import ViT
from vitlab.weights.files import Tensor, open_file
from vitlab.weights.filling import TABLE, LoadReport, fill, nested
from vitlab.weights.formats import Source, recognise
from vitlab.weights.hub import Found, find
from vitlab.weights.own import FORMAT, OwnFile, read_own
from vitlab.weights.table import Match, match

# Names of what is of use in a `.pth` that holds several things, in the order of preference: as timm
# has it, a moving average first.
PARTS = ("state_dict_ema", "model_ema", "model", "state_dict", "teacher", "model_state_dict")
# What stands before all names of a model that another one wraps: of torch.compile, of torch's
# parallelism, and of Lightning, whose modules call it so.
_WRAPPERS = ("_orig_mod.", "module.", "model.")


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Published weights, ready to be used: `module.apply(variables, images)`.

    Attributes:
        module: the model.
        variables: `params` and the model's other collections, numpy f32, as `module.init` has them.
        preprocessing: how its images are made, for `vitlab.data.preprocess.Preprocess.parse`.
        report: what became of every key.
        format: the name of the file's format.
        image_size: (height, width) in pixels that the position table is for.
        preprocessing_stated: whether a file says so, for images of this size, or the format has
            only one way; else it is what the format has most often.
        normalization_stated: the same of its mean and deviation alone, for images of any size.
        classes: names of the classes, where the file says; of DETR all but "no object", the last.
        licence: as the file or its card says; "" where neither does.
    """

    module: nn.Module
    variables: dict[str, Any]
    preprocessing: str
    report: LoadReport
    format: str
    image_size: tuple[int, int]
    preprocessing_stated: bool
    normalization_stated: bool
    classes: tuple[str, ...]
    licence: str


def load(name: str, /, **hints: Any) -> Loaded:
    """Loads published weights: a file, a folder with `model.safetensors`, or `hf:OWNER/NAME`; or a
    file of `vitlab export --format safetensors`.

    The format and the architecture are told from names, shapes, and a `config.json` beside the
    file. What these leave open (heads, epsilon, activation) is the format's own, or a hint. A file
    of vitlab says it all, and where its model is of a class of one's own, by import path, that
    module is imported.

        load("mae_pretrain_vit_base.pth")
        load("vit.safetensors", num_heads=3, image_size=(224, 448))
        load("siglip.npz:img")

    Args:
        name: safetensors, npz or a `.pth`, whatever its ending; behind a colon a part of an npz.
        **hints:
            format: one of `vitlab.weights.formats.FORMATS` by its name, or "vitlab".
            part: of a `.pth` that holds several things, such as "student"; else the first of
                `PARTS` that is there.
            grid: of the position table, a number or (rows, columns), where shapes do not tell.
            image_size: pixels, a number or (height, width), of its images: the position table is
                resized as its source would. Default: that of the table, or 224. What fills no
                whole patch is left out, as the sources do.
            num_classes: another number than the file's gives a new head of zeros; 0 none.
            any field of the module, or of its backbone, such as num_heads, norm_eps, mlp or pool.

    Returns:
        The module, its variables, its preprocessing and the report.

    Raises:
        InputError: there is no such file, it is damaged, it has a format that is not known, or a
            key that nothing accounts for.
    """
    return load_found(*find(str(name)), **hints)


def load_found(found: Found, part: str, /, **hints: Any) -> Loaded:
    """`load` of what `vitlab.weights.hub.find` gives."""
    size = _sides(hints.pop("image_size", None), "image_size")
    grid = _sides(hints.pop("grid", None), "grid")
    num_classes = coerce(hints.pop("num_classes", None), int | None, "hint num_classes")
    if (num_classes or 0) < 0:
        raise InputError(f"hint num_classes is {num_classes}: it cannot be negative")
    named = str(hints.pop("format", ""))
    own = read_own(found.weights[0]) if named in ("", FORMAT) else None
    if own:
        for hint in hints:
            raise InputError(f"{found.where} says all of its model: leave out the hint {hint}")
        with _understood(found.where):
            return _of_own(own, size, num_classes)
    if named == FORMAT:
        raise InputError(f"{found.where} is no file of vitlab export --format safetensors")
    with _understood(found.where):
        source = _opened(found, part, str(hints.pop("part", "")), grid, size)
        form, source = recognise(source, named)
        cls, fields = form.fields(source)
    stored = _module(found.where, cls, fields, hints)
    module = stored
    if num_classes is not None:
        if not hasattr(stored, "num_classes"):
            raise InputError(f"{found.where}: a {cls.__name__} has no num_classes")
        module = stored.clone(num_classes=num_classes or None)
    with _understood(source.where):
        matches = match(form.rules(stored), tuple(source.tensors))
        grid = _grid(source, matches)
        pixels = size or _size(source, stored, grid)
        backbone = getattr(module, "backbone", module)
        patch = backbone.patch_size if isinstance(backbone, ViT) else 1
        size = tuple(side // patch * patch for side in pixels)
        flat, report = fill(form, source, matches, grid, stored, module, size)
        preprocessing, stated = form.preprocess(source, tuple(pixels))
        if size != tuple(pixels) and preprocessing:
            steps, _, last = preprocessing.rpartition("|")
            preprocessing = f"{steps}|whole_patches({patch})|{last}"
        means = (
            source.preprocessor.get("image_mean"),
            source.config.get("pretrained_cfg", {}).get("mean"),
        )
        classes = _classes(source.config)
    for array in flat.values():
        array.flags.writeable = False
    return Loaded(
        module,
        nested(flat),
        preprocessing,
        report,
        form.name,
        size,
        stated,
        stated or any(means),
        classes if len(classes) == _number_of_classes(module) else (),
        source.licence,
    )


def _of_own(own: OwnFile, size: tuple[int, int] | None, num_classes: int | None) -> Loaded:
    module, told = own.module(), _sides(tuple(own.about["image_size"]) or 224, "image_size")
    classes = tuple(map(str, own.about["classes"]))
    number = getattr(module, "num_classes", None)
    other_head = num_classes not in (None, number)
    if other_head:
        if own.about["task"] != "classification":
            raise InputError(f"{own.where}: hint num_classes is for a classifier's")
        module = module.clone(num_classes=num_classes or None)
    flat, resized, new = own.filled(module, size or told, other_head)
    unused = dict.fromkeys((name for name in own.variables if name not in flat), "of other classes")
    used = tuple(name for name in flat if name not in new)
    return Loaded(
        module=module,
        variables=nested(flat),
        preprocessing=own.about["preprocess"],
        report=LoadReport(used, resized, unused, new),
        format=FORMAT,
        image_size=size or told,
        preprocessing_stated=size in (None, told),
        normalization_stated=True,
        classes=() if other_head else classes,
        licence="",
    )


@contextlib.contextmanager
def _understood(where: str) -> Iterator[None]:
    """Turns what comes of a config.json, or of shapes, that nobody would write into one line."""
    try:
        yield
    except InputError:
        raise
    except (
        ArithmeticError, AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError
    ) as e:  # fmt: skip
        said = " ".join(str(e).split())[:120]
        raise InputError(
            f"{where}: its json files or its shapes make no sense ({type(e).__name__}: {said})"
        ) from e


def _sides(value: Any, hint: str) -> tuple[int, int] | None:
    """Height and width, which one number may stand for."""
    value = coerce(value, int | tuple[int, int] | None, f"hint {hint}")
    value = (value, value) if isinstance(value, int) else value
    if value is not None and min(value) < 1:
        raise InputError(f"hint {hint} is {value}: it must be positive")
    return value


def _opened(
    found: Found,
    part: str,
    named: str,
    grid: tuple[int, int] | None,
    size: tuple[int, int] | None,
) -> Source:
    """What is in the files; of a nested one the part that is wanted."""
    tensors: dict[str, Any] = {}
    licence = found.licence
    for path in found.weights:
        more, said = open_file(path)
        tensors |= more
        licence = licence or said.get("license", "")
    nested = [key for key, value in tensors.items() if not isinstance(value, Tensor)]
    path = ""
    known = [key for key in PARTS if key in nested]
    if named or known or len(nested) == len(tensors):
        path = named or next(iter(known or nested), "")
        if path not in tensors or isinstance(tensors[path], Tensor):
            raise InputError(f"{found.where} has no part {path!r}: {', '.join(nested) or 'none'}")
        tensors = tensors[path]
    flat = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    if part:
        flat = {
            name.removeprefix("params/").removeprefix(f"{part}/"): value
            for name, value in flat.items()
            if name.removeprefix("params/").startswith(f"{part}/")
        }
        if not flat:
            raise InputError(f"{found.where} has no part {part!r}")
    origin = _unwrapped(flat)
    return Source(
        found.where,
        {short: flat[name] for short, name in origin.items()},
        origin,
        found.config,
        found.preprocessor,
        grid,
        size,
        path,
        found.config.get("pretrained_cfg", {}).get("license") or licence,
    )


def _unwrapped(names: Collection[str]) -> dict[str, str]:
    """The names without what stands before all of them, and the whole ones."""
    origin = {name: name for name in names}
    while origin:
        first = next(iter(origin))
        prefix = next((each for each in _WRAPPERS if first.startswith(each)), "")
        if not prefix or not all(name.startswith(prefix) for name in origin):
            return origin
        origin = {short.removeprefix(prefix): name for short, name in origin.items()}
    return origin


def _module(
    where: str, cls: type[nn.Module], fields: dict[str, Any], hints: dict[str, Any]
) -> nn.Module:
    """The model that the file tells of, and hints where it does not."""
    fields = dict(fields)
    inner, backbone = fields.pop("backbone", (None, {}))
    for of, section in ((cls, fields), (inner, backbone)):
        kinds = typing.get_type_hints(of) if of else {}
        for key, value in section.items():
            section[key] = value if value is None else coerce(value, kinds[key], f"{where}: {key}")
    legal = [*_fields(cls), *(_fields(inner) if inner else ())]
    for key, value in hints.items():
        if key not in legal:
            known = ["format", "part", "grid", "image_size", "num_classes", *legal]
            raise InputError(f"{where}: there is no hint {key!r}{nearest(key, known)}")
        section, of = (fields, cls) if key in _fields(cls) else (backbone, inner)
        section[key] = coerce(value, typing.get_type_hints(of)[key], f"{where}: hint {key}")
    for section in (fields, backbone):
        for key in ("num_heads", "decoder_heads"):
            if key in section and section[key] is None:
                raise InputError(f"{where} does not tell {key}: give {key}=..., a number of heads")
    try:
        if inner:
            fields["backbone"] = inner(**backbone)
        return cls(**fields)
    except InputError as e:
        raise InputError(f"{where}: {e}") from e


def _fields(cls: type[nn.Module]) -> list[str]:
    framework = ("parent", "name", "dtype", "axis_name", "backbone", "num_classes")
    return [field.name for field in dataclasses.fields(cls) if field.name not in framework]


def _grid(source: Source, matches: Sequence[Match]) -> tuple[int, int] | None:
    """Rows and columns of the position table; None where there is none."""
    for each in matches:
        if each.ours[-1].endswith(TABLE):
            rows = source.shape(each.theirs[0])[-2]
            return source.grid_of(rows - (len(each.ours) - 1))
    return None


def _size(source: Source, module: nn.Module, grid: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of the images that the file was made for."""
    backbone = getattr(module, "backbone", module)
    if grid is not None:
        patch = backbone.patch_size
        # The patch need not divide the images: what is left over was left out.
        told = (size for size in source.sizes() if tuple(side // patch for side in size) == grid)
        return next(told, (grid[0] * patch, grid[1] * patch))
    timms = source.config.get("pretrained_cfg", {}).get("input_size")
    size = timms[1:] if timms else source.config.get("image_size")
    size = size or source.preprocessor.get("crop_size") or source.preprocessor.get("size") or 224
    if isinstance(size, dict):
        size = size.get("height") or size.get("longest_edge") or size.get("shortest_edge") or 224
    return (size, size) if isinstance(size, int) else tuple(size)


def _number_of_classes(module: nn.Module) -> int:
    """Without DETR's "no object", which is its last."""
    return (getattr(module, "num_classes", None) or 0) - isinstance(module, DETR)


def _classes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of classes as transformers and timm write them; numbered ones are none."""
    named = config.get("id2label") or config.get("label_names") or config.get("labels") or ()
    if isinstance(named, Mapping):
        named = [named[key] for key in sorted(named, key=int)]
    if not isinstance(named, Sequence) or isinstance(named, str):
        return ()
    names = tuple(str(name) for name in named)
    return () if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names
