"""big_vision's npz files (github.com/google-research/big_vision), of every era.

Its ViT is Flax's: kernels are [in, out], those of attention [width, heads, head_dim], GELU is the
tanh form. Names changed twice: the files of "How to train your ViT" (augreg) have the positions,
the class token's too, in a module of their own; newer ones may have all blocks in one, scanned.
"""

import re
from typing import Any

import flax.linen as nn
import numpy as np

from vitlab.errors import InputError
from vitlab.models.vit import ViT
from vitlab.weights.files import Tensor
from vitlab.weights.formats.format import Format, Shapes, Source
from vitlab.weights.table import Rule, positions, same

BLOCK = "encoder/block_{i}"
THEIRS = "Transformer/encoderblock_{i}"


def attention(theirs: str, ours: str, heads: int) -> list[Rule]:
    """Query, key, value [width, heads, head_dim] and out [heads, head_dim, width], flattened."""
    rules = []
    for part in ("query", "key", "value"):
        rules += [
            Rule(
                (f"{theirs}/{part}/kernel",),
                (f"{ours}/{part}/kernel",),
                lambda a, _: [_split(a[0], 1, heads).reshape(len(a[0]), -1)],
                lambda a: [a[0].reshape(len(a[0]), heads, -1)],
            ),
            Rule(
                (f"{theirs}/{part}/bias",),
                (f"{ours}/{part}/bias",),
                lambda a, _: [a[0].reshape(-1)],
                lambda a: [a[0].reshape(heads, -1)],
            ),
        ]
    out = Rule(
        (f"{theirs}/out/kernel",),
        (f"{ours}/out/kernel",),
        lambda a, _: [_split(a[0], 0, heads).reshape(-1, a[0].shape[-1])],
        lambda a: [a[0].reshape(heads, -1, a[0].shape[-1])],
    )
    return [*rules, out, *same(f"{theirs}/out/bias", f"{ours}/out/bias")]


def _split(kernel: np.ndarray, axis: int, heads: int) -> np.ndarray:
    """The kernel itself, which must be split into heads on an axis."""
    if kernel.ndim != 3 or kernel.shape[axis] != heads:
        raise ValueError(f"not of {heads} heads")
    return kernel


def _rules(model: ViT) -> list[Rule]:
    def layer(theirs, ours):
        return same(f"{theirs}/kernel", f"{ours}/kernel") + same(f"{theirs}/bias", f"{ours}/bias")

    def norm(theirs, ours):
        return same(f"{theirs}/scale", f"{ours}/scale") + same(f"{theirs}/bias", f"{ours}/bias")

    part, head = "MultiHeadDotProductAttention_0", "MAPHead_0"
    return [
        *layer("embedding", "patch_embedding"),
        *same("cls", "cls"),
        *positions("pos_embedding", model.class_token and model.class_position),
        *norm(f"{THEIRS}/LayerNorm_0", f"{BLOCK}/norm1"),
        *attention(f"{THEIRS}/{part}", f"{BLOCK}/attention", model.num_heads),
        *norm(f"{THEIRS}/LayerNorm_1", f"{BLOCK}/norm2"),
        *layer(f"{THEIRS}/MlpBlock_0/Dense_0", f"{BLOCK}/mlp/fc1"),
        *layer(f"{THEIRS}/MlpBlock_0/Dense_1", f"{BLOCK}/mlp/fc2"),
        *norm("Transformer/encoder_norm", "norm"),
        *same(f"{head}/probe", "map_head/probe"),
        *attention(f"{head}/{part}", "map_head/attention", model.num_heads),
        *norm(f"{head}/LayerNorm_0", "map_head/norm"),
        *layer(f"{head}/MlpBlock_0/Dense_0", "map_head/mlp/fc1"),
        *layer(f"{head}/MlpBlock_0/Dense_1", "map_head/mlp/fc2"),
        *layer("pre_logits", "pre_logits"),
        *layer("head", "head"),
    ]


_ERAS = (
    (r"^Transformer/posembed_input/pos_embedding$|^Transformer/pos_embedding$", "pos_embedding"),
    (r"/MultiHeadDotProductAttention_1/", "/MultiHeadDotProductAttention_0/"),
    (r"/LayerNorm_2/", "/LayerNorm_1/"),
    (r"/MlpBlock_3/", "/MlpBlock_0/"),
    (r"^(probe$|(MlpBlock|MultiHeadDotProductAttention|LayerNorm)_0/)", r"MAPHead_0/\1"),
)


_DEEPEST = 1000


