"""All that predictions take, and nothing of the run that it came from; in memory and in a file."""

import dataclasses
import itertools
import json
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.flax

from vitlab.data.preprocess import Preprocess
from vitlab.errors import InputError
from vitlab.models.build import NotImportableError
from vitlab.tasks.task import Task, task_class
from vitlab.weights.class_rows import any_in_common, rows_of, with_rows
from vitlab.weights.filling import names_of, nested
from vitlab.weights.own import KEY

# Ops that tell where in the image the pixels come from that a model sees.
_PLACES = {
    "detection": "pad_boxes(100)",
    "segmentation": "semantic",
    "universal_segmentation": "pad_segments(100)",
}


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained model with what its images need and its outputs mean.

    Attributes:
        task_name: as in `config.task`; "features" of a published backbone alone, which has none.
        task: what was learned, with the names of its classes.
        variables: `params` and the model's other collections.
        preprocess: of the images, as in `config.evaluators.NAME.preprocess`.
        image_size: (height, width) of what it was trained on, in pixels; none: not known.
        category_ids: the data set's own numbers of the classes, where it had such.
        things: which classes are of objects that can be counted, where that is known.
        note: a line for who uses it, where something of it is assumed; "" mostly.
    """

    task_name: str
    task: Task
    variables: dict[str, Any]
    preprocess: str
    image_size: tuple[int, ...]
    category_ids: tuple[int, ...] = ()
    things: tuple[bool, ...] = ()
    note: str = ""

    def parsed(self) -> Preprocess:
        """The preprocessing for images of which nothing is known.

        Raises:
            InputError: it is wrong, random, or lacks an op that the task needs.
        """
        parsed = Preprocess.parse(self.preprocess)
        if parsed.random:
            raise InputError(
                f"the preprocessing {self.preprocess} has {parsed.random[0]}, which is random: "
                "give one for images as they are"
            )
        needed = _PLACES.get(self.task_name)
        if needed and not (parsed.boxes or parsed.segments):
            raise InputError(
                f"the preprocessing {self.preprocess} has no {needed.partition('(')[0]}, which "
                f"{self.task_name} needs: put |{needed} before its last op"
            )
        return dataclasses.replace(parsed, prediction=True)

    def channels(self) -> int:
        """Of the images that the preprocessing takes for this model: 1 or 3.

        Raises:
            InputError: it gives neither what the model takes, or the model predicts nothing.
        """
        preprocess = self.parsed()
        first = preprocess.ops[0]
        stated = dict(first.arguments).get("channels") if first.name == "decode" else None
        if not self.task.views:
            raise InputError(
                "a run that pretrained without labels predicts nothing: fine-tune it with "
                "--config.init_from=WORKDIR, or look into it with vitlab inspect"
            )
        theirs = {name: np.shape(leaf) for name, leaf in names_of(self.variables).items()}
        # As large as what it was trained on, or so large that a cut is within it.
        sizes = [self.image_size or (256, 256), (1024, 1024)]
        of_channels = (3, 1) if stated is None else (stated,)
        for size, channels in itertools.product(sizes, of_channels):
            image = np.zeros((*size, channels), np.uint8)
            try:
                seen = preprocess({"image": image}, np.random.default_rng(0))["image"]
                images = jax.ShapeDtypeStruct((1, *seen.shape), jnp.float32)
                made = names_of(jax.eval_shape(self.task.init, jax.random.key(0), images))
            except InputError:
                continue
            # Of kernels alone: tables of positions are of another grid for other images.
            alike = all(theirs.get(k) == v.shape for k, v in made.items() if k.endswith("/kernel"))
            if alike and theirs.keys() == made.keys():
                return channels
        raise InputError(
            f"the preprocessing {self.preprocess} does not give images that the model takes"
        )

    def computing_in(self, dtype: str) -> "Model":
        """The same with parameters and computation in `float32`, `bfloat16` or `float16`."""
        if np.dtype(jnp.dtype(dtype)) == np.float32 == jnp.dtype(self.task.model.dtype):
            return self
        cast = jax.tree.map(lambda x: jnp.asarray(x, dtype), self.variables)
        return dataclasses.replace(self, task=_task(self._about(dtype)), variables=cast)

    def of_classes(self, names: Sequence[str], category_ids: Sequence[int] = ()) -> "Model":
        """The same for the classes of other data, which are then all that it tells apart.

        They are matched by name. Of a detector without names of classes, their numbers are COCO's;
        and where no name is the same, and they are as many, they are taken in their order, as those
        of ImageNet, which have several names. The `note` says what is not by name.

        Args:
            names: of the data's classes, in their order.
            category_ids: the data set's own numbers of them, where it has such.

        Raises:
            InputError: the classes do not match.
        """
        ours, names = self.task.classes, tuple(names)
        if names == ours:
            return self
        rows, note = rows_of(ours, names), ""
        if rows is None and not any_in_common(ours, names):
            numbers = ours == tuple(map(str, self.category_ids))
            if numbers and category_ids and set(category_ids) <= set(self.category_ids):
                rows = [self.category_ids.index(number) for number in category_ids]
                note = f"classes are taken by their numbers: {category_ids[0]} is {names[0]}"
            elif len(names) == len(ours):
                rows = list(range(len(ours)))
                note = f"classes are taken in their order: {ours[0]} is {names[0]}"
        flat = names_of(self.variables)
        taken = rows and with_rows(flat, {}, self.task.class_parameters, rows, len(ours))
        if not taken:
            folded, theirs = ([name.casefold() for name in each] for each in (ours, names))
            once = (folded.count(name) == theirs.count(name) == 1 for name in theirs)
            wrong = next((name for name, fits in zip(names, once, strict=True) if not fits), "")
            raise InputError(
                f"the data's {len(names)} classes are not the model's {len(ours)}, such as "
                f"{ours[0]!r}: {wrong!r} is not there, or is there twice"
            )
        about = {**self.about(), "classes": names}
        if "num_classes" in about["model"]:
            about["model"] = {**about["model"], "num_classes": len(names)}
        return dataclasses.replace(
            self,
            task=_task(about),
            variables=nested(taken),
            category_ids=tuple(category_ids),
            things=tuple(self.things[row] for row in rows) if self.things else (),
            note="; ".join(filter(None, (self.note, note))),
        )

    def about(self) -> dict[str, Any]:
        """What a file says of it: plain values, without the parameters."""
        return self._about(jnp.dtype(self.task.model.dtype).name)

    def _about(self, dtype: str) -> dict[str, Any]:
        settings = self.task.settings()
        return {
            "task": self.task_name,
            "model": settings["model"],
            "loss": settings["loss"],
            "classes": list(self.task.classes),
            "category_ids": list(self.category_ids),
            "things": list(self.things),
            "preprocess": self.preprocess,
            "image_size": list(self.image_size),
            "dtype": dtype,
        }


def save_model(model: Model, path: os.PathLike | str) -> None:
    """Writes a model into one .safetensors file, which `load_model` reads, and
    `vitlab.weights.load`.

    Raises:
        InputError: see `Model.channels`; nothing is written then.
    """
    model.channels()
    arrays = {name: jnp.asarray(leaf) for name, leaf in names_of(model.variables).items()}
    module, given = model.task.model, getattr(model.task, "given", ())
    about = model.about()
    # Fields of the module that the task sets, for who reads it without the task.
    about["given"] = {key: getattr(module, key) for key in given if hasattr(module, key)}
    safetensors.flax.save_file(arrays, path, {KEY: json.dumps(about)})


def load_model(path: os.PathLike | str, preprocess: str = "") -> Model:
    """Reads what `save_model` wrote.

    Where the model is of a class of one's own, the file names its module, which is imported from
    where Python finds it.

    Args:
        path: the file.
        preprocess: of the images; by default the file's.

    Raises:
        InputError: the file is damaged, or is none of these.
    """
    path = os.path.expanduser(path)
    try:
        with safetensors.safe_open(path, framework="flax") as file:
            about = json.loads((file.metadata() or {}).get(KEY, "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (safetensors.SafetensorError, ValueError) as error:
        raise InputError(f"{path} is damaged, or no safetensors file: {error}") from error
    if not isinstance(about, dict):
        raise InputError(
            f"{path} does not say what model it is of: vitlab export --format safetensors writes "
            "files that do; vitlab.weights.load reads those of other libraries"
        )
    try:
        model = Model(
            task_name=about["task"],
            task=_task(about),
            variables=nested(arrays),
            preprocess=about["preprocess"],
            image_size=tuple(about["image_size"]),
            category_ids=tuple(about["category_ids"]),
            things=tuple(about["things"]),
        )
        model.channels()  # which builds it
        return dataclasses.replace(model, preprocess=preprocess or model.preprocess)
    except NotImportableError as error:
        raise InputError(f"{path}: {error}") from error
    # What is in the file may be anything.
    except (InputError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is of another version of vitlab: {error}") from error


def _task(about: dict[str, Any]) -> Task:
    return task_class(about["task"]).from_config(
        about["model"], about["loss"], {}, tuple(about["classes"]), jnp.dtype(about["dtype"])
    )
