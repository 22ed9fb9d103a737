"""`vitlab convert`: weights from one format to another, or a look at what they are."""

import dataclasses
import math
from typing import Any

from vitlab import config as config_lib
from vitlab.commands.arguments import parse as parse_arguments
from vitlab.errors import InputError

USAGE = """\
usage: vitlab convert SOURCE DESTINATION --to FORMAT [--HINT VALUE ...]
       vitlab convert --inspect SOURCE [--HINT VALUE ...]

SOURCE is a safetensors, npz or .pth file, a folder with model.safetensors, hf:OWNER/NAME, part of
an npz (siglip.npz:img), or a working directory, of whose model the backbone is taken.

  --to timm         a folder for timm.create_model("local-dir:DESTINATION", pretrained=True)
  --to hf-vit       a folder for transformers' ViTForImageClassification.from_pretrained
  --to big_vision   an npz file

  --num_heads, --norm_eps, --mlp, --pool, --num_classes, --image_size, --grid, --part, --format
                    what a file does not tell: see vitlab.weights.load

  vitlab convert --inspect dinov2_vits14_pretrain.pth
  vitlab convert mae_pretrain_vit_base.pth mae_b16 --to timm
  vitlab convert runs/vit_s16 vit_s16.npz --to big_vision

What was written is read back and compared to the bit before it is called done."""

HINTS = (
    "num_heads", "norm_eps", "mlp", "pool", "num_classes", "image_size", "grid", "part", "format"
)  # fmt: skip


def run(arguments: list[str]) -> None:
    """Converts or inspects as the command line says.

    Raises:
        InputError: anything in it is wrong, or the weights are.
    """
    plain, options = parse_arguments(arguments, ("to", "inspect", *HINTS))
    hints = {key: config_lib.parse_value(options[key]) for key in HINTS if key in options}
    if "inspect" in options:
        if plain or "to" in options:
            raise InputError("vitlab convert --inspect takes a source and nothing else")
        print(card(_read(options["inspect"], hints), options["inspect"]))
        return
    if len(plain) != 2 or "to" not in options:
        raise InputError("vitlab convert needs a source, a destination and --to FORMAT")
    from vitlab.weights.saving import save

    if plain[1].startswith("hf:"):
        raise InputError(f"{plain[1]}: a destination is a file or a folder of this machine")
    loaded = _read(plain[0], hints)
    written = save(
        plain[1],
        loaded.module,
        loaded.variables,
        options["to"],
        loaded.image_size,
        loaded.preprocessing,
        loaded.classes,
    )
    print(f"{plain[0]}: {loaded.report}")
    print(f"{written.path} holds the same {_count(loaded.variables):,} numbers, read back")
    for note in written.notes:
        print(f"note: {note}")


def card(loaded: Any, name: str) -> str:
    """A model card of some lines."""
    from vitlab.weights.formats import FORMATS

    titles = {form.name: form.title for form in FORMATS}
    stated = "" if loaded.preprocessing_stated else ", which no file says"
    height, width = loaded.image_size
    classes = getattr(loaded.module, "num_classes", None)
    lines = {
        "weights": name,
        "format": f"{loaded.format}: {titles.get(loaded.format, 'a run of vitlab')}",
        "model": described(loaded.module),
        "parameters": f"{_count({'params': loaded.variables['params']}):,}",
        "images": f"{height} x {width}",
        "preprocessing": f"{loaded.preprocessing}{stated}",
        "classes": f"{classes:,}" if classes else "none",
        "licence": loaded.licence or "not stated in the file",
        "keys": str(loaded.report).replace("\n", f"\n{'':15}"),
    }
    return "\n".join(f"{key:<15}{value}" for key, value in lines.items())


def described(module: Any) -> str:
    """A module as a line of Python: its fields but for those that are as by default."""
    shown = []
    for field in dataclasses.fields(module):
        value = getattr(module, field.name)
        if field.name in ("parent", "name", "dtype", "axis_name") or value == field.default:
            continue
        text = described(value) if dataclasses.is_dataclass(value) else repr(value)
        shown.append(f"{field.name}={text}")
    return f"{type(module).__name__}({', '.join(shown)})"


def _read(name: str, hints: dict[str, Any]) -> Any:
    """Published weights, or the backbone of a run's model."""
    from vitlab.weights.hub import is_published
    from vitlab.weights.loading import load

    if is_published(name):
        return load(name, **hints)
    if hints:
        raise InputError(f"{name} is no file of weights: a run takes no --{next(iter(hints))}")
    return _of_run(name)


def _of_run(name: str) -> Any:
    from vitlab.data.preprocess import Preprocess
    from vitlab.training.trained import load_trained
    from vitlab.weights.filling import LoadReport, names_of
    from vitlab.weights.loading import Loaded

    trained = load_trained(name)
    module, variables = trained.task.model, trained.ema or trained.variables
    if hasattr(module, "backbone"):
        module = module.backbone
        variables = {key: tree["backbone"] for key, tree in variables.items() if "backbone" in tree}
    evaluators = trained.experiment.evaluators.values()
    preprocess = next((e.preprocess for e in evaluators), trained.experiment.data.preprocess)
    size = _size_after(Preprocess.parse(preprocess))
    table = names_of(variables).get("position_embedding/table")
    if table is not None:
        size = tuple(side * module.patch_size for side in table.shape[:2])
    if size is None:
        raise InputError(f"{name}: {preprocess} does not tell the size of its images")
    report = LoadReport(tuple(names_of(variables)), (), {}, ())
    classes = trained.classes if getattr(module, "num_classes", None) else ()
    return Loaded(module, variables, preprocess, report, "run", size, True, classes, "")


def _size_after(preprocess: Any) -> tuple[int, int] | None:
    """(height, width) that a preprocessing string ends with, if it says so."""
    size = None
    for op in preprocess.ops:
        wanted = dict(op.arguments).get("size")
        if wanted is not None and op.name != "resize_small":
            size = (wanted, wanted) if isinstance(wanted, int) else tuple(wanted)
    return size


def _count(variables: dict[str, Any]) -> int:
    import jax

    return sum(math.prod(x.shape) for x in jax.tree.leaves(variables))
