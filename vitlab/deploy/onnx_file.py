"""A whole model as an ONNX file, by jax2onnx (https://github.com/enpasos/jax2onnx).

jax2onnx traces functions of arrays whose sizes are symbols, but not arithmetic with the sizes
themselves, which preprocessing is full of. So the model takes the places of its rows and columns as
inputs, and a few nodes before it make these, and float grey levels, of the images.
"""

import logging
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from vitlab.deploy.export import WholeModel

_OPSET = 21


def write(whole: "WholeModel", path: str, about: str) -> None:
    """Writes a model as ONNX.

    Args:
        whole: the function.
        path: of the file.
        about: json, put into the file's metadata as `vitlab`.
    """
    import jax
    import jax2onnx
    import onnx

    height, width, channels = whole.shape
    names: list[str] = []

    def function(images, rows, columns):
        outputs = whole(images, rows, columns)
        names[:] = outputs
        return tuple(outputs.values())

    h, w = height or "height", width or "width"
    shapes = [("batch", h, w, channels), (h,), (w,)]
    some = [[64 if isinstance(n, str) else n for n in shape] for shape in shapes]
    jax.eval_shape(function, *(jax.ShapeDtypeStruct(shape, np.float32) for shape in some))
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own use of float64
        made = jax2onnx.to_onnx(
            function,
            shapes,
            model_name="vitlab",
            opset=_OPSET,
            input_names=["levels", "rows", "columns"],
            output_names=names,
        )
    _cast_kernels(onnx, made.graph)
    model = onnx.compose.merge_models(
        _input(onnx, (h, w, channels), made.ir_version),
        made,
        io_map=[("levels_made", "levels"), ("rows_made", "rows"), ("columns_made", "columns")],
    )
    onnx.helper.set_model_props(model, {"vitlab": about})
    onnx.save(model, path)


def read(path: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """The function that is in a file, run by ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


def _cast_kernels(onnx, graph) -> None:
    """Kernels of convolutions in float16, which jax2onnx leaves in float32."""
    half, constants = onnx.TensorProto.FLOAT16, {each.name: each for each in graph.initializer}
    types = {each.name: each.type.tensor_type.elem_type for each in graph.value_info}
    for node in graph.node:
        if node.op_type == "Conv" and types.get(node.input[0]) == half:
            for tensor in (constants[name] for name in node.input if name in constants):
                values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def _input(onnx, shape, ir_version: int):
    """Nodes from `images` u8[batch, *shape] to their grey levels, and the places of their rows and
    columns."""
    make = onnx.helper.make_node
    nodes = [make("Cast", ["images"], ["levels_made"], to=onnx.TensorProto.FLOAT)]
    nodes += [make("Shape", ["images"], ["shape"])]
    constants = {"zero": 0, "one": 1, "row_axis": 1, "column_axis": 2}
    for axis, name in (("row_axis", "rows"), ("column_axis", "columns")):
        nodes += [
            make("Gather", ["shape", axis], [f"{name}_number"], axis=0),
            make("Range", ["zero", f"{name}_number", "one"], [f"{name}_whole"]),
            make("Cast", [f"{name}_whole"], [f"{name}_made"], to=onnx.TensorProto.FLOAT),
        ]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "images",
        [value("images", onnx.TensorProto.UINT8, ["batch", *shape])],
        [
            value("levels_made", onnx.TensorProto.FLOAT, ["batch", *shape]),
            value("rows_made", onnx.TensorProto.FLOAT, [shape[0]]),
            value("columns_made", onnx.TensorProto.FLOAT, [shape[1]]),
        ],
        [
            onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [], [number])
            for name, number in constants.items()
        ],
    )
    opsets = [onnx.helper.make_opsetid("", _OPSET)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
