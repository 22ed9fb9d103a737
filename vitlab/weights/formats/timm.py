"""timm's Vision Transformers (github.com/huggingface/pytorch-image-models).

ViT, DeiT, DeiT III, SigLIP's towers and what else is `timm.models.vision_transformer`; and DINOv3,
which is `timm.models.eva` there.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from vitlab.errors import InputError
from vitlab.models.vit import VARIANTS, ViT
from vitlab.weights import preprocessing
from vitlab.weights.files import Tensor
from vitlab.weights.formats.format import Format, Shapes, Source, default_heads
from vitlab.weights.table import Rule, conv, fused, linear, norm, positions, same

QKV = ("query", "key", "value")
BLOCK = "encoder/block_{i}"
# Architectures with the names and shapes of another, and other computations: QuickGELU, norms after
# each branch, rotary positions beside the learned ones.
_OTHERS = re.compile(r".*(quickgelu|_rpn_|_rope_)|vit_pe_|test_")
# Arguments of timm's ViT that are read here, that shapes tell, or that change no output.
_ARGUMENTS = {
    "act_layer", "class_token", "depth", "dynamic_img_size", "embed_dim", "fc_norm", "global_pool",
    "img_size", "in_chans", "init_values", "mlp_ratio", "no_embed_class", "num_classes",
    "num_heads", "patch_size", "pre_norm", "qk_norm", "qkv_bias", "reg_tokens", "drop_rate",
    "drop_path_rate", "attn_drop_rate", "proj_drop_rate", "pos_drop_rate", "patch_drop_rate",
    # Of timm.models.eva.
    "num_reg_tokens", "rope_type", "rope_temperature", "rope_rotate_half", "swiglu_mlp",
    "swiglu_align_to", "use_rot_pos_emb", "use_abs_pos_emb", "use_fc_norm",
}  # fmt: skip
# The only architectures of timm with the tanh form, whatever others were trained with.
_TANH = re.compile(
    r"vit_(base_patch32|so400m_patch16|giantopt_patch16)_siglip_|vit_large_patch16_siglip_(gap_)?512"
)
POOLS = {"token": "cls", "avg": "gap", "map": "map", "": "none"}
# Interpolation of positions without an antialiasing filter, as torch does it by default.
PLAIN_BICUBIC = {"antialias": False}
# Of timm's configs where they say nothing.
CROP = {"crop_pct": 0.9, "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3}
# Where DeiT's and DeiT III's own files have the model.
_DEIT = ("model", "model_ema")
IMAGENET_CROP = {**CROP, "mean": preprocessing.IMAGENET[0], "std": preprocessing.IMAGENET[1]}


def block(theirs: str = "blocks.{i}") -> list[Rule]:
    """What a block has in timm as in the code of DeiT, MAE and DINOv2; not its MLP."""
    return [
        *norm(f"{theirs}.norm1", f"{BLOCK}/norm1"),
        *fused(f"{theirs}.attn.qkv.", f"{BLOCK}/attention", QKV),
        *linear(f"{theirs}.attn.proj", f"{BLOCK}/attention/out"),
        *same(f"{theirs}.ls1.gamma", f"{BLOCK}/layer_scale1"),
        *norm(f"{theirs}.norm2", f"{BLOCK}/norm2"),
        *same(f"{theirs}.ls2.gamma", f"{BLOCK}/layer_scale2"),
    ]


def mlp(kind: str) -> list[Rule]:
    """The MLP of a block; of a SwiGLU one the packed layer (gate first) or the two that it is."""
    down = linear("blocks.{i}.mlp.fc2", f"{BLOCK}/mlp/fc2")
    if kind != "swiglu":
        return [*linear("blocks.{i}.mlp.fc1", f"{BLOCK}/mlp/fc1"), *down]
    return [
        *fused("blocks.{i}.mlp.fc1.", f"{BLOCK}/mlp", ("gate", "fc1")),
        *linear("blocks.{i}.mlp.fc1_g", f"{BLOCK}/mlp/gate"),
        *linear("blocks.{i}.mlp.fc1_x", f"{BLOCK}/mlp/fc1"),
        *down,
    ]


def vit_rules(model: ViT) -> list[Rule]:
    """The table of a ViT."""
    token = model.class_token and model.class_position
    return [
        *same("cls_token", "cls"),
        *positions("pos_embed", token, model.num_registers if token else 0),
        *same("reg_token", "registers"),
        *conv("patch_embed.proj", "patch_embedding"),
        *norm("norm_pre", "norm_pre"),
        *block(),
        *norm("blocks.{i}.attn.q_norm", f"{BLOCK}/attention/query_norm"),
        *norm("blocks.{i}.attn.k_norm", f"{BLOCK}/attention/key_norm"),
        *mlp(model.mlp),
        *norm("norm", "norm"),
        *same("attn_pool.latent", "map_head/probe"),
        *linear("attn_pool.q", "map_head/attention/query"),
        *fused("attn_pool.kv.", "map_head/attention", ("key", "value")),
        *linear("attn_pool.proj", "map_head/attention/out"),
        *norm("attn_pool.norm", "map_head/norm"),
        *linear("attn_pool.mlp.fc1", "map_head/mlp/fc1"),
        *linear("attn_pool.mlp.fc2", "map_head/mlp/fc2"),
        *norm("fc_norm", "fc_norm"),
        *linear("head", "head"),
    ]


def vit_fields(source: Source) -> tuple[type[nn.Module], dict[str, Any]]:
    """Of a ViT in timm's names, and of the codes that share them."""
    width = source.shape("patch_embed.proj.weight", 4)[0]
    depth = source.count("blocks.{i}.norm1.weight")
    token, registers = "cls_token" in source, 0
    if "reg_token" in source:
        registers = source.shape("reg_token", 3)[1]
    class_position = False
    if "pos_embed" in source:
        rows = source.shape("pos_embed", 3)[1]
        class_position = source.prefix_positions(rows, (1, 0) if token else (0,)) == 1
    architecture = source.config.get("architecture", "")
    arguments = source.config.get("model_args", {})
    refuse_others(source, _OTHERS)
    for key in sorted(arguments.keys() - _ARGUMENTS):
        raise InputError(f"{source.where}: model_args.{key} is not known here")
    clip = "_clip_" in architecture or (not architecture and "norm_pre.weight" in source)
    activation = arguments.get("act_layer", "gelu_tanh" if _TANH.match(architecture) else "gelu")
    inner = source.shape("blocks.0.mlp.fc2.weight", 2)[1]
    packed = "blocks.0.mlp.fc1.weight" in source
    packed = packed and source.shape("blocks.0.mlp.fc1.weight", 2)[0] == 2 * inner
    swiglu = packed or "blocks.0.mlp.fc1_g.weight" in source
    return ViT, {
        "width": width,
        "depth": depth,
        "patch_size": source.patch_size("patch_embed.proj.weight"),
        "mlp_dim": inner,
        "num_heads": arguments.get("num_heads") or _heads(architecture, width, depth, swiglu),
        "num_classes": source.shape("head.weight", 2)[0] if "head.weight" in source else None,
        "pos_embed": "learned" if "pos_embed" in source else "none",
        "pool": pool(source, token),
        "class_token": token,
        "class_position": class_position,
        "num_registers": registers,
        "mlp": "swiglu" if swiglu else _gelu(activation, source),
        "qkv_bias": "qkv" if "blocks.0.attn.qkv.bias" in source else "none",
        "qk_norm": "blocks.0.attn.q_norm.weight" in source,
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in source else None,
        "pre_norm": "norm_pre.weight" in source,
        "norm_after_pool": "fc_norm.weight" in source,
        "norm_eps": 1e-5 if clip else 1e-6,
    }