def _unscanned(source: Source) -> Source:
    """Blocks that are stacked, Transformer/encoderblock/..., one by one."""
    tensors, origin = {}, {}
    for name, tensor in source.tensors.items():
        stacked = re.fullmatch(r"Transformer/encoderblock/(.*)", name)
        if stacked is None or not tensor.shape:
            tensors[name], origin[name] = tensor, source.origin[name]
            continue
        if tensor.shape[0] > _DEEPEST:
            raise InputError(f"{source.where}: {name} is of {tensor.shape[0]} blocks")
        for i in range(tensor.shape[0]):
            one = f"Transformer/encoderblock_{i}/{stacked[1]}"
            if one in source.tensors:
                raise InputError(f"{source.where}: {one} and {name} are the same parameter")
            tensors[one] = Tensor(
                tensor.shape[1:], tensor.dtype, lambda tensor=tensor, i=i: tensor.read()[i]
            )
            origin[one] = source.origin[name]
    return source.replace(tensors=tensors, origin=origin)


def _fields(source: Source) -> tuple[type[nn.Module], dict[str, Any]]:
    height, width_of_patch, _, width = source.shape("embedding/kernel", 4)
    if height != width_of_patch:
        raise InputError(
            f"{source.where}: patches of {height} x {width_of_patch} are not supported"
        )
    block = "Transformer/encoderblock_0"
    heads = source.shape(f"{block}/MultiHeadDotProductAttention_0/query/kernel", 3)[1]
    token, class_position = "cls" in source, False
    if "pos_embedding" in source:
        rows = source.shape("pos_embedding", 3)[1]
        class_position = source.prefix_positions(rows, (0, 1) if token else (0,)) == 1
    pool = "map" if "MAPHead_0/probe" in source else "cls" if token else "gap"
    pre_logits = "pre_logits/kernel" in source
    return ViT, {
        "width": width,
        "depth": source.count("Transformer/encoderblock_{i}/LayerNorm_0/scale"),
        "patch_size": height,
        "mlp_dim": source.shape(f"{block}/MlpBlock_0/Dense_0/kernel", 2)[1],
        "num_heads": heads,
        "num_classes": source.shape("head/kernel", 2)[1] if "head/kernel" in source else None,
        "pos_embed": "learned" if "pos_embedding" in source else "sincos2d",
        "pool": pool,
        "class_token": token,
        "class_position": class_position,
        "mlp": "gelu_tanh",
        "rep_size": source.shape("pre_logits/kernel", 2)[1] if pre_logits else False,
    }


def _preprocess(source: Source, size: tuple[int, int]) -> tuple[str, bool]:
    # configs/vit_s16_i1k.py for those with a global pool; `resize` alone for augreg's and SigLIP's.
    if "cls" in source or "MAPHead_0/probe" in source or size[0] != size[1]:
        resize = f"resize({size[0]})" if size[0] == size[1] else f"resize(({size[0]},{size[1]}))"
        return f"decode|{resize}|value_range(-1,1)", True
    small = round(size[0] * 256 / 224)
    return f"decode|resize_small({small})|central_crop({size[0]})|value_range(-1,1)", True


def _config_of(model: ViT, shapes: Shapes, _: tuple[int, int]) -> dict[str, Any]:
    """Nothing; an InputError where big_vision's ViT has not what the model has."""
    wrong = {
        "stem": model.stem != "patch",
        "pos_embed": model.pos_embed not in ("learned", "sincos2d"),
        "num_registers": model.num_registers > 0,
        "mlp": model.mlp != "gelu_tanh",
        "qkv_bias": model.qkv_bias != "qkv",
        "qk_norm": model.qk_norm,
        "layer_scale": model.layer_scale is not None,
        "pre_norm": model.pre_norm,
        "norm_after_pool": model.norm_after_pool,
        "pool": model.pool == "none" or (model.pool != "cls" and model.class_token),
    }
    for field in [field for field, is_wrong in wrong.items() if is_wrong]:
        raise InputError(f"big_vision's ViT has no {field}={getattr(model, field)!r}")
    return {}


BIG_VISION = Format(
    name="big_vision",
    title="big_vision, augreg",
    signs=("embedding/kernel", "Transformer/encoder_norm/scale"),
    prefixes=("", "params/", "opt/target/", "params/img/", "img/"),
    aliases=_ERAS,
    fields=_fields,
    rules=_rules,
    preprocess=_preprocess,
    unused={
        r"(params/)?(txt/.*|t|b)": "of the text tower, and its temperature",
        r"opt/state/.*": "of the optimizer",
    },
    resize=lambda source: {"method": "bilinear", "antialias": False, "align_corners": True},
    unpack=_unscanned,
    writes=_config_of,
)
