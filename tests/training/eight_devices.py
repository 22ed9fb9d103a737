"""Run in a process of its own by `test_parallelism.py`: trains on eight devices in several ways.

Arguments: model, dtype, steps, accumulate, ways. Prints one JSON object, {way: [[sum of the losses
after each step], [first moment of each parameter after the first step], bytes of the optimizer's
state on one device, {parameter: its layout}]}.
"""

import functools
import json
import os
import sys

# Nearly all of the time goes into compiling, which LLVM's optimizations make half as long again.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vitlab.models.simclr import nt_xent
from vitlab.tasks import simclr
from vitlab.tasks.task import TASKS, task_class
from vitlab.training import layout, parallelism
from vitlab.training.step import TrainState, make_train_step, normalizer

WAYS = {
    "one": ("jit", {"data": 1}),
    "unparted": ("jit", {"data": 1}),  # the batch as a whole, whatever `accumulate` is
    "data": ("jit", {"data": 8}),
    "fsdp": ("jit", {"data": 4, "fsdp": 2}),
    "tensor": ("jit", {"data": 2, "fsdp": 2, "tensor": 2}),
    "pmap": ("pmap", {"data": 8}),
}
MODELS = {
    "small": dict(name="vit", width=32, depth=1, num_heads=4, patch_size=4, pool="gap",
                  drop_path=0.3, dropout=0.1),
    "vit": dict(name="vit", width=32, depth=2, num_heads=4, patch_size=4, pool="gap",
                drop_path=0.3, dropout=0.1, patch_dropout=0.25),
    "resnet": dict(name="resnet", variant="18", widths=(8, 8, 16, 32), depths=(1, 1, 1, 1),
                   stem="small"),
    "convnext": dict(name="convnext", widths=(8, 8, 8, 8), depths=(1, 1, 1, 1), patch_size=1,
                     drop_path=0.3),
    "mae": dict(backbone=dict(name="vit", width=32, depth=2, num_heads=4, patch_size=2,
                              drop_path=0.3),
                decoder_width=16, decoder_depth=1, decoder_heads=2),
    "simclr": dict(backbone=dict(name="vit", width=32, depth=1, num_heads=4, patch_size=4,
                                 drop_path=0.3),
                   projector_layers=2, projector_width=16, projector_dim=8),
    "detection": dict(name="plain_detr",
                      backbone=dict(name="vit", width=32, depth=1, num_heads=4, patch_size=2,
                                    drop_path=0.3),
                      num_queries=5, width=32, num_heads=4, mlp_dim=32, decoder_layers=2,
                      dropout=0.1, denoising=1, query_groups=2),
    "segmentation": dict(name="segmenter",
                         backbone=dict(name="vit", width=32, depth=1, num_heads=4, patch_size=2,
                                       drop_path=0.3),
                         depth=1, num_heads=4, dropout=0.1, drop_path=0.2),
    "universal_segmentation": dict(name="eomt",
                                   backbone=dict(name="vit", width=32, depth=2, num_heads=4,
                                                 patch_size=2, drop_path=0.3),
                                   num_queries=5, num_blocks=2),
}  # fmt: skip
AUGMENT = {"classification": {"mixup": 0.5}, "simclr": {"blur_kernel": 0.4}}
LOSS = {
    "detection": {"classification": "iou_aware"},
    "segmentation": {"dice": 0.5, "hard_pixels": 0.5, "class_weights": (1.0, 2.0, 0.5)},
}
BATCH, SIZE = 16, 8


