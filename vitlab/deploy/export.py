"""Trained models as files that need no vitlab: uint8 images of any size in, results out.

What is in such a file is all that lies between an image's pixels and its result: the preprocessing
(`deploy.device_preprocess`), the network, and what a task makes of its outputs, such as boxes in
the pixels of the image, so that nobody has to do it again in another language, and get it wrong.
For phones the resizing is left out (`deploy.tflite_file`); queries' segments are left as they are.
"""

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vitlab.deploy.device_preprocess import DevicePreprocess
from vitlab.deploy.model import Model, load_model, save_model
from vitlab.deploy.predictor import Predictor
from vitlab.errors import InputError
from vitlab.ops.backend import anywhere

Format = Literal["onnx", "stablehlo", "tflite", "safetensors"]
Dtype = Literal["float32", "bfloat16", "float16"]
_MOST_BYTES = 2**31 - 2**24  # The formats count with 31 bits, and hold more than parameters.
_PLATFORMS = ("cpu", "cuda", "tpu")
_PACKAGES = {
    "onnx": ("jax2onnx", "onnx", "onnxruntime"),
    "tflite": ("litert_converter", "ai_edge_litert"),
}


@dataclasses.dataclass(frozen=True)
class Exported:
    """The function in a file: images u8[batch, height, width, channels] to outputs [batch, ...].

    Attributes:
        run: the function.
        about: the format, and the shapes and types of what goes in and comes out.
    """

    run: Callable[[np.ndarray], Mapping[str, np.ndarray]]
    about: dict[str, Any]

    def __call__(self, images: np.ndarray) -> Mapping[str, np.ndarray]:
        return self.run(images)


class WholeModel:
    """`(images, rows, columns) -> outputs`, a JAX function of uint8 images of any one size.

    Attributes:
        shape: of the images: (height, width, channels), None where any will do.

    Args:
        model: what is exported.
        size: (height, width) of what it was trained on, where its preprocessing does not tell.

    Raises:
        InputError: the preprocessing has an op that a compiled model cannot have.
    """

    def __init__(self, model: Model, size: tuple[int, int]):
        self.model = model
        preprocess = model.parsed()
        self._preprocess = DevicePreprocess(preprocess, model.channels(), size)
        self._scale, self._shift = preprocess.scale, preprocess.shift
        self.shape = (*(self._preprocess.size or (None, None)), self._preprocess.channels)

    def __call__(self, images: Array, rows: Array, columns: Array) -> dict[str, Array]:
        """Images u8 or f32[batch, height, width, channels] of grey levels; rows, columns: 0, 1, ...
        f32[height] and f32[width]. The outputs are those of the task's `in_pixels`."""
        batch = self._preprocess(images, rows, columns)
        task, variables = self.model.task, self.model.variables
        with anywhere():
            outputs = task.predict(variables, batch, self._normalize)
        outputs = task.in_pixels(outputs, rows, columns)
        return {
            name: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x
            for name, x in outputs.items()
        }

    def of_images(self, images: Array) -> dict[str, Array]:
        """The same of u8[batch, height, width, channels] alone."""
        return self(images, *(jnp.arange(n).astype(jnp.float32) for n in images.shape[1:3]))

    def images(self) -> jax.ShapeDtypeStruct:
        """What `of_images` takes, with symbols for what may be of any size."""
        names = ("height", "width", "channels")
        sides = (str(n or name) for n, name in zip(self.shape, names, strict=True))
        return jax.ShapeDtypeStruct(
            jax.export.symbolic_shape(f"batch, {', '.join(sides)}"), jnp.uint8
        )

    def signature(self) -> dict[str, dict[str, str]]:
        """Names, types and shapes of the `inputs` and `outputs`."""
        images = self.images()
        outputs = jax.eval_shape(self.of_images, images)

        def spelt(x):
            return f"{x.dtype}[{', '.join(map(str, x.shape))}]"

        return {
            "inputs": {"images": spelt(images)},
            "outputs": {name: spelt(x) for name, x in outputs.items()},
        }

    def _normalize(self, images: Array) -> Array:
        # In the model's own type, which not every exporter casts to by itself.
        return (images * self._scale + self._shift).astype(self.model.task.model.dtype)


