"""Every ViT, ResNet and ConvNeXt of timm: is it understood, and does it compute the same?

    python timm_architectures.py              needs torch, timm; half an hour on two cores

Each architecture is built at full size without weights; `vitlab.weights` sees the names and shapes
of its state dict and the config.json of a hub repository. What shapes do not tell is compared:
heads, pool, activation, epsilon. What is accepted is then built with two narrow blocks (ResNets and
ConvNeXts as they are) and random weights, saved, loaded, and its logits are compared. Whatever
vitlab's models have no place for must be refused.
"""

import collections
import functools
import json
import math
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import torch
from safetensors.numpy import save_file

# timm imports torchvision, whose compiled operators may not be there.
library = torch.library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import timm  # noqa: E402

from vitlab.errors import InputError  # noqa: E402
from vitlab.weights import load  # noqa: E402
from vitlab.weights.files import Tensor  # noqa: E402
from vitlab.weights.filling import fill  # noqa: E402
from vitlab.weights.formats import Source, recognise  # noqa: E402
from vitlab.weights.loading import _grid, _module, _size  # noqa: E402
from vitlab.weights.table import match  # noqa: E402

FAMILIES = ["vit_*", "deit*", "resnet*", "convnext*", "*dinov3*"]
ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "SiLU": "swiglu", "QuickGELU": "quick"}
POOLS = {"token": "cls", "avg": "gap", "map": "map", "": "none"}


def zeros(shape):
    """As many as one takes the memory of."""
    return np.broadcast_to(np.float32(0), shape)


def config_of(model, size=None, **arguments):
    cfg = model.pretrained_cfg
    size = list(size or cfg["input_size"][1:])
    pool = getattr(model, "global_pool", None)
    return {
        "architecture": cfg["architecture"],
        "num_classes": model.num_classes,
        **({"global_pool": pool} if isinstance(pool, str) else {}),
        "model_args": arguments,
        "pretrained_cfg": {"input_size": [3, *size]},
    }


def understood(model):
    """The format, and what was understood wrongly; InputError where it is refused."""
    tensors = {
        name: Tensor(tuple(t.shape), "float32", functools.partial(zeros, tuple(t.shape)))
        for name, t in model.state_dict().items()
    }
    where = model.pretrained_cfg["architecture"]
    source = Source(where, tensors, {name: name for name in tensors}, config_of(model))
    form, source = recognise(source)
    module = _module(where, *form.fields(source), {})
    matches = match(form.rules(module), tuple(source.tensors))
    grid = _grid(source, matches)
    patch = getattr(module, "patch_size", 1)
    size = tuple(side // patch * patch for side in _size(source, module, grid))
    fill(form, source, matches, grid, module, module, size)
    if not hasattr(model, "blocks"):
        return form.name, []
    block = model.blocks[0]
    wanted = {
        "num_heads": block.attn.num_heads,
        "norm_eps": block.norm1.eps,
        "mlp": ACTIVATIONS[type(getattr(block.mlp, "act", None)).__name__],
        "pool": POOLS[model.global_pool],
    }
    found = {field: getattr(module, field) for field in wanted}
    return form.name, [f"{k} {found[k]} for {v}" for k, v in wanted.items() if found[k] != v]


def draw(model, generator):
    with torch.no_grad():
        for name, p in model.state_dict().items():
            if p.dtype != torch.float32:
                continue
            drawn = torch.randn(p.shape, generator=generator)
            if name.endswith("running_var"):
                p.copy_(torch.exp(0.3 * drawn))
            elif p.ndim == 1 and not name.endswith("bias"):
                p.copy_(1 + 0.3 * drawn)
            else:
                fan_in = p[0].numel() if p.ndim in (2, 4) else 4
                p.copy_(drawn * (0.3 if p.ndim < 2 else 0.8 / math.sqrt(max(fan_in, 1))))
    return model.eval()


def error(name, patch, generator):
    """The largest difference of its logits, of a small one, relative to the largest of them."""
    if patch is None:
        size, arguments = (64, 96), {}
        model = timm.create_model(name, num_classes=5)
    else:
        size, arguments = (2 * patch, 3 * patch), {"num_heads": 3}
        small = {"embed_dim": 48, "depth": 2, "num_classes": 5, "img_size": size}
        model = timm.create_model(name, **small, **arguments)
        arguments = {**arguments, "img_size": list(size)}
    draw(model, generator)
    images = torch.randn(2, 3, *size, generator=generator)
    with torch.no_grad():
        wanted = model(images).numpy()
    with tempfile.TemporaryDirectory() as folder:
        arrays = {k: np.ascontiguousarray(v.numpy()) for k, v in model.state_dict().items()}
        save_file(arrays, pathlib.Path(folder, "model.safetensors"))
        config = json.dumps(config_of(model, size, **arguments))
        pathlib.Path(folder, "config.json").write_text(config)
        loaded = load(folder, image_size=size)
    with jax.default_matmul_precision("highest"):
        found = loaded.module.apply(loaded.variables, jnp.asarray(images.permute(0, 2, 3, 1)))[0]
    return np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max()


def main():
    found, worst = collections.Counter(), 0.0
    generator = torch.Generator().manual_seed(0)
    names = timm.list_models(FAMILIES)
    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name)
        try:
            form, wrong = understood(model)
        except InputError as e:
            found["refused"] += 1
            print(f"{name}: refused: {str(e).removeprefix(f'{name}: ')[:150]}", flush=True)
            continue
        patch = model.patch_embed.patch_size[0] if hasattr(model, "blocks") else None
        relative = error(name, patch, generator)
        worst = max(worst, relative)
        if relative > 1e-5:
            wrong.append("logits differ")
        found["WRONG" if wrong else form] += 1
        print(f"{name}: {form}: {relative:.1e} {'; '.join(wrong)}", flush=True)
    print(dict(found), f"of {len(names)}; largest relative error {worst:.1e}")


if __name__ == "__main__":
    main()