def make_batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8),
        "label": rng.integers(0, 3, BATCH, np.int32),
        "mask": np.arange(BATCH) < 13,  # the devices have unequal counts
        "id": np.arange(BATCH, dtype=np.int32),
        "epoch": np.zeros(BATCH, np.int32),
        # Some images have no object, so that the devices have unequal numbers.
        "boxes": np.concatenate([low := rng.uniform(0, 4, (BATCH, 3, 2)), low + 3], axis=-1),
        "box_label": rng.integers(0, 3, (BATCH, 3), np.int32),
        "box_mask": np.arange(3) < rng.integers(0, 4, (BATCH, 1)),
        # One image is void, others in part.
        "semantic": np.where(
            np.arange(BATCH)[:, None, None] == 2, -1, rng.integers(-1, 3, (BATCH, SIZE, SIZE))
        ).astype(np.int16),
        "segments": rng.integers(-1, 3, (BATCH, SIZE, SIZE), np.int16),
        "segment_label": rng.integers(0, 3, (BATCH, 4), np.int32),
        "segment_mask": np.arange(4) < rng.integers(0, 4, (BATCH, 1)),
    }


def train(model, way, dtype, steps, accumulate=1):
    mode, sizes = WAYS[way]
    config = parallelism.ParallelismConfig(mode, sizes)
    mesh = parallelism.make_mesh(config, BATCH)
    axis = parallelism.PMAP_AXIS if mode == "pmap" else None
    name = model if model in TASKS else "classification"
    # On several devices in several blocks, on one in one.
    simclr.nt_xent = functools.partial(nt_xent, block=BATCH if way == "one" else 4)
    task = task_class(name).from_config(
        MODELS[model], LOSS.get(name, {}), AUGMENT.get(name, {}), ("a", "b", "c"), dtype, axis
    )
    optimizer = optax.adamw(1e-3)
    normalize = normalizer(np.full(3, 2 / 255, dtype), np.full(3, -1, dtype))
    step = make_train_step(
        task, optimizer, normalize, 0, accumulate, 0.9, axis_name=axis, total_steps=steps
    )

    def fresh():
        variables = task.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3), dtype))
        # A zero head would hide what the features do.
        if head := variables["params"].get("head"):
            head["kernel"] = jax.random.normal(jax.random.key(1), head["kernel"].shape)
        variables = jax.tree.map(lambda x: x.astype(dtype), variables)
        params = variables["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            model_state={k: v for k, v in variables.items() if k != "params"},
            opt_state=optimizer.init(params),
            ema=jax.tree.map(jnp.copy, variables),
            totals={},
            nonfinite_step=jnp.full((), -1, jnp.int32),
        )

    batch = parallelism.to_devices(make_batch(), mesh)
    shape = jax.eval_shape(fresh)
    rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), batch)
    totals = jax.eval_shape(
        jax.vmap(lambda s, b: step(s, b).totals, (None, 0), axis_name=parallelism.PMAP_AXIS),
        shape, rows,
    )  # fmt: skip
    shape = shape.replace(
        totals=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), totals)
    )
    own = layout.lay_out(config.rules, shape.params, mesh)
    placed = layout.lay_out_like(shape, shape.params, own, mesh)
    target = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shape, placed
    )
    whole = parallelism.over_devices(step, mesh, mode)
    compiled = parallelism.trace_step(whole, mesh, mode, target, (batch,)).lower().compile()

    def fresh_with_totals():
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape.totals)
        return fresh().replace(totals=zeros)

    state = jax.jit(fresh_with_totals, out_shardings=placed)()
    held = layout.bytes_on_a_device(state.opt_state)
    shardings = {
        "/".join(str(k.key) for k in path): list(x.sharding.spec)
        for path, x in jax.tree_util.tree_leaves_with_path(state.params)
    }
    losses, moments = [], None
    for _ in range(steps):
        with jax.transfer_guard("disallow"):
            state = compiled(state, batch)
        losses.append(float(jax.device_get(state.totals["loss"][0])))
        if moments is None:  # Adam's first moment is a tenth of the first gradient
            moments = [
                np.asarray(x).ravel().tolist() for x in jax.tree.leaves(state.opt_state[0].mu)
            ]
    return losses, moments, held, shardings


if __name__ == "__main__":
    model, dtype, steps, accumulate, *ways = sys.argv[1:]
    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    print(json.dumps({
        way: train(model, way, dtype, int(steps), 1 if way == "unparted" else int(accumulate))
        for way in ways
    }))  # fmt: skip
