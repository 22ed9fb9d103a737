"""`vitlab export`: a run, or published weights, as a file that needs no vitlab; that of a run is
measured again through the file."""

import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vitlab.commands.arguments import Argument, Given, Option, Verb
from vitlab.commands.terminal import Output
from vitlab.errors import InputError
from vitlab.training.exit_codes import failed

_TOLERANCE = 0.1

VERB = Verb(
    "export",
    ("MODEL --format FORMAT [--out FILE] [--OPTION VALUE ...]",),
    "Writes a run, or published weights, as one file for other programs, with all around the "
    "network: uint8 images [batch, height, width, channels] of any batch and size go in; "
    "probabilities, boxes in pixels or labels of pixels come out. A run's metrics are computed "
    "again through the file.",
    (
        Argument(
            "MODEL",
            "a working directory, one of its checkpoints/STEP; or, with --unchecked and --out, an "
            "exported .safetensors file or published weights as vitlab predict takes them",
            path="file",
        ),
    ),
    (
        Option(
            "format",
            "FORMAT",
            "what the file is",
            {
                "onnx": "for ONNX Runtime and all that reads ONNX; needs the onnx extra",
                "stablehlo": "for jax.export.deserialize, on a CPU, GPU or TPU",
                "tflite": "for phones: one image of the size that the model sees; needs the "
                "tflite extra",
                "safetensors": "parameters and what is known of them, for vitlab.load, vitlab "
                "predict and vitlab convert, and for config.init_from",
            },
            required=True,
        ),
        Option("out", "FILE", "default MODEL/export/model.FORMAT", path="file"),
        Option(
            "dtype",
            "DTYPE",
            "of parameters and computation",
            dict.fromkeys(("float32", "bfloat16", "float16"), ""),
            default="float32",
        ),
        Option("data", "SOURCE", "what it is measured on; default the evaluator's", path="file"),
        Option("split", "SPLIT", "of that; default the evaluator's"),
        Option(
            "tolerance",
            "POINTS",
            f"by how much the main metric may differ, in hundredths; default {_TOLERANCE}",
            number=float,
        ),
        Option("unchecked", "", "does not measure, where there are no data"),
    ),
    (
        "vitlab export runs/flowers --format onnx",
        "vitlab export runs/detector --format stablehlo --split 'val[:500]'",
        "vitlab export runs/flowers --format safetensors --unchecked --out flowers.safetensors",
        "vitlab export hf:facebook/detr-resnet-50 --format onnx --unchecked --out detr.onnx",
    ),
    "FILE, and FILE.json, which says what goes in and comes out and what was measured, and which "
    "--json shows; neither where the main metric differs.",
    "the main metric differs",
)
_CALLS = 20  # By which latency is measured.