def refuse_others(source: Source, others: re.Pattern) -> None:
    """An InputError if config.json names an architecture that the file alone would not tell."""
    architecture = source.config.get("architecture", "")
    if others.match(architecture):
        raise InputError(
            f"{source.where}: {architecture} computes otherwise than the model of its parameters"
        )


def _heads(architecture: str, width: int, depth: int, swiglu: bool) -> int | None:
    """Of an architecture of timm: two have fewer or more than their width tells."""
    giantopt = width == 1536 and depth == 40 and not swiglu  # with SwiGLU it is DINOv2's giant
    if giantopt or architecture == "vit_base_patch16_gap_224":
        return 16
    return default_heads(width, depth)


def pool(source: Source, token: bool) -> str:
    """By config.json, or else by what there is."""
    named = source.config.get("global_pool")
    if named is not None:
        if named not in POOLS:
            raise InputError(
                f"{source.where}: global_pool {named!r} is not one of {', '.join(POOLS)}"
            )
        return POOLS[named]
    if "attn_pool.latent" in source:
        return "map"
    return "gap" if "fc_norm.weight" in source or not token else "cls"


def registers_without_positions(source: Source) -> Source:
    """Adds their positions, where they have some, to the registers themselves: the same numbers."""
    if not {"reg_token", "pos_embed"} <= source.tensors.keys():
        return source
    tokens, table = source.tensors["reg_token"], source.tensors["pos_embed"]
    number, token = tokens.shape[1], int("cls_token" in source)
    possible = (token + number, token, 0)
    if source.prefix_positions(table.shape[1], possible) != token + number or not number:
        return source
    last = token + number
    registers = Tensor(
        tokens.shape, tokens.dtype, lambda: tokens.read() + table.read()[:, token:last]
    )

    def without():
        rows = table.read()
        return np.concatenate([rows[:, :token], rows[:, last:]], axis=1)

    shape = (1, table.shape[1] - number, table.shape[2])
    tensors = {"reg_token": registers, "pos_embed": Tensor(shape, table.dtype, without)}
    return source.replace(tensors={**source.tensors, **tensors})


