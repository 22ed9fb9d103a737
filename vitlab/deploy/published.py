"""Published weights as a model that predicts, or whose features are looked at."""

import os

import flax.linen as nn
import jax.numpy as jnp

from vitlab.deploy.model import Model, load_model
from vitlab.errors import InputError
from vitlab.models.build import model_settings
from vitlab.models.detr import DETR
from vitlab.models.mae import MAE
from vitlab.tasks.classification import AugmentConfig, Classification, LossConfig
from vitlab.tasks.task import Task, task_class
from vitlab.weights.hub import find
from vitlab.weights.loading import load_found
from vitlab.weights.own import read_own
from vitlab.weights.preprocessing import own_size


def published_model(name: os.PathLike | str, preprocess: str = "", predicts: bool = True) -> Model:
    """What `vitlab.weights.load` reads, with all that predictions take.

    The classes are those that the file names, else numbers from 0 on. Images are of the size that
    comes with the weights; where no file says how they are prepared, the model's `note` tells what
    is assumed.

    Args:
        name: as of `vitlab.weights.load`; a file that vitlab exported is as the run was.
        preprocess: of the images; by default what comes with the weights.
        predicts: whether it is a classifier with its head, or DETR; else it may be any, whose
            features alone are looked at.

    Raises:
        InputError: as `vitlab.weights.load`; the weights are to predict and have no head; or
            nothing is known of their preprocessing, and none is given.
    """
    found, part = find(str(name))
    if read_own(found.weights[0]):
        return load_model(found.weights[0], preprocess)
    size = own_size(found.preprocessor)
    loaded = load_found(found, part, **({"image_size": size} if size else {}))
    module, detects = loaded.module, isinstance(loaded.module, DETR)
    # A query of DETR may be of no object, the last of its logits.
    number = (getattr(module, "num_classes", None) or 0) - detects
    if predicts and number < 2 - detects:
        raise InputError(
            f"{name} is a {type(module).__name__} without a head of classes: it predicts nothing; "
            f"fine-tune it with --config.init_from={name}"
        )
    note = ""
    if not preprocess:
        preprocess = loaded.preprocessing
        if not preprocess:
            raise InputError(
                f"{name}: what its images need is not known: give a preprocessing, such as "
                "'decode|resize(224)|value_range(-1,1)'"
            )
        if not loaded.preprocessing_stated:
            note = f"{name} does not say how images are prepared: {preprocess} is assumed"
        if detects and predicts:  # tells what is padding; COCO's images have at most 93 objects
            before, _, last = preprocess.rpartition("|")
            preprocess = f"{before}|pad_boxes(100)|{last}"
    classes = loaded.classes or tuple(map(str, range(number)))
    task_name, task = _task(module, classes)
    return Model(
        task_name=task_name,
        task=task,
        variables=loaded.variables,
        preprocess=preprocess,
        image_size=loaded.image_size,
        # The numbers that the model gives its classes are COCO's own.
        category_ids=tuple(range(number)) if detects else (),
        note=note,
    )


def _task(module: nn.Module, classes: tuple[str, ...]) -> tuple[str, Task]:
    """What a module is for, by its name, and of these classes."""
    name = {MAE: "mae", DETR: "detection"}.get(type(module), "classification")
    if name == "classification" and len(classes) < 2:
        return "features", Classification(module, LossConfig(), AugmentConfig(), ())
    cls, settings = task_class(name), model_settings(module)
    for key in getattr(cls, "given", ()):  # which the task sets itself
        settings.pop(key, None)
    return name, cls.from_config(settings, {}, {}, classes, jnp.float32)
