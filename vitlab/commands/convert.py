"""`vitlab convert`: weights from one format to another, or a look at what they are."""

import dataclasses
import math
from typing import Any

from vitlab import config as config_lib
from vitlab.commands.arguments import Argument, Given, Option, Verb
from vitlab.commands.terminal import Output
from vitlab.errors import InputError

VERB = Verb(
    "convert",
    ("SOURCE DESTINATION --to FORMAT [--HINT VALUE ...]", "--inspect SOURCE [--HINT VALUE ...]"),
    "Writes published weights, or those of a run, as another library has them; or says what they "
    "are. What was written is read back and compared to the bit before it is called done.",
    (
        Argument(
            "SOURCE",
            "a safetensors, npz or .pth file, a folder with model.safetensors, hf:OWNER/NAME, "
            "part of an npz (siglip.npz:img), or a working directory or a file of vitlab export "
            "--format safetensors, of whose model the backbone is taken",
            path="file",
            optional=True,
        ),
        Argument("DESTINATION", "a new file or folder", path="file", optional=True),
    ),
    (
        Option(
            "to",
            "FORMAT",
            "what is written",
            {
                "timm": 'a folder for timm.create_model("local-dir:DESTINATION", pretrained=True)',
                "hf-vit": "a folder for transformers' ViTForImageClassification.from_pretrained",
                "big_vision": "an npz file",
            },
        ),
        Option("inspect", "SOURCE", "says what it is, and writes nothing", path="file"),
        Option("num_heads", "COUNT", "this and the rest: what a file does not tell"),
        Option("norm_eps", "NUMBER", "of its layer norms, such as 1e-6"),
        Option("mlp", "KIND", "such as gelu or swiglu"),
        Option("pool", "KIND", "such as token, gap or map"),
        Option("num_classes", "COUNT", "of its head; 0 leaves it away"),
        Option("image_size", "SIZE", "to resize positions to: 224, or (224,160)"),
        Option("grid", "SIZE", "of its patches: 14, or (14,10)"),
        Option("part", "NAME", "of a .pth that holds several things, such as student"),
        Option("format", "NAME", "of the file, where names and shapes leave it open"),
    ),
    (
        "vitlab convert --inspect dinov2_vits14_pretrain.pth",
        "vitlab convert mae_pretrain_vit_base.pth mae_b16 --to timm",
        "vitlab convert runs/vit_s16 vit_s16.npz --to big_vision",
    ),
    "DESTINATION.",
)


def run(given: Given, output: Output) -> None:
    """Converts or inspects as the command line says.

    Raises:
        InputError: anything in it is wrong, or the weights are.
    """
    plain, options = given.plain, given.options
    hints = {
        key: config_lib.parse_value(value)
        for key, value in options.items()
        if key not in ("to", "inspect")
    }
    if "inspect" in options:
        if plain or "to" in options:
            raise InputError(
                "vitlab convert --inspect takes a source and nothing else, such as vitlab convert "
                f"--inspect {options['inspect']}"
            )
        loaded = _read(options["inspect"], hints)
        output.document(card(loaded, options["inspect"]))
        output.text(card_text(loaded, options["inspect"]))
        return
    if len(plain) != 2 or "to" not in options:
        raise InputError(
            "vitlab convert needs a source, a destination and --to FORMAT, such as "
            f"{VERB.examples[1]}"
        )
    from vitlab.weights.saving import save

    if plain[1].startswith("hf:"):
        raise InputError(
            f"{plain[1]}: a destination is a file or a folder of this machine, such as vit"
        )
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
    numbers = _count(loaded.variables)
    output.text(f"{written.path} holds the same {numbers:,} numbers, read back")
    output.document(
        {
            "path": str(written.path),
            "format": options["to"],
            "numbers": numbers,
            "keys": str(loaded.report),
            "notes": written.notes,
        }
    )
    for note in written.notes:
        print(f"note: {note}")