def export(model: Model, path: str, to: Format, dtype: Dtype, size: tuple[int, int]) -> Exported:
    """Writes a model into a file, and reads it again.

    Args:
        model: what is exported.
        path: of the file.
        to: `onnx` for ONNX Runtime and what is made of it; `stablehlo` for `jax.export.deserialize`
            on a CPU, GPU or TPU; `tflite` for phones, of one image as the model sees it;
            `safetensors` for `vitlab.load`, `vitlab.weights.load` and `config.init_from`.
        dtype: of the parameters and the computation.
        size: (height, width) of what it was trained on, where its preprocessing does not tell.

    Returns:
        The function that is in the file.

    Raises:
        InputError: the format cannot hold this model, or its extra is not installed.
    """
    check_arguments(to, dtype)
    model = model.computing_in(dtype)
    if to == "safetensors":
        save_model(model, path)
        return Exported(_of_predictor(Predictor(load_model(path))), {"format": to})
    if sum(leaf.nbytes for leaf in jax.tree.leaves(model.variables)) > _MOST_BYTES:
        raise InputError(
            f"a file of --format {to} holds 2 GB: --dtype float16 halves a model, and --format "
            "safetensors has no such limit"
        )
    if to == "tflite":
        from vitlab.deploy import tflite_file

        predictor = Predictor(dataclasses.replace(model, image_size=model.image_size or size))
        with _conversion("LiteRT's converter"):
            about = tflite_file.write(predictor, path)
        return Exported(tflite_file.read(path, predictor), {"format": to, **about})
    whole = WholeModel(model, size)
    if to == "onnx":
        from vitlab.deploy import onnx_file

        with _conversion("jax2onnx"):
            onnx_file.write(whole, path, json.dumps(model.about()))
        run = onnx_file.read(path)
    else:
        _write_stablehlo(whole, path)
        run = _read_stablehlo(path)
    return Exported(run, {"format": to, **whole.signature()})


def check_arguments(to: str, dtype: str) -> None:
    """That there is such a format, with its packages; an InputError says what would be right."""
    for name, value, legal in (("format", to, Format), ("dtype", dtype, Dtype)):
        if value not in get_args(legal):
            raise InputError(f"--{name} is {value!r} but must be {', '.join(get_args(legal))}")
    if to == "onnx" and dtype == "bfloat16":
        raise InputError("ONNX Runtime has float32 and float16 on a CPU, not bfloat16: give one")
    if to == "tflite" and dtype != "float32":
        raise InputError("--format tflite is of --dtype float32 alone")
    for package in _PACKAGES.get(to, ()):
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"--format {to} needs the {to} extra ({package} is not there): "
                f"pip install -e '.[{to}]' where vitlab is"
            )


@contextmanager
def _conversion(by: str) -> Iterator[None]:
    """Turns whatever a converter raises, where it does not know an operation, into one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{by} cannot write this model ({type(error).__name__}: {reason}); --format stablehlo "
            "can hold any"
        ) from error


def _write_stablehlo(whole: WholeModel, path: str) -> None:
    exported = jax.export.export(jax.jit(whole.of_images), platforms=_PLATFORMS)(whole.images())
    with open(path, "wb") as file:
        file.write(exported.serialize())


def _read_stablehlo(path: str) -> Callable:
    with open(path, "rb") as file:
        run = jax.jit(jax.export.deserialize(bytearray(file.read())).call)
    return lambda images: jax.device_get(run(images))


def _of_predictor(predictor: Predictor) -> Callable:
    """What a predictor gives before it is put into words, as an exported graph has it."""
    task = predictor.model.task
    in_pixels = jax.jit(task.in_pixels)

    def run(images):
        outputs = predictor.outputs(list(images))
        rows, columns = (np.arange(n, dtype=np.float32) for n in images.shape[1:3])
        return jax.device_get(in_pixels(outputs, rows, columns))

    return run