def run(given: Given, output: Output) -> int:
    """Exports as the command line says.

    Returns:
        The exit code: 1 where the metrics differ.

    Raises:
        InputError: anything in it is wrong, or the format cannot hold the model.
    """
    (path,), options = given.plain, given.options
    to, dtype = options["format"], options["dtype"]
    tolerance = options.get("tolerance", _TOLERANCE)
    for name in ("data", "split", "tolerance"):
        if "unchecked" in options and name in options:
            raise InputError(f"--unchecked measures nothing: leave it out, or --{name}")

    import vitlab
    from vitlab.deploy.export import check_arguments, export
    from vitlab.deploy.predictor import Predictor
    from vitlab.weights.hub import is_published

    check_arguments(to, dtype)
    if is_published(path) and not options.keys() >= {"unchecked", "out"}:
        raise InputError(
            f"{path} is no run, whose evaluator a file is measured by: add --unchecked, and --out "
            f"FILE, such as --out model.{to}"
        )
    model = vitlab.load_model(path)
    if model.note:
        output.note(model.note)
    model.channels()  # refuses what predicts nothing, before anything is written
    workdir = pathlib.Path(path).expanduser()
    out = pathlib.Path(options.get("out", workdir / "export" / f"model.{to}")).expanduser()
    if out.is_dir():
        raise InputError(f"--out {out} is a folder: name a file, such as {out}/model.{to}")
    measured = None if "unchecked" in options else _measured(path, options)
    size = model.image_size or (measured and measured.evaluator.split.first["image"].shape[1:3])
    if not size:
        raise InputError(
            f"{path} does not tell the size of its images: leave out --unchecked, and give --data "
            "where the run's are gone"
        )
    unfinished = out.with_name(f".unfinished-{out.name}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror or error}") from error
    try:
        function = export(model, str(unfinished), to, dtype, tuple(size))
        about: dict[str, Any] = {**model.about(), "dtype": dtype, **function.about}
        differs = False
        if measured is not None:
            predictor = Predictor(model)
            metrics = about["metrics"] = _compare(measured, predictor, function)
            main = about["main_metric"] = (
                measured.main if measured.main in metrics else next(iter(metrics))
            )
            before, after = metrics[main]["run"], metrics[main]["file"]
            # Of data without an object both are NaN.
            points = 0.0 if math.isnan(before) else 100 * abs(before - after)
            points = 100.0 if math.isnan(points) else points
            differs = points > tolerance
            about["latency_ms"] = _latency(measured.evaluator, predictor, function)
        if differs:
            output.document({"path": None, **about})
            return failed(
                f"not written: {main} would differ by {points:.2f} points, more than {tolerance} "
                f"(--tolerance {math.ceil(10 * points) / 10} allows it; more images tell more)",
                1,
            )
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
    out.with_name(f"{out.name}.json").write_text(json.dumps(about, indent=1) + "\n")
    output.document({"path": str(out), **about})
    output.text(f"{out}, {out.stat().st_size / 2**20:.1f} MiB; {out}.json says what is in it")
    return 0


class _Measured(NamedTuple):
    """What a file is measured by: an evaluator, the run's variables, and the metric that counts."""

    evaluator: Any
    variables: Any
    main: str


def _measured(path: str, options: dict[str, Any]) -> _Measured:
    """The run's evaluator, on other data where the command line says so."""
    from vitlab.training.evaluator import make_evaluator
    from vitlab.training.trained import load_trained

    trained = load_trained(path)
    section = trained.evaluator()
    names = {"data": "source", "split": "split"}
    changes = {field: options[name] for name, field in names.items() if name in options}
    section = dataclasses.replace(section, **changes)
    experiment = trained.experiment
    evaluator = make_evaluator(
        "exported",
        section,
        experiment.data,
        experiment.batch_size,
        trained.classes,
        trained.task,
        trained.mesh,
    )
    # By which the run chose its best checkpoint; else the task's first.
    main = experiment.checkpoint.best.rpartition("/")[2]
    return _Measured(evaluator, trained.chosen(section.params), main)


def _compare(measured: _Measured, predictor, function: Callable) -> dict[str, dict[str, float]]:
    """Metrics before and after, a line for each."""
    evaluator = measured.evaluator
    before, _ = evaluator.run(measured.variables, print)
    after = evaluator.run_through(lambda image: function(predictor.pixels(image)[None]))
    metrics = {}
    print(f"{len(evaluator.split):,} images of {evaluator.config.split}: the run, the file")
    for name, value in before.items():
        name, now = name.partition("/")[2], after[name]
        print(f"  {name:24}{value:8.4f}{now:8.4f}")
        metrics[name] = {"run": value, "file": now}
    return metrics


def _latency(evaluator, predictor, function: Callable) -> dict[str, float]:
    """Milliseconds for one image from pixels to outputs, of the run and of the file in turn."""
    image = predictor.pixels(evaluator.split.source[int(evaluator.split.first["id"][0])]["image"])
    calls = {
        "run": lambda: predictor.outputs([image]),
        "file": lambda: function(image[None]),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(_CALLS):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - began))
    found = {name: float(np.median(each)) for name, each in times.items()}
    height, width = image.shape[:2]
    print(
        f"one image of {width} x {height}: the run {found['run']:.1f} ms, "
        f"the file {found['file']:.1f} ms (median of {_CALLS})"
    )
    return found
