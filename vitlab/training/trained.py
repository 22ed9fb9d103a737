"""A finished or unfinished run, loaded again to be used."""

import dataclasses
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vitlab import checkpoints
from vitlab.config import Duration
from vitlab.errors import InputError
from vitlab.models.build import NotImportableError
from vitlab.tasks.task import Task, task_class
from vitlab.training import parallelism
from vitlab.training.experiment import DataConfig, EvaluatorConfig, Experiment


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run has learned, or published weights. Its training data are not needed.

    Attributes:
        workdir: the working directory; the name of published weights.
        step: of the checkpoint; None of published weights.
        experiment: the run's typed config.
        classes: names of the classes of its data, where the task is about classes.
        category_ids: the data set's own numbers of them, where it had such.
        things: which of them are of objects that can be counted, where it had segments.
        image_size: height and width of what the model was trained on, in pixels; of runs of earlier
            versions none.
        task: what was learned.
        mesh: all devices, each with all of the variables.
        variables: `params` and the model's other collections.
        ema: their moving average, where the run kept one.
    """

    workdir: pathlib.Path
    step: int | None
    experiment: Experiment
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    things: tuple[bool, ...]
    image_size: tuple[int, ...]
    task: Task
    mesh: Mesh
    variables: dict[str, Any]
    ema: dict[str, Any] | None

    def evaluator(self, required: bool = True) -> EvaluatorConfig | None:
        """The first evaluator of the task itself, whose preprocessing and choice of parameters are
        those of predictions.

        Raises:
            InputError: the run had none, and it is required.
        """
        for section in self.experiment.evaluators.values():
            if section.kind in self.task.evaluators:
                return section
        if not required:
            return None
        raise InputError(
            f"{self.workdir} has no evaluator of its task, whose preprocessing images would need: "
            "give another, such as resize(224)|value_range(-1,1)"
        )

    def chosen(self, params: str = "auto") -> dict[str, Any]:
        """The moving average where there is one and `params`, as in `EvaluatorConfig`, does not say
        otherwise; else the variables."""
        return self.variables if self.ema is None or params == "model" else self.ema


def load_trained(path: os.PathLike | str) -> Trained:
    """Loads the newest checkpoint of a working directory, or one by its own path.

    Where its task or model is a class of one's own, `config.json` names the module, and that is
    imported from where Python finds it: do not load the run of somebody whose modules you would not
    import.

    Raises:
        InputError: there is none, it is damaged, or another version of vitlab wrote it.
    """
    checkpoint = checkpoints.locate(path)
    workdir = pathlib.Path(checkpoint.path).parents[1]
    config = checkpoints.read_json(workdir / "config.json")
    meta = checkpoint.meta()
    if not isinstance(meta.get("classes"), list):
        where = checkpoint.path / "meta.json"
        raise InputError(f"{_other_version(workdir)}: {where} lacks the key 'classes'")
    classes = tuple(meta["classes"])
    try:
        # On whatever devices there are now; and nothing is logged.
        experiment = Experiment.from_config({**config, "parallelism": {}, "logging": {}})
        task = task_class(experiment.task).from_config(
            experiment.model,
            experiment.loss,
            experiment.augment,
            classes,
            jnp.dtype(experiment.dtype()),
        )
    except NotImportableError as e:
        raise InputError(f"{workdir}: {e}") from e
    except InputError as e:
        # Whatever wrote it could read it.
        raise InputError(f"{_other_version(workdir)}: in its config.json {e}") from e
    try:
        state = checkpoints.restore(checkpoint, only=["ema", "params", "model_state"])
    except checkpoints.DamagedError as e:
        raise InputError(f"{checkpoint.path} is damaged: {e}") from e
    mesh = parallelism.make_mesh(experiment.parallelism, jax.device_count())
    whole = parallelism.replicated(mesh)
    variables = {"params": state["params"], **state.get("model_state", {})}
    variables, ema = (jax.device_put(tree or None, whole) for tree in (variables, state.get("ema")))
    return Trained(
        workdir=workdir,
        step=checkpoint.step,
        experiment=experiment,
        classes=classes,
        category_ids=tuple(meta.get("category_ids", ())),
        things=tuple(meta.get("things", ())),
        image_size=tuple(meta.get("image_size", ())),
        task=task,
        mesh=mesh,
        variables=variables,
        ema=ema,
    )


def as_trained(
    name: str, task_name: str, task: Task, variables: dict[str, Any], section: EvaluatorConfig
) -> Trained:
    """Published weights, to be measured as a run is.

    Args:
        name: of the weights.
        task_name: as in `config.task`; "features" of a backbone alone, which has none.
        task: of the classes of the data, on which the evaluator measures them.
        variables: `params` and the model's other collections.
        section: the evaluator, with its source.
    """
    mesh = parallelism.make_mesh(parallelism.ParallelismConfig(), jax.device_count())
    settings = task.settings()
    experiment = Experiment(
        task=task_name,
        **settings,
        data=DataConfig(section.source, section.preprocess, section.split),
        total=Duration(1, "steps"),
        evaluators={"test": section},
        batch_size=8 * jax.device_count(),
        precision=jnp.dtype(task.model.dtype).name,
    )
    return Trained(
        workdir=pathlib.Path(name),
        step=None,
        experiment=experiment,
        classes=task.classes,
        category_ids=(),
        things=(),
        image_size=(),
        task=task,
        mesh=mesh,
        variables=jax.device_put(variables, parallelism.replicated(mesh)),
        ema=None,
    )


def _other_version(workdir: pathlib.Path) -> str:
    return f"{workdir} is of another version of vitlab, or was changed by hand"
