"""A model for phones, as a TFLite file, by LiteRT's own converter (https://ai.google.dev/edge/litert).

The converter reads StableHLO, so that no other framework is needed. It wants every shape known: the
file takes one image as the model sees it, which the preprocessing's resizing has already made.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vitlab.deploy.predictor import Predictor
from vitlab.ops.backend import anywhere

_SIGNATURE = "serving_default"


class SeenModel:
    """`images[, content] -> outputs`, of one image as the model sees it.

    The outputs are those of the task's `predict`, boxes in pixels of that image, and probabilities
    beside the logits of a classifier.

    Attributes:
        inputs: shapes and types: `images` u8[1, height, width, channels], and where the
            preprocessing pads `content` i32[1, 2], height and width of what is no padding.

    Args:
        predictor: of the model.
    """

    def __init__(self, predictor: Predictor):
        self._model = predictor.model
        size = self._model.image_size
        image = np.zeros((*size, predictor.channels), np.uint8)
        seen = predictor.preprocess({"image": image}, np.random.default_rng(0))
        self._affine = "affine" in seen
        self.inputs = {"images": jax.ShapeDtypeStruct((1, *seen["image"].shape), jnp.uint8)}
        if "content" in seen:
            self.inputs["content"] = jax.ShapeDtypeStruct((1, 2), jnp.int32)
        self._scale, self._shift = predictor.preprocess.scale, predictor.preprocess.shift

    def __call__(self, *inputs: Array) -> dict[str, Array]:
        """Of the `inputs` in their order."""
        given = dict(zip(self.inputs, inputs, strict=True))
        batch = {"image": given.pop("images"), **given}
        if self._affine:
            batch["affine"] = jnp.array([[1.0, 1.0, 0.0, 0.0]])
        task = self._model.task
        with anywhere():
            outputs = task.predict(self._model.variables, batch, self._normalize)
        if "logits" in outputs and not self._affine:
            outputs["probabilities"] = jax.nn.softmax(outputs["logits"])
        return {name: outputs[name] for name in sorted(outputs) if name != "affine"}

    def _normalize(self, images: Array) -> Array:
        return images.astype(jnp.float32) * self._scale + self._shift


def write(predictor: Predictor, path: str) -> dict[str, dict[str, str]]:
    """Writes a model as TFLite, and gives the names, types and shapes of its `inputs` and
    `outputs`.
    """
    from litert_converter import converter_api_ext as converter
    from litert_converter.mlir import ir, passmanager

    seen = SeenModel(predictor)
    inputs = tuple(seen.inputs.values())
    outputs = jax.eval_shape(seen, *inputs)
    text = str(jax.jit(seen).lower(*inputs).compiler_ir("stablehlo"))
    context = ir.Context()
    converter.prepare_mlir_context(context)
    with context, ir.Location.unknown():
        module = ir.Module.parse(text)
        converter.set_signature(module.operation, _SIGNATURE, list(seen.inputs), sorted(outputs))
        converter.run_convert_to_tfl_passes(
            module, passmanager.PassManager(), converter.ConvertToTFLConfig()
        )
        converter.export_flatbuffer_to_file(module.operation, path)
    spelt = {"inputs": seen.inputs, "outputs": outputs}
    return {
        kind: {
            name: f"{x.dtype}[{', '.join(map(str, x.shape))}]" for name, x in sorted(each.items())
        }
        for kind, each in spelt.items()
    }


def read(path: str, predictor: Predictor) -> Callable[[np.ndarray], dict[str, Any]]:
    """The function that is in a file, of one image of any size: the predictor's preprocessing
    before it, and what a phone has to do with its outputs after it."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(path).get_signature_runner(_SIGNATURE)
    task = predictor.model.task
    in_pixels = jax.jit(task.in_pixels)

    def run(images: np.ndarray) -> dict[str, Any]:
        rng = np.random.default_rng(0)
        seen = predictor.preprocess({"image": images[0]}, rng)
        given = {"images": seen["image"][None]}
        if "content" in seen:
            given["content"] = np.asarray(seen["content"], np.int32)[None]
        outputs = dict(runner(**given))
        if "affine" in seen:
            outputs["affine"] = affine = np.asarray(seen["affine"])[None]
        if "boxes" in outputs:
            scale, offset = np.tile(affine[:, :2], 2), np.tile(affine[:, 2:], 2)
            outputs["boxes"] = (outputs["boxes"] - offset) / scale
            del outputs["affine"]
        outputs.pop("probabilities", None)
        rows, columns = (np.arange(n, dtype=np.float32) for n in images.shape[1:3])
        return jax.device_get(in_pixels(outputs, rows, columns))

    return run
