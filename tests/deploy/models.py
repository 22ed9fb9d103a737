"""Tiny models of every task with random parameters, as a trained run would give them."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitlab import checkpoints
from vitlab import config as config_lib
from vitlab.deploy.model import Model
from vitlab.tasks.task import task_class

ROOT = pathlib.Path(__file__).parents[2]
VIT = dict(name="vit", patch_size=8, width=16, depth=1, num_heads=2)
DETECTOR = dict(width=16, num_heads=2, mlp_dim=16, num_queries=8, decoder_layers=1)
# Task, model, and the ops of the preprocessing.
MODELS = {
    "classification": (VIT, "decode|resize_small(36)|central_crop(32)"),
    "detection": (
        dict(name="plain_detr", backbone=VIT, **DETECTOR),
        "decode|letterbox((32,48))|pad_boxes(4)",
    ),
    "segmentation": (
        dict(name="unet", backbone=VIT, widths=(16, 8)),
        "decode|letterbox((32,48))|semantic",
    ),
    "universal_segmentation": (
        dict(name="eomt", backbone={**VIT, "depth": 2}, num_queries=6, num_blocks=1),
        "decode|letterbox((32,48))|pad_segments(4)",
    ),
}
CLASSES = ("cat", "dog", "grass")


def make(task: str, ops: str | None = None, settings: dict | None = None, **model) -> Model:
    """A model of a task, with other ops and settings, all or some, where they are given."""
    default, own = MODELS[task]
    settings = default if settings is None else settings
    loss = {"classification": "focal"} if task == "detection" else {}
    built = task_class(task).from_config({**settings, **model}, loss, {}, CLASSES, jnp.float32)
    images = jax.ShapeDtypeStruct((1, 32, 48, 3), jnp.float32)
    shapes = jax.eval_shape(built.init, jax.random.key(0), images)
    rng = np.random.default_rng(1)

    def drawn(path, leaf):
        x = rng.normal(size=leaf.shape)
        if path[-1].key in ("scale", "var"):
            return jnp.asarray(1 + 0.05 * abs(x), jnp.float32)
        inputs = leaf.size // leaf.shape[-1] if leaf.ndim > 1 else 100
        return jnp.asarray(x / inputs**0.5, jnp.float32)

    variables = jax.tree_util.tree_map_with_path(drawn, shapes)
    preprocess = f"{own if ops is None else ops}|value_range(-1,1)"
    things = (True, True, False) if task == "universal_segmentation" else ()
    return Model(task, built, variables, preprocess, (32, 48), (7, 8, 12), things)


def write_run(
    workdir: pathlib.Path,
    model: Model,
    source: str = "",
    evaluator: str = "",
    ema: Any = None,
    params: str = "auto",
) -> str:
    """Puts a model into a working directory, as a run that learned it leaves it.

    Args:
        workdir: the directory.
        model: what was learned.
        source: of the data.
        evaluator: the kind of the evaluator "test"; by default the task's own.
        ema: the moving average of its variables.
        params: of the evaluator.
    """
    about = model.about()
    config = config_lib.load(str(ROOT / "configs/quickstart.py"))
    kind = evaluator or model.task.evaluators[0]
    config |= {
        "task": model.task_name,
        "model": about["model"],
        "loss": about["loss"],
        "augment": {},
        "evaluators": {
            "test": dict(kind=kind, split="test[:40]", preprocess=model.preprocess, params=params)
        },
    }
    config["data"]["source"] = source or "digits"
    config["ema_decay"] = None if ema is None else 0.9
    meta = {key: about[key] for key in ("classes", "category_ids", "things", "image_size")}
    variables = dict(model.variables)
    state = {"params": variables.pop("params"), "model_state": variables, "ema": ema}
    writer = checkpoints.Writer(workdir / "checkpoints", 1, print)
    writer.save(1, state, meta, None)
    writer.close()
    (workdir / "config.json").write_text(json.dumps(config))
    return str(workdir)


def digits_model() -> Model:
    """A classifier of scikit-learn's digits."""
    classes = tuple("0123456789")
    settings = dict(name="vit", patch_size=2, width=16, depth=1, num_heads=2)
    task = task_class("classification").from_config(settings, {}, {}, classes, jnp.float32)
    variables = task.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    head = variables["params"]["head"]
    head["kernel"] = jax.random.normal(jax.random.key(1), head["kernel"].shape)
    return Model("classification", task, variables, "decode(1)|value_range(-1,1)", (8, 8))