def _config_of(model: ViT, shapes: Shapes, _: tuple[int, int]) -> dict[str, Any]:
    """timm's config.json of a ViT: an architecture that there is, and what differs from it.

    Raises:
        InputError: the model has what timm's has not.
    """
    if model.stem != "patch" or model.rep_size:
        raise InputError("timm's ViT has stem='patch' and no rep_size")
    if model.pos_embed in ("rope", "none") or model.qkv_bias == "qv":
        raise InputError("timm's ViT has learned positions, and none with qkv_bias='qv'")
    names = {ours: theirs for theirs, ours in POOLS.items()}
    rows, columns = shapes["position_embedding/table"][:2]
    channels = shapes["patch_embedding/kernel"][2]
    size = [rows * model.patch_size, columns * model.patch_size]
    arguments = {
        "img_size": size,
        "in_chans": channels,
        "patch_size": model.patch_size,
        "embed_dim": model.width,
        "depth": model.depth,
        "num_heads": model.num_heads,
        "mlp_ratio": _ratio(model.mlp_dim * (2 if model.mlp == "swiglu" else 1), model.width),
        "global_pool": names[model.pool],
        "class_token": model.class_token,
        "no_embed_class": not (model.class_token and model.class_position),
        "reg_tokens": model.num_registers,
        "qkv_bias": model.qkv_bias == "qkv",
        "qk_norm": model.qk_norm,
        "init_values": model.layer_scale,
        "pre_norm": model.pre_norm,
        "fc_norm": model.norm_after_pool,
    }
    if model.mlp == "gelu_tanh":
        arguments["act_layer"] = "gelu_tanh"
    sizes = {"Ti": "tiny", "S": "small", "B": "base", "L": "large"}
    named = [sizes[n] for n, s in VARIANTS.items() if n in sizes and s[0] == model.width]
    architecture = f"vit_{(named or ['base'])[0]}_patch16_224"
    if model.norm_eps == 1e-5:
        architecture = "vit_base_patch16_clip_224"
    if model.mlp == "swiglu":  # a class, which json cannot name: that of an architecture with one
        architecture = "vit_giant_patch14_dinov2"
    return {
        "architecture": architecture,
        "num_classes": model.num_classes or 0,
        "num_features": model.width,
        "global_pool": names[model.pool],
        "model_args": arguments,
        "pretrained_cfg": {
            **pretrained(model.num_classes, channels, size, "patch_embed.proj", "head"),
            "fixed_input_size": True,
        },
    }


