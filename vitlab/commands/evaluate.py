"""`vitlab evaluate`: measures a run or published weights on a whole split, or judges the frozen
features of a run."""

import dataclasses
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

from vitlab import config as config_lib
from vitlab.commands.arguments import Argument, Given, Option, Verb
from vitlab.commands.terminal import Output
from vitlab.data.sources import open_source
from vitlab.data.splits import split_names
from vitlab.errors import InputError

VERB = Verb(
    "evaluate",
    (
        "WORKDIR [PROTOCOL ...] [--OPTION VALUE ...]",
        "WEIGHTS [PROTOCOL ...] --data SOURCE --split SPLIT --out DIR [--OPTION ...]",
    ),
    "Measures a run on a whole split: by the evaluators of its config, or by protocols, which "
    "judge the frozen features of its backbone; or published WEIGHTS, likewise.",
    (
        Argument(
            "WORKDIR",
            "a working directory, its checkpoints/STEP, or WEIGHTS as of vitlab predict",
            path="file",
        ),
        Argument(
            "PROTOCOL",
            "none for the run's evaluators, or",
            {
                "knn": "weighted k nearest neighbours (k = 20, T = 0.07)",
                "linear": "a linear classifier by SGD, many learning rates in one pass",
                "logistic": "a linear classifier by L-BFGS, scikit-learn's",
                "few_shot": "closed form on 1, 5, 10 and 25 examples a class, where one has them",
            },
            optional=True,
            repeated=True,
        ),
    ),
    (
        Option(
            "data",
            "SOURCE",
            "other data than the run's, such as folder:photos. Without a protocol: of the same "
            "classes, and the whole of the splits that the evaluators name unless --split says "
            "otherwise. With one: name its splits",
            path="file",
        ),
        Option("out", "DIR", "where to write; default WORKDIR/evaluate", path="folder"),
        Option("split", "SPLIT", "such as val or train[:100]; default each evaluator's"),
        Option("train_split", "SPLIT", "what protocols learn from; default the run's"),
        Option("preprocess", "OPS", "other than the evaluator's, such as decode|resize(224)"),
        Option("batch_size", "COUNT", "images at a time; default the run's", number=int, least=1),
        Option("layer", "STAGE", "whose features protocols judge; default pre_logits"),
    ),
    (
        "vitlab evaluate runs/quickstart",
        "vitlab evaluate runs/flowers --data folder:photos --split train --out photos_report",
        "vitlab evaluate runs/simclr few_shot --data folder:photos --split val --layer stage_3",
        "vitlab evaluate hf:timm/resnet50.a1_in1k --data folder:imagenet --split val --out seen",
    ),
    "DIR/report/index.html, one file with numbers and pictures to read and to hand on; "
    "DIR/result.json with the numbers, which --json shows; DIR/report/NAME/ with the pictures, "
    "and in classes.json the numbers of each class.",
)


def run(given: Given, output: Output) -> None:
    """Evaluates as the command line says.

    Raises:
        InputError: anything in it is wrong.
    """
    workdir, *protocols = given.plain
    options = dict(given.options)

    from vitlab.training.measuring import measure
    from vitlab.training.progress import metrics_table
    from vitlab.training.trained import load_trained
    from vitlab.weights.hub import is_published

    if is_published(workdir):
        trained = _published(workdir, protocols, options, output)
        sections = trained.experiment.evaluators
    else:
        trained = load_trained(workdir)
        sections = _sections(trained.experiment, protocols, options)
    out = pathlib.Path(options.get("out", trained.workdir / "evaluate")).expanduser()
    if not sections:
        raise InputError(f"{workdir} has no evaluators in its config: name a protocol, such as knn")
    try:
        result = measure(trained, sections, out, print)
    except InputError as e:
        hint = _split_hint(options, sections)
        raise InputError(f"{e}{hint}") from e
    output.text(metrics_table(result["metrics"]))
    output.document(result)
    print(f"report in {out / 'report' / 'index.html'}")


