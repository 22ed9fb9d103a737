"""Meta's own files: MAE, DINOv2, DINOv3 (github.com/facebookresearch).

Their blocks have the names that timm gave them.
"""

from typing import Any

import flax.linen as nn
import numpy as np

from vitlab.errors import InputError
from vitlab.models.mae import MAE
from vitlab.models.vit import ViT
from vitlab.ops.positions import sincos_2d
from vitlab.weights import preprocessing
from vitlab.weights.formats.format import Format, Source
from vitlab.weights.formats.timm import (
    BLOCK,
    PLAIN_BICUBIC,
    QKV,
    block,
    dinov3_heads,
    mlp,
    vit_fields,
    vit_rules,
)
from vitlab.weights.table import Rule, below, conv, flat, fused, linear, norm, positions, same


def has_fixed_positions(source: Source, name: str, grid: tuple[int, int]) -> bool:
    """Whether a table [1, 1 + patches, width] is MAE's of sines and cosines."""
    table = source.read(name)
    fixed = sincos_2d(grid, table.shape[-1], endpoint=False)
    fixed = np.asarray(fixed).reshape(1, -1, table.shape[-1])
    zero_first = not table[:, :1].any()
    return bool(zero_first and np.abs(table[:, 1:] - fixed).max() < 1e-5)


def fixed_decoder_positions(source: Source, name: str, grid: tuple[int, int]) -> None:
    """An InputError if a decoder's positions were learned."""
    if not has_fixed_positions(source, name, grid):
        raise InputError(
            f"{source.where}: {source.origin[name]} is not MAE's table of sines and cosines"
        )


def _mae_fields(source: Source) -> tuple[type[nn.Module], dict[str, Any]]:
    _, fields = vit_fields(source)
    grid = source.grid_of(source.shape("pos_embed", 3)[1] - 1)
    fixed = has_fixed_positions(source, "pos_embed", grid)
    if "decoder_embed.weight" not in source:
        # On another grid the source interpolates its table, instead of computing it anew.
        size = (grid[0] * fields["patch_size"], grid[1] * fields["patch_size"])
        fixed = fixed and source.wanted in (None, size)
        return ViT, {**fields, "pos_embed": "sincos2d_mae" if fixed else "learned"}
    fields["pos_embed"] = "sincos2d_mae" if fixed else "learned"
    fixed_decoder_positions(source, "decoder_pos_embed", grid)
    width = source.shape("decoder_embed.weight", 2)[0]
    del fields["num_classes"]
    return MAE, {
        "backbone": (ViT, fields),
        "decoder_width": width,
        "decoder_depth": source.count("decoder_blocks.{i}.norm1.weight"),
        # 16 heads in every published one.
        "decoder_heads": 16 if width % 64 == 0 else None,
    }


def _mae_rules(model: nn.Module) -> list[Rule]:
    if isinstance(model, ViT):
        return vit_rules(model)
    name = "decoder/block_{i}"
    theirs = "decoder_blocks.{i}"
    return [
        *below("backbone", vit_rules(model.backbone)),
        *linear("decoder_embed", "decoder_embed"),
        *flat("mask_token", "mask_token", 2),
        *norm(f"{theirs}.norm1", f"{name}/norm1"),
        *fused(f"{theirs}.attn.qkv.", f"{name}/attention", QKV),
        *linear(f"{theirs}.attn.proj", f"{name}/attention/out"),
        *norm(f"{theirs}.norm2", f"{name}/norm2"),
        *linear(f"{theirs}.mlp.fc1", f"{name}/mlp/fc1"),
        *linear(f"{theirs}.mlp.fc2", f"{name}/mlp/fc2"),
        *norm("decoder_norm", "decoder_norm"),
        *linear("decoder_pred", "decoder_pred"),
    ]


def _mae_preprocess(source: Source, size: tuple[int, int]) -> tuple[str, bool]:
    # main_finetune.py: a crop of 224 / 256 up to 224 pixels, the whole above.
    return preprocessing.torchvision(size, int(min(size) / (224 / 256))), True


def _dinov2_fields(source: Source) -> tuple[type[nn.Module], dict[str, Any]]:
    _, fields = vit_fields(source)
    if fields["width"] % 64 == 0:
        fields["num_heads"] = fields["width"] // 64
    return ViT, fields


# A model that was split for FSDP calls its blocks blocks.CHUNK.INDEX.
_DINO_ALIASES = (
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
    (r"^(register|storage)_tokens$", "reg_token"),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)


def _dinov2_rules(model: ViT) -> list[Rule]:
    return [
        *same("cls_token", "cls"),
        *positions("pos_embed", True),
        *same("reg_token", "registers"),
        *conv("patch_embed.proj", "patch_embedding"),
        *block(),
        *mlp(model.mlp),
        *norm("norm", "norm"),
    ]