def pretrained(
    num_classes: int | None, channels: int, size: Sequence[int], first: str, head: str
) -> dict[str, Any]:
    """What timm's `pretrained_cfg` says of any model: its images, first layer and head."""
    return {
        "input_size": [channels, *size],
        "num_classes": num_classes or 0,
        "first_conv": first,
        "classifier": head,
    }


def _ratio(wanted: int, width: int) -> float:
    """What gives the number back when timm multiplies and rounds down."""
    ratio = wanted / width
    while int(width * ratio) < wanted:
        ratio = math.nextafter(ratio, math.inf)
    return ratio


def described(config: dict, preprocessing_string: str, classes: Sequence[str]) -> dict[str, Any]:
    """timm's config.json with what is known of images and classes, see `Format.described`."""
    crop = preprocessing.as_timm(preprocessing_string) if preprocessing_string else {}
    config = {**config, "pretrained_cfg": {**config["pretrained_cfg"], **crop}}
    return {"config.json": config | ({"label_names": list(classes)} if classes else {})}


def _gelu(name: str, source: Source) -> str:
    kinds = {"gelu": "gelu", "gelu_tanh": "gelu_tanh"}
    if name not in kinds:
        raise InputError(f"{source.where}: act_layer {name!r} is not one of {', '.join(kinds)}")
    return kinds[name]


def _dinov3_rules(model: ViT) -> list[Rule]:
    return [
        *same("cls_token", "cls"),
        *same("reg_token", "registers"),
        *conv("patch_embed.proj", "patch_embedding"),
        *block(),
        *same("blocks.{i}.attn.q_bias", f"{BLOCK}/attention/query/bias"),
        *same("blocks.{i}.attn.v_bias", f"{BLOCK}/attention/value/bias"),
        *mlp(model.mlp),
        *norm("norm", "norm"),
        *norm("fc_norm", "fc_norm"),
        *linear("head", "head"),
    ]


def _dinov3_fields(source: Source) -> tuple[type[nn.Module], dict[str, Any]]:
    cls, fields = vit_fields(source)
    width = fields["width"]
    return cls, {
        **fields,
        "num_heads": source.config.get("model_args", {}).get("num_heads") or dinov3_heads(width),
        "pos_embed": "rope",
        "qkv_bias": "qv" if "blocks.0.attn.q_bias" in source else fields["qkv_bias"],
        "pool": pool(source, False),
        "norm_eps": 1e-5,
    }


def dinov3_heads(width: int) -> int | None:
    """64 channels each, but in the largest model, which has 128."""
    return width // (128 if width == 4096 else 64) if width % 64 == 0 else None


def _preprocess(source: Source, size: tuple[int, int]) -> tuple[str, bool]:
    crop = {**IMAGENET_CROP, "crop_pct": 0.875} if source.part in _DEIT else CROP
    return preprocessing.of_timm(crop)(source, size)


def _resize(source: Source) -> dict[str, Any]:
    # Torch resized their positions.
    return PLAIN_BICUBIC if source.part in _DEIT else {}


_GAMMAS = ((r"\.gamma_([12])$", r".ls\1.gamma"),)

TIMM = Format(
    name="timm",
    title="timm ViT, DeiT, DeiT III",
    signs=("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "pos_embed"),
    absent=("mask_token", "dist_token", "rope_embed.periods"),
    aliases=_GAMMAS,
    fields=vit_fields,
    rules=vit_rules,
    preprocess=_preprocess,
    resize=_resize,
    unpack=registers_without_positions,
    writes=_config_of,
    described=described,
)

TIMM_DINOV3 = Format(
    name="timm-dinov3",
    title="timm DINOv3",
    # Others of timm.models.eva have rotary positions of another kind, and not both tokens.
    signs=("patch_embed.proj.weight", "blocks.0.ls1.gamma", "cls_token", "reg_token"),
    absent=("mask_token", "rope_embed.periods", "pos_embed"),
    aliases=_GAMMAS,
    fields=_dinov3_fields,
    rules=_dinov3_rules,
    preprocess=preprocessing.of_timm({**IMAGENET_CROP, "crop_pct": 1.0}),
)
