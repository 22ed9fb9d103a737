"""`vitlab export`: a run as a file that needs no vitlab, measured again through the file."""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from vitlab import config as config_lib
from vitlab.commands.arguments import parse
from vitlab.errors import InputError

USAGE = """\
usage: vitlab export WORKDIR --format FORMAT [--out FILE] [--OPTION VALUE ...]

  --format onnx         for ONNX Runtime and all that reads ONNX; needs the onnx extra
  --format stablehlo    for jax.export.deserialize, on a CPU, GPU or TPU
  --format safetensors  parameters and what is known of them, for vitlab.load and vitlab predict
  --out FILE            default WORKDIR/export/model.FORMAT; FILE.json beside it says what goes in
                        and comes out, and what was measured
  --dtype               float32 (the default), float16, bfloat16: of parameters and computation
  --data, --split       what it is measured on, instead of the run's evaluator's
  --tolerance POINTS    by how much a metric may differ, in hundredths; default 0.1
  --check no            does not measure, where there are no data

onnx and stablehlo take uint8 images [batch, height, width, channels], of any batch and size, and
give probabilities, boxes in pixels, or labels of pixels: the preprocessing and all that follows the
network is in the file. The metrics are then computed through the file and printed beside the run's;
where they differ nothing is written and the exit code is 1.

  vitlab export runs/flowers --format onnx
  vitlab export runs/detector --format stablehlo --split 'val[:500]'"""

OPTIONS = ("format", "out", "dtype", "data", "split", "tolerance", "check")
_CALLS = 20  # By which latency is measured.


def run(arguments: list[str]) -> int:
    """Exports as the command line says.

    Returns:
        The exit code: 1 where the metrics differ.

    Raises:
        InputError: anything in it is wrong, or the format cannot hold the model.
    """
    plain, given = parse(arguments, OPTIONS)
    if len(plain) != 1 or "format" not in given:
        raise InputError("vitlab export needs a working directory and --format FORMAT")
    if given.get("check", "no") != "no":
        raise InputError(f"argument --check is {given['check']!r} but must be no")
    tolerance = config_lib.parse_value(given.get("tolerance", "0.1"))
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or tolerance < 0:
        raise InputError(f"argument --tolerance is {given['tolerance']!r} but must be a number")

    import vitlab
    from vitlab.deploy.export import check_arguments, export
    from vitlab.deploy.predictor import Predictor

    dtype = given.get("dtype", "float32")
    check_arguments(given["format"], dtype)
    model = vitlab.load_model(plain[0])
    workdir = pathlib.Path(plain[0]).expanduser()
    out = pathlib.Path(given.get("out", workdir / "export" / f"model.{given['format']}"))
    out = out.expanduser()
    evaluator = None if "check" in given else _evaluator(plain[0], given)
    size = model.image_size or (evaluator and evaluator.split.first["image"].shape[1:3])
    if not size:
        raise InputError(f"{plain[0]} does not tell the size of its images: measure it on some")
    unfinished = out.with_name(f".unfinished-{out.name}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror or error}") from error
    try:
        function = export(model, str(unfinished), given["format"], dtype, tuple(size))
        about: dict[str, Any] = {**model.about(), "dtype": dtype, **function.about}
        wrong: list[str] = []
        if evaluator is not None:
            predictor = Predictor(model)
            about["metrics"], wrong = _compare(evaluator, predictor, function, tolerance)
            about["latency_ms"] = _latency(evaluator, predictor, function)
        if wrong:
            print(
                f"not written: {', '.join(wrong)} would differ by more than {tolerance} points "
                "(--tolerance allows more)"
            )
            return 1
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
    out.with_name(f"{out.name}.json").write_text(json.dumps(about, indent=1) + "\n")
    print(f"{out}, {out.stat().st_size / 2**20:.1f} MiB; {out}.json says what is in it")
    return 0


def _evaluator(path: str, given: dict[str, str]) -> Any:
    """The run's evaluator, on other data where the command line says so."""
    from vitlab.training.evaluator import make_evaluator
    from vitlab.training.trained import load_trained

    trained = load_trained(path)
    section = trained.evaluator()
    changes = {"source" if k == "data" else k: given[k] for k in ("data", "split") if k in given}
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
    variables = trained.chosen(section.params)
    evaluator.original = lambda: evaluator.run(variables, print)[0]
    return evaluator


def _compare(evaluator, predictor, function: Callable, tolerance: float):
    """Metrics before and after, a line for each; and the names of those that differ too much."""
    before = evaluator.original()
    after = evaluator.run_through(lambda image: function(predictor.pixels(image)[None]))
    metrics, wrong = {}, []
    print(f"{len(evaluator.split):,} images of {evaluator.config.split}: the run, the file")
    for name, value in before.items():
        name, now = name.partition("/")[2], after[name]
        print(f"  {name:24}{value:8.4f}{now:8.4f}")
        metrics[name] = {"run": value, "file": now}
        # A metric of two NaN, as of sizes without an object, is the same.
        if name != "nll" and not abs(value - now) * 100 <= tolerance and value == value:
            wrong.append(name)
    return metrics, wrong


def _latency(evaluator, predictor, function: Callable) -> dict[str, float]:
    """Milliseconds for one image from pixels to outputs, of the run and of the file in turn."""
    image = predictor.pixels(evaluator.split.source[0]["image"])
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