def _dinov2_resize(source: Source) -> dict[str, Any]:
    return {} if "reg_token" in source else {"antialias": False, "offset": 0.1}


def _dinov2_preprocess(source: Source, size: tuple[int, int]) -> tuple[str, bool]:
    # Its evaluations take 224 of 256 pixels, whatever the positions were trained for.
    return preprocessing.torchvision(size, round(max(size) * 256 / 224)), size == (224, 224)


def _dinov3_fields(source: Source) -> tuple[type[nn.Module], dict[str, Any]]:
    _, fields = vit_fields(source)
    periods = source.read("rope_embed.periods").astype(np.float64).reshape(-1)
    # Its published models have 100, some files what bfloat16 made of its powers.
    powers = 100.0 ** (np.arange(len(periods)) / len(periods))
    rounded = np.abs(periods / powers - 1).max() > 1e-6
    masked = "blocks.0.attn.qkv.bias_mask" in source
    return ViT, {
        **fields,
        "num_heads": dinov3_heads(fields["width"]),
        "pos_embed": "rope",
        "rope_periods": tuple(periods.tolist()) if rounded else None,
        "qkv_bias": "qv" if masked else fields["qkv_bias"],
        "norm_eps": 1e-5,
    }


def _dinov3_rules(model: ViT) -> list[Rule]:
    def unmasked(arrays, _):
        bias, mask = arrays
        if not np.array_equal(mask, np.repeat([1, 0, 1], len(mask) // 3)):
            raise InputError("attn.qkv.bias_mask does not leave out exactly the keys' biases")
        query, _, value = np.split(bias, 3)
        return [query, value]

    masked = Rule(
        ("blocks.{i}.attn.qkv.bias", "blocks.{i}.attn.qkv.bias_mask"),
        (f"{BLOCK}/attention/query/bias", f"{BLOCK}/attention/value/bias"),
        unmasked,
    )
    return [
        *same("cls_token", "cls"),
        *same("reg_token", "registers"),
        *conv("patch_embed.proj", "patch_embedding"),
        masked,
        *block(),
        *mlp(model.mlp),
        *norm("norm", "norm"),
        *linear("head", "head"),
    ]


def _dinov3_preprocess(source: Source, size: tuple[int, int]) -> tuple[str, bool]:
    # make_transform of its README: the whole image to a square.
    return preprocessing.squash(size, "bilinear", preprocessing.IMAGENET), True


def _is_mae(source: Source) -> bool:
    """Whether a ViT is MAE's: its positions are the fixed ones, or its fine-tuning wrote it."""
    if "architecture" in source.config:  # timm's
        return False
    if "fc_norm.weight" in source and source.part == "model":
        return True
    grid = source.possible_grid(source.shape("pos_embed", 3)[1] - 1)
    return grid is not None and has_fixed_positions(source, "pos_embed", grid)


_DINO_UNUSED = {
    r"mask_token": "of the pretraining",
    r"(dino_head|ibot_head|dino_loss|ibot_patch_loss|gram_backbone)\..*": "of the pretraining",
    r"local_cls_norm\..*": "for small crops in the pretraining",
    r"rope_embed\.periods": "a setting of the model",
}

MAE_FORMAT = Format(
    name="mae",
    title="MAE",
    signs=("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "decoder_embed.weight"),
    fields=_mae_fields,
    rules=_mae_rules,
    preprocess=_mae_preprocess,
    unused={"decoder_pos_embed": "fixed sines and cosines"},
    resize=lambda source: PLAIN_BICUBIC,
)

# What MAE's code fine-tunes, or publishes without its decoder: the names are timm's.
MAE_VIT = Format(
    name="mae-vit",
    title="MAE, encoder or fine-tuned",
    signs=("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "pos_embed", "cls_token"),
    absent=("mask_token", "reg_token", "dist_token", "norm_pre.weight", "blocks.0.ls1.gamma"),
    accepts=_is_mae,
    fields=_mae_fields,
    rules=_mae_rules,
    preprocess=_mae_preprocess,
    resize=lambda source: PLAIN_BICUBIC,
)

DINOV2 = Format(
    name="dinov2",
    title="DINOv2",
    signs=("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "mask_token", "pos_embed"),
    absent=("decoder_embed.weight",),
    prefixes=("", "backbone."),
    aliases=_DINO_ALIASES,
    fields=_dinov2_fields,
    rules=_dinov2_rules,
    preprocess=_dinov2_preprocess,
    unused=_DINO_UNUSED,
    resize=_dinov2_resize,
)

DINOV3 = Format(
    name="dinov3",
    title="DINOv3",
    signs=("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "rope_embed.periods"),
    prefixes=("", "backbone."),
    aliases=_DINO_ALIASES,
    fields=_dinov3_fields,
    rules=_dinov3_rules,
    preprocess=_dinov3_preprocess,
    unused=_DINO_UNUSED,
)
