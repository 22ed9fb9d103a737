"""Published weights as a model that predicts: a classifier with its head, or DETR."""

import os

import jax.numpy as jnp

from vitlab.deploy.model import Model, load_model
from vitlab.errors import InputError
from vitlab.models.build import model_settings
from vitlab.models.detr import DETR
from vitlab.tasks.task import task_class
from vitlab.weights.hub import find
from vitlab.weights.loading import load_found
from vitlab.weights.own import read_own


def published_model(name: os.PathLike | str, preprocess: str = "") -> Model:
    """What `vitlab.weights.load` reads, with all that predictions take.

    The classes are those that the file names, else numbers from 0 on. Where no file says how its
    images are prepared, the model's `note` tells what is assumed.

    Args:
        name: as of `vitlab.weights.load`; a file that vitlab exported is as the run was.
        preprocess: of the images; by default what comes with the weights.

    Raises:
        InputError: as `vitlab.weights.load`; the weights predict nothing, as a backbone without a
            head does; or nothing is known of their preprocessing, and none is given.
    """
    found, part = find(str(name))
    if read_own(found.weights[0]):
        return load_model(found.weights[0], preprocess)
    loaded = load_found(found, part)
    module, detects = loaded.module, isinstance(loaded.module, DETR)
    # A query of DETR may be of no object, the last of its logits.
    number = (getattr(module, "num_classes", None) or 0) - detects
    if number < 2 - detects:
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
        if detects:  # tells the model what is padding; COCO's images have at most 93 objects
            before, _, last = preprocess.rpartition("|")
            preprocess = f"{before}|pad_boxes(100)|{last}"
    task_name = "detection" if detects else "classification"
    cls, settings = task_class(task_name), model_settings(module)
    for key in getattr(cls, "given", ()):  # which the task sets itself
        settings.pop(key, None)
    classes = loaded.classes or tuple(map(str, range(number)))
    return Model(
        task_name=task_name,
        task=cls.from_config(settings, {}, {}, classes, jnp.float32),
        variables=loaded.variables,
        preprocess=preprocess,
        image_size=loaded.image_size,
        # The numbers that the model gives its classes are COCO's own.
        category_ids=tuple(range(number)) if detects else (),
        note=note,
    )