def card(loaded: Any, name: str) -> dict[str, Any]:
    """What weights are, for a program."""
    return {
        "weights": name,
        "format": loaded.format,
        "model": described(loaded.module),
        "parameters": _count({"params": loaded.variables["params"]}),
        "image_size": loaded.image_size,
        "preprocessing": loaded.preprocessing,
        "preprocessing_stated": loaded.preprocessing_stated,
        "classes": getattr(loaded.module, "num_classes", None) or 0,
        "licence": loaded.licence,
        "keys": str(loaded.report),
    }


def card_text(loaded: Any, name: str) -> str:
    """The same for a person, in some lines."""
    from vitlab.weights.formats import FORMATS

    known = card(loaded, name)
    titles = {form.name: form.title for form in FORMATS}
    titles["vitlab"] = "a model that vitlab export wrote"
    preprocessing = known["preprocessing"] or "not known"
    if known["preprocessing"] and not known["preprocessing_stated"]:
        preprocessing += ", which no file says"
    height, width = known["image_size"]
    lines = {
        "weights": name,
        "format": f"{known['format']}: {titles.get(known['format'], 'a run of vitlab')}",
        "model": known["model"],
        "parameters": f"{known['parameters']:,}",
        "images": f"{height} x {width}",
        "preprocessing": preprocessing,
        "classes": f"{known['classes']:,}" if known["classes"] else "none",
        "licence": known["licence"] or "not stated in the file",
        "keys": known["keys"].replace("\n", f"\n{'':15}"),
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
    """Published weights, or the backbone of a run's model, or of an exported one."""
    from vitlab import checkpoints
    from vitlab.weights.hub import is_published
    from vitlab.weights.loading import load

    if is_published(name):
        loaded = load(name, **hints)
        return _backbone_of(loaded) if loaded.format == "vitlab" else loaded
    checkpoints.locate(name)
    if hints:
        raise InputError(f"{name} is a run, which takes no --{next(iter(hints))}")
    return _of_run(name)


def _of_run(name: str) -> Any:
    from vitlab.data.preprocess import Preprocess
    from vitlab.training.trained import load_trained
    from vitlab.weights.filling import LoadReport, names_of
    from vitlab.weights.loading import Loaded

    trained = load_trained(name)
    module, variables = _inner(trained.task.model, trained.ema or trained.variables)
    # That of training cuts and distorts at random.
    evaluators = trained.experiment.evaluators.values()
    preprocess = next((e.preprocess for e in evaluators), "")
    parsed = preprocess and Preprocess.parse(preprocess)
    size = trained.image_size or (parsed and _size_after(parsed))
    table = names_of(variables).get("position_embedding/table")
    if table is not None:
        size = tuple(side * module.patch_size for side in table.shape[:2])
    if not size:
        raise InputError(f"{name}: {preprocess or 'the run'} does not tell the size of its images")
    if parsed and (parsed.boxes or parsed.segments):
        preprocess = ""  # of the whole model; no library has its like for a backbone
    report = LoadReport(tuple(names_of(variables)), (), {}, ())
    classes = trained.classes if getattr(module, "num_classes", None) else ()
    stated = bool(preprocess)
    return Loaded(module, variables, preprocess, report, "run", size, stated, stated, classes, "")


def _backbone_of(loaded: Any) -> Any:
    """Of a model around a backbone the backbone, without the preprocessing of the whole."""
    from vitlab.weights.filling import LoadReport, names_of

    module, variables = _inner(loaded.module, loaded.variables)
    if module is loaded.module:
        return loaded
    report = LoadReport(tuple(names_of(variables)), (), {}, ())
    return dataclasses.replace(
        loaded, module=module, variables=variables, preprocessing="", report=report, classes=()
    )


def _inner(module: Any, variables: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The backbone of a module that has one."""
    if not hasattr(module, "backbone"):
        return module, variables
    inner = {key: tree["backbone"] for key, tree in variables.items() if "backbone" in tree}
    return module.backbone, inner


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
