"""A run measured again: its metrics, pictures, `result.json` and a page to read."""

import dataclasses
import datetime
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import flax.errors
import jax

from vitlab import config as config_lib
from vitlab.errors import InputError
from vitlab.evaluation.html_report import Report, Section, html_report
from vitlab.own_files import OwnFiles
from vitlab.training.evaluator import Evaluator, FeatureEvaluator, make_evaluator
from vitlab.training.experiment import EvaluatorConfig
from vitlab.training.progress import clock
from vitlab.training.report import versions
from vitlab.training.trained import Trained


def measure(
    trained: Trained,
    sections: Mapping[str, EvaluatorConfig],
    out: pathlib.Path,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Runs evaluators on a run, and writes what they find into a folder: `result.json`,
    `report/NAME/` with the pictures of each evaluator, and `report/index.html`, one file with all
    of it.

    Nothing is put there before all have run, so that an evaluation that fails leaves an earlier
    one whole.

    Args:
        trained: the run, or published weights.
        sections: of its config, or others, by the evaluator's name.
        out: the folder.
        log: told what is evaluated and of broken images.

    Returns:
        What `result.json` holds: `metrics` (`NAME/METRIC`), `step` (of published weights null),
        `evaluators` with what their defaults stood for, `images` counted and those that were
        `broken` of each, `seconds`, `date`, `precision`, `versions` and `devices`. The next
        evaluation into the folder deletes what this one wrote, and leaves all others alone.

    Raises:
        InputError: see `make_evaluator`; or the folder cannot be written, is one of a run, or holds
            a file of one of the names that no evaluation wrote.
    """
    began = time.monotonic()
    sections = {name: _resolved(section, trained) for name, section in sections.items()}
    evaluators = {name: _evaluator(name, each, trained) for name, each in sections.items()}
    metrics: dict[str, dict[str, float]] = {}
    own = OwnFiles(out, "evaluate")
    with _room(out, own) as drawn:
        for name, evaluator in evaluators.items():
            config = evaluator.config
            log(f"{name}: {config.source}, split {config.split}, {len(evaluator.split):,} images")
            variables = trained.ema if config.params == "ema" else trained.variables
            measured, outputs = evaluator.run(variables, log)
            metrics[name] = measured
            (drawn / name).mkdir()
            evaluator.draw(outputs, drawn / name)
        devices = list(trained.mesh.devices.flat)
        result = {
            "metrics": {key: value for each in metrics.values() for key, value in each.items()},
            "step": trained.step,
            "evaluators": {name: config_lib.as_dict(each) for name, each in sections.items()},
            "images": {name: each.split.counted for name, each in evaluators.items()},
            "broken": {name: each.split.broken for name, each in evaluators.items()},
            "seconds": round(time.monotonic() - began, 2),
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "precision": trained.experiment.dtype(),
            "versions": versions(),
            "devices": {"count": len(devices), "kind": devices[0].device_kind},
        }
        text = json.dumps(result, indent=1) + "\n"
        parts = [_section(each, metrics[name], drawn / name) for name, each in evaluators.items()]
        page = html_report(_report(trained, result, parts, text))
        (drawn / "index.html").write_text(page, encoding="utf-8")
        (drawn / "result.json").write_text(text)
        new = {f"report/{name}/{p.name}": p for name in sections for p in (drawn / name).iterdir()}
        new |= {"report/index.html": drawn / "index.html", "result.json": drawn / "result.json"}
        own.check(new)
        own.delete_all_but(new)
        for name, path in new.items():
            path.replace(own.path(name))
    return result


def _evaluator(
    name: str, section: EvaluatorConfig, trained: Trained
) -> Evaluator | FeatureEvaluator:
    exp = trained.experiment
    evaluator = make_evaluator(
        name, section, exp.data, exp.batch_size, trained.classes, trained.task, trained.mesh
    )
    try:
        # Finds what does not fit at once, before another evaluator has run for an hour.
        evaluator.metric_names(trained.ema if section.params == "ema" else trained.variables)
    except flax.errors.FlaxError as e:
        said = str(e).partition(" (http")[0]
        raise InputError(
            f"{trained.workdir} is of another version of vitlab: its parameters are not those of "
            f"the model here: {said}"
        ) from e
    return evaluator


def _resolved(section: EvaluatorConfig, trained: Trained) -> EvaluatorConfig:
    """The section with what its defaults stand for."""
    exp = trained.experiment
    return dataclasses.replace(
        section,
        source=section.source or exp.data.source,
        params="ema" if section.wants_ema(exp.ema_decay) else "model",
        batch_size=section.batch_size or exp.batch_size,
    )


@contextmanager
def _room(out: pathlib.Path, own: OwnFiles) -> Iterator[pathlib.Path]:
    """A folder inside `out` for what is not finished; what is left in it goes."""
    if (out / "checkpoints").exists() or (out / "config.json").exists():
        raise InputError(f"--out {out} is a working directory: name another folder")
    own.check(["result.json", "report/index.html"])
    try:
        (out / "report").mkdir(parents=True, exist_ok=True)
        room = tempfile.TemporaryDirectory(prefix=".unfinished-", dir=out)
    except OSError as e:
        raise InputError(f"--out {out} cannot be written: {e.strerror or e}") from e
    with room as name:
        yield pathlib.Path(name)


def _report(trained: Trained, result: dict[str, Any], parts: list[Section], text: str) -> Report:
    count = sum(x.size for x in jax.tree.leaves(trained.variables["params"]))
    task = trained.experiment.task.replace("_", " ")
    devices, software = result["devices"], result["versions"]
    seconds = result["seconds"]
    packages = [f"{name} {software[name]}" for name in ("vitlab", "jax") if name in software]
    published = trained.step is None
    checkpoint = "published weights" if published else f"step {trained.step:,}"
    facts = {
        "Task": task,
        "Model": describe_model(trained.experiment.model),
        "Parameters": f"{count:,}",
        "Classes": f"{len(trained.classes):,}" if trained.classes else "none",
        "Checkpoint": checkpoint,
        "Trained on": f"{trained.experiment.data.source}, split {trained.experiment.data.split}",
        "Precision": result["precision"],
        "Devices": f"{devices['count']} x {devices['kind']}",
        "Time": f"{seconds:.1f} s" if seconds < 60 else clock(seconds),
        "Date": result["date"].replace("T", " "),
        "Software": ", ".join(packages),
        "Weights" if published else "Working directory": os.fspath(trained.workdir),
    }
    if published:
        del facts["Trained on"]  # which nobody says
        about, config = "The model", json.dumps(trained.experiment.model, indent=1)
    else:
        about, config = "The run's config", (trained.workdir / "config.json").read_text()
    images = [f"{count:,} images" for count in result["images"].values()]
    what = images[0] if len(images) == 1 else f"{len(images)} evaluators"
    return Report(
        title=trained.workdir.name,
        subtitle=f"{task}, {checkpoint}, evaluated on {result['date'][:10]}: {what}",
        facts=facts,
        sections=parts,
        details={
            about: config,
            "Versions": "\n".join(f"{name} {version}" for name, version in software.items()),
            "result.json: all of the numbers, in every digit": text,
        },
    )


def _section(
    evaluator: Evaluator | FeatureEvaluator, metrics: Mapping[str, float], drawn: pathlib.Path
) -> Section:
    config, split = evaluator.config, evaluator.split
    broken = f"; {split.broken:,} that cannot be read are left out" if split.broken else ""
    average = "the moving average" if config.params == "ema" else "as they were last trained"
    facts = {
        "Data": config.source,
        "Split": config.split,
        "Images": f"{split.counted:,}{broken}",
        "Evaluator": config.kind,
        "Weights": f"{config.params}, {average}",
        "Preprocessing": config.preprocess,
    }
    if config.features:
        learned = f"{config.features.train_source or config.source}, {config.features.train_split}"
        facts["Layer"] = config.features.layer
        if config.features.protocols:
            facts["Protocols"] = ", ".join(config.features.protocols)
            facts["They learn from"] = learned
    pictures = {path.stem: path.read_bytes() for path in drawn.glob("*.png")}
    files = sorted(path.name for path in drawn.iterdir() if path.suffix != ".png")
    short = {name.removeprefix(f"{evaluator.name}/"): value for name, value in metrics.items()}
    table = drawn / "classes.json"
    classes = json.loads(table.read_text()) if table.exists() else {}
    return Section(evaluator.name, config.kind, facts, short, pictures, files, classes)


def describe_model(model: Mapping[str, Any]) -> str:
    """A line on `config.model`: its name, its size, and what it is built around."""
    sizes = ("width", "depth", "num_heads", "patch_size", "decoder_layers", "num_queries")
    words = [str(model.get("name") or ""), str(model.get("variant") or "")]
    words += [f"{key} {model[key]}" for key in sizes if model.get(key) is not None]
    line = ", ".join(filter(None, (" ".join(filter(None, words[:2])), *words[2:])))
    backbone = model.get("backbone")
    return f"{line} around {describe_model(backbone)}" if isinstance(backbone, Mapping) else line
