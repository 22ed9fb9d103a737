"""Published architectures with random weights through every exported format, on real photographs.

    python experiments/export/measure.py PHOTOGRAPHS [MODEL ...]

Each model is made with random parameters, put into ONNX, StableHLO and safetensors, and asked about
the first photographs of a folder: how far the outputs are from the run's, and the milliseconds for
one photograph from its pixels to the outputs, of the run and of the file in turn.
"""

import pathlib
import sys
import tempfile
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from vitlab.data.image_paths import image_paths
from vitlab.deploy.export import export
from vitlab.deploy.model import Model
from vitlab.deploy.predictor import Predictor
from vitlab.tasks.task import task_class

CLASSIFY = 'decode|resize_small(256,method="bilinear",antialias=True)|central_crop(224)'
MODELS = {
    "vit_s16": ("classification", dict(name="vit", variant="S/16"), CLASSIFY, 1000),
    "vit_b16_map": ("classification", dict(name="vit", variant="B/16", pool="map"), CLASSIFY, 1000),
    "resnet50": ("classification", dict(name="resnet", variant="50"), CLASSIFY, 1000),
    "convnext_t": ("classification", dict(name="convnext", variant="T"), CLASSIFY, 1000),
    "detr_r50": (
        "detection",
        dict(name="detr", backbone=dict(name="resnet", variant="50", norm="frozen")),
        "decode|letterbox(640)|pad_boxes(100)",
        91,
    ),
    "segmenter_s16": (
        "segmentation",
        dict(name="segmenter", backbone=dict(name="vit", variant="S/16")),
        "decode|letterbox(512)|semantic",
        150,
    ),
    "eomt_s16": (
        "universal_segmentation",
        dict(name="eomt", backbone=dict(name="vit", variant="S/16"), num_queries=100),
        "decode|letterbox(512)|pad_segments(100)",
        133,
    ),
}
FILES = (
    ("onnx", "float32"), ("onnx", "float16"), ("stablehlo", "float32"), ("stablehlo", "bfloat16"),
    ("tflite", "float32"), ("safetensors", "float32"),
)  # fmt: skip
PHOTOGRAPHS, CALLS = 3, 5


def make(name):
    task, settings, ops, classes = MODELS[name]
    names = tuple(f"class {i}" for i in range(classes))
    built = task_class(task).from_config(settings, {}, {}, names, jnp.float32)
    size = {"classification": 224, "detection": 640}.get(task, 512)
    variables = jax.jit(built.init)(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    # Heads begin at zero, which would say the same of every image.
    leaves = [
        x + 0.01 * jnp.abs(jax.random.normal(k, x.shape)) for x, k in zip(leaves, keys, strict=True)
    ]
    things = (True,) * classes if task == "universal_segmentation" else ()
    string = f'{ops}|normalize("imagenet")'
    return Model(task, built, jax.tree.unflatten(tree, leaves), string, (size, size), (), things)


def main():
    files = image_paths(sys.argv[1:2])[:PHOTOGRAPHS]
    for name in sys.argv[2:] or MODELS:
        model = make(name)
        count = sum(leaf.size for leaf in jax.tree.leaves(model.variables))
        print(f"\n{name}: {count:,} numbers")
        predictor = Predictor(model)
        in_pixels = jax.jit(model.task.in_pixels)
        images = [predictor.pixels(file) for file in files]
        expected = []
        for image in images:
            rows, columns = (np.arange(n, dtype=np.float32) for n in image.shape[:2])
            expected.append(jax.device_get(in_pixels(predictor.outputs([image]), rows, columns)))
        for to, dtype in FILES:
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder, "model")
                began = time.monotonic()
                try:
                    function = export(model, str(path), to, dtype, model.image_size)
                except Exception as error:
                    print(f"  {to} {dtype}: {type(error).__name__}: {str(error)[:200]}")
                    continue
                seconds, size = time.monotonic() - began, path.stat().st_size / 2**20
                found = [function(image[None]) for image in images]
                apart = ", ".join(apart_of(key, expected, found) for key in expected[0])
                run, file = latency(
                    partial(predictor.outputs, images[:1]), partial(function, images[0][None])
                )
                print(
                    f"  {to} {dtype}: {size:.0f} MiB in {seconds:.0f} s; run {run:.0f} ms, file "
                    f"{file:.0f} ms, {file / run:.2f}; {apart}",
                    flush=True,
                )


def apart_of(key, expected, found):
    pairs = [(e[key].astype(np.float64), f[key]) for e, f in zip(expected, found, strict=True)]
    if key == "labels":
        return f"labels alike {np.mean([np.mean(e == f) for e, f in pairs]):.2%}"
    largest = max(np.abs(e).max() for e, _ in pairs)
    return f"{key} {max(np.abs(e - f).max() for e, f in pairs):.1e} of {largest:.1f}"


def latency(*functions):
    times = [[] for _ in functions]
    for function in functions:
        function()
    for _ in range(CALLS):
        for function, each in zip(functions, times, strict=True):
            began = time.perf_counter()
            function()
            each.append(1000 * (time.perf_counter() - began))
    return [float(np.median(each)) for each in times]


if __name__ == "__main__":
    main()
