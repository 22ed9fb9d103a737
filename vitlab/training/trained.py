"""A finished or unfinished run, loaded again to be used."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vitlab import checkpoints
from vitlab.errors import InputError
from vitlab.tasks.task import Task, task_class
from vitlab.training import parallelism
from vitlab.training.experiment import Experiment
from vitlab.weights import transfer


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run has learned. Its training data are not needed.

    Attributes:
        workdir: the working directory.
        step: of the checkpoint.
        experiment: the run's typed config.
        classes: names of the classes of its data, where the task is about classes.
        task: what was learned.
        mesh: all devices, each with all of the variables.
        variables: `params` and the model's other collections, the average where the run kept one.
    """

    workdir: pathlib.Path
    step: int
    experiment: Experiment
    classes: tuple[str, ...]
    task: Task
    mesh: Mesh
    variables: dict[str, Any]


def load_trained(path: os.PathLike | str) -> Trained:
    """Loads the newest checkpoint of a working directory, or one by its own path.

    Raises:
        InputError: there is none, or it is damaged.
    """
    checkpoint = checkpoints.locate(path)
    workdir = pathlib.Path(checkpoint.path).parents[1]
    try:
        config = json.loads((workdir / "config.json").read_text())
        meta = json.loads((checkpoint.path / "meta.json").read_text())
    except (OSError, ValueError) as e:
        raise InputError(f"{workdir} is no working directory: {e}") from e
    # On whatever devices there are now.
    experiment = Experiment.from_config({**config, "parallelism": {}})
    classes = tuple(meta["classes"])
    task = task_class(experiment.task).from_config(
        experiment.model,
        experiment.loss,
        experiment.augment,
        classes,
        jnp.dtype(experiment.dtype()),
    )
    params, state = transfer.read(checkpoint.path)
    variables = flax.traverse_util.unflatten_dict(state, sep="/")
    variables["params"] = flax.traverse_util.unflatten_dict(params, sep="/")
    mesh = parallelism.make_mesh(experiment.parallelism, jax.device_count())
    variables = jax.device_put(variables, parallelism.replicated(mesh))
    return Trained(workdir, checkpoint.step, experiment, classes, task, mesh, variables)
