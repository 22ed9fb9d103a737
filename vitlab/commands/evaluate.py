"""`vitlab evaluate`: measures a run again, or judges its frozen features."""

import dataclasses
import json
from typing import Any, get_args

from vitlab import config as config_lib
from vitlab.commands.arguments import parse as parse_arguments
from vitlab.errors import InputError

USAGE = """\
usage: vitlab evaluate WORKDIR [PROTOCOL ...] [--OPTION VALUE ...]

Without a protocol: the evaluators of the run's config, again. Protocols judge the frozen features
of its backbone, whatever it was trained for:

  knn        weighted k nearest neighbours (k = 20, T = 0.07)
  linear     a linear classifier by SGD, many learning rates in one pass
  logistic   a linear classifier by L-BFGS, scikit-learn's
  few_shot   closed form on 1, 5, 10 and 25 examples a class

  WORKDIR               a working directory, or one of its checkpoints/STEP
  --source SOURCE       other data than the run's, such as folder:photos; name its splits too.
                        Without a protocol: of the same classes, for the run's evaluators
  --split, --train_split, --preprocess, --batch_size, --layer
                        as in config.evaluators.NAME of the kind "features"

  vitlab evaluate runs/mae knn linear --split test
  vitlab evaluate runs/simclr few_shot --source folder:photos --split val --layer stage_3

Fine-tuning is a training of its own: see configs/finetune_*.py and --config.init_from=WORKDIR.
Numbers go to the terminal and WORKDIR/evaluate/result.json, pictures to the same folder."""

OPTIONS = ("source", "split", "train_split", "preprocess", "batch_size", "layer")


def run(arguments: list[str]) -> None:
    """Evaluates as the command line says.

    Raises:
        InputError: anything in it is wrong.
    """
    workdir, protocols, options = parse(arguments)

    from rich.console import Console

    from vitlab.training.evaluator import make_evaluator
    from vitlab.training.experiment import EvaluatorConfig
    from vitlab.training.progress import metrics_table
    from vitlab.training.trained import load_trained

    trained = load_trained(workdir)
    sections = trained.experiment.evaluators
    if protocols:
        section = _features_section(protocols, options, trained.experiment)
        sections = {
            section["split"].partition("[")[0]: config_lib.section(
                section, EvaluatorConfig, "vitlab evaluate"
            )
        }
    elif options:
        sections = {name: _changed(section, options) for name, section in sections.items()}
    if not sections:
        raise InputError(f"{workdir} has no evaluators in its config: name a protocol, such as knn")
    metrics: dict[str, float] = {}
    out = trained.workdir / "evaluate"
    for name, section in sections.items():
        evaluator = make_evaluator(
            name,
            section,
            trained.experiment.data,
            trained.experiment.batch_size,
            trained.classes,
            trained.task,
            trained.mesh,
        )
        ema = section.wants_ema(trained.experiment.ema_decay)
        variables = trained.ema if ema else trained.variables
        evaluator.metric_names(variables)  # finds what does not fit at once
        measured, outputs = evaluator.run(variables, print)
        metrics |= measured
        (out / name).mkdir(parents=True, exist_ok=True)
        evaluator.draw(outputs, out / name)
    Console(force_jupyter=False).print(metrics_table(metrics))
    result = {
        "metrics": metrics,
        "step": trained.step,
        "evaluators": {name: config_lib.as_dict(section) for name, section in sections.items()},
    }
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")


def parse(arguments: list[str]) -> tuple[str, list[str], dict[str, Any]]:
    """The working directory, the protocols, and the options that are given.

    Raises:
        InputError: an argument that does not exist, or an option without its value.
    """
    from vitlab.training.experiment import Protocol

    plain, options = parse_arguments(arguments, OPTIONS)
    if not plain:
        raise InputError("vitlab evaluate needs a working directory, such as runs/mae")
    for protocol in plain[1:]:
        if protocol not in get_args(Protocol):
            raise InputError(
                f"there is no protocol {protocol!r}"
                f"{config_lib.nearest(protocol, get_args(Protocol))}"
            )
    if "batch_size" in options:
        options["batch_size"] = config_lib.parse_value(options["batch_size"])
    return plain[0], plain[1:], options


def _changed(section, options):
    """An evaluator's section with what the command line says instead."""
    for name in options:
        if name in ("train_split", "layer"):
            raise InputError(f"--{name} is for protocols: name one, such as knn")
    return dataclasses.replace(section, **options)


def _features_section(protocols, options, experiment) -> dict[str, Any]:
    """A `config.evaluators.NAME`: what the run's own says, and what the command line does."""
    sections = experiment.evaluators.values()
    own = [s for s in sections if s.kind == "features"] or list(sections)
    section = config_lib.as_dict(own[0]) if own else {}
    features = section.get("features") or {"train_split": experiment.data.split}
    if "source" in options:
        features["train_source"] = ""
    keep = ("source", "split", "preprocess", "batch_size", "params", "on_error")
    section = {key: section[key] for key in keep if key in section}
    for key, value in options.items():
        (features if key in ("train_split", "layer") else section)[key] = value
    for key in ("split", "preprocess"):
        if key not in section:
            raise InputError(f"the run has no evaluators to take --{key} from: give it")
    return {**section, "kind": "features", "features": {**features, "protocols": protocols}}