def _sections(experiment, protocols: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
    """The evaluators of a run, or what the command line says instead."""
    from vitlab.training.experiment import EvaluatorConfig

    options = {name: value for name, value in options.items() if name != "out"}
    if protocols:
        section = _features_section(protocols, options, experiment)
        name = section["split"].partition("[")[0]
        return {name: config_lib.section(section, EvaluatorConfig, "vitlab evaluate")}
    if options:
        return _changed(experiment.evaluators, options, experiment.data.source)
    return experiment.evaluators


def _published(name: str, protocols: Sequence[str], options: dict[str, Any], output: Output):
    """Weights that no run has, with the evaluator that the command line describes."""
    from vitlab.deploy.published import published_model
    from vitlab.training.experiment import EvaluatorConfig
    from vitlab.training.trained import as_trained

    if not protocols:
        _check_options(options)
    missing = [f"--{key}" for key in ("data", "split", "out") if key not in options]
    if missing:
        raise InputError(f"{name} is no run: give {' and '.join(missing)}")
    model = published_model(name, options.get("preprocess", ""), predicts=not protocols)
    section = {
        "preprocess": model.preprocess,
        "split": options["split"],
        "source": options["data"],
        "batch_size": options.get("batch_size", 0),
    }
    if protocols:
        features = {key: options[key] for key in ("train_split", "layer") if key in options}
        section |= {"kind": "features", "features": {**features, "protocols": protocols}}
    else:
        section["kind"] = model.task.evaluators[0]
        source = open_source(options["data"], options["split"])
        classes = getattr(source, model.task.names, ())
        if not classes:
            raise InputError(f"{options['data']} has no classes, which {model.task_name} needs")
        try:
            model = model.of_classes(classes, getattr(source, "category_ids", ()))
        except InputError as error:
            raise InputError(f"{name} on {options['data']}: {error}") from None
    if model.note:
        output.note(model.note)
    section = config_lib.section(section, EvaluatorConfig, "vitlab evaluate")
    return as_trained(name, model.task_name, model.task, model.variables, section)


def _check_options(options: Collection[str]) -> None:
    for name in options:
        if name in ("train_split", "layer"):
            raise InputError(f"--{name} is for protocols: name one, such as knn")


def _changed(sections, options, own: str) -> dict[str, Any]:
    """The run's evaluators with what the command line says instead; of two that it makes alike, as
    two splits become one, the first."""
    _check_options(options)
    given = {"source" if name == "data" else name: value for name, value in options.items()}
    changed: dict[str, Any] = {}
    for name, section in sections.items():
        values = dict(given)
        if "data" in options:
            # A part of the run's data says nothing about other data: all of the split is measured.
            values.setdefault("split", "+".join(dict.fromkeys(split_names(section.split))))
        if "data" in options and section.features:
            # What judges features goes on learning from the run's data.
            learned = section.features.train_source or section.source or own
            values["features"] = dataclasses.replace(section.features, train_source=learned)
        new = dataclasses.replace(section, **values)
        if all(dataclasses.replace(new, every=old.every) != old for old in changed.values()):
            changed[name] = new
    return changed


def _split_hint(options, sections) -> str:
    """What to write where other data lack the run's split, but have a train."""
    if "data" not in options or "split" in options:
        return ""

    def opens(split: str) -> bool:
        try:
            return bool(open_source(options["data"], split))
        except InputError:
            return False

    if all(opens(section.split) for section in sections.values()) or not opens("train"):
        return ""
    return "; to evaluate on the split train, add --split train"


def _features_section(protocols, options, experiment) -> dict[str, Any]:
    """A `config.evaluators.NAME`: what the run's own says, and what the command line does."""
    sections = experiment.evaluators.values()
    own = [s for s in sections if s.kind == "features"] or list(sections)
    section = config_lib.as_dict(own[0]) if own else {}
    features = section.get("features") or {"train_split": experiment.data.split}
    if "data" in options:
        features["train_source"] = ""
    keep = ("source", "split", "preprocess", "batch_size", "params", "on_error")
    section = {key: section[key] for key in keep if key in section}
    for key, value in options.items():
        key = "source" if key == "data" else key
        (features if key in ("train_split", "layer") else section)[key] = value
    likes = {"split": "test", "preprocess": "'decode|resize(224)|value_range(-1,1)'"}
    for key, like in likes.items():
        if key not in section:
            raise InputError(
                f"the run has no evaluators to take --{key} from: give it, such as --{key} {like}"
            )
    return {**section, "kind": "features", "features": {**features, "protocols": protocols}}
