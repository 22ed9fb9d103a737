"""transformers' DINOv2, with and without registers, and DINOv3.

The names are those of its files; see `hugging_face`.
"""

from typing import Any

import flax.linen as nn

from vitlab.models.vit import ViT
from vitlab.weights import preprocessing
from vitlab.weights.formats.format import Format, Source
from vitlab.weights.formats.hugging_face import (
    BLOCK,
    IMAGENET,
    MEMORY,
    PATCH,
    SQUARE,
    activation,
    qkv_bias,
)
from vitlab.weights.formats.timm import PLAIN_BICUBIC, QKV, dinov3_heads
from vitlab.weights.table import Rule, conv, fused, linear, norm, positions, same


def _dinov2_fields(source: Source) -> tuple[type[nn.Module], dict[str, Any]]:
    config = source.config
    block = "encoder.layer.0"
    width = source.shape(PATCH, 4)[0]
    gated = f"{block}.mlp.weights_out.weight" in source
    last = "weights_out" if gated else "fc2"
    registers = "embeddings.register_tokens"
    return ViT, {
        "width": width,
        "depth": source.count("encoder.layer.{i}.norm1.weight"),
        "patch_size": source.patch_size(PATCH),
        "mlp_dim": source.shape(f"{block}.mlp.{last}.weight", 2)[1],
        "num_heads": config.get("num_attention_heads")
        or (width // 64 if width % 64 == 0 else None),
        "class_token": True,
        "num_registers": source.shape(registers, 3)[1] if registers in source else 0,
        "mlp": "swiglu" if gated else activation(source),
        "qkv_bias": qkv_bias(source, f"{block}.attention.attention.{{}}.bias", QKV),
        "layer_scale": 1.0,
        "norm_eps": config.get("layer_norm_eps", 1e-6),
    }


def _dinov2_rules(model: ViT) -> list[Rule]:
    layer = "encoder.layer.{i}"
    rules = [
        *same("embeddings.cls_token", "cls"),
        *positions("embeddings.position_embeddings", True),
        *same("embeddings.register_tokens", "registers"),
        *conv("embeddings.patch_embeddings.projection", "patch_embedding"),
        *norm(f"{layer}.norm1", f"{BLOCK}/norm1"),
    ]
    for part in QKV:
        rules += linear(f"{layer}.attention.attention.{part}", f"{BLOCK}/attention/{part}")
    return [
        *rules,
        *linear(f"{layer}.attention.output.dense", f"{BLOCK}/attention/out"),
        *same(f"{layer}.layer_scale1.lambda1", f"{BLOCK}/layer_scale1"),
        *norm(f"{layer}.norm2", f"{BLOCK}/norm2"),
        *linear(f"{layer}.mlp.fc1", f"{BLOCK}/mlp/fc1"),
        *linear(f"{layer}.mlp.fc2", f"{BLOCK}/mlp/fc2"),
        *fused(f"{layer}.mlp.weights_in.", f"{BLOCK}/mlp", ("gate", "fc1")),
        *linear(f"{layer}.mlp.weights_out", f"{BLOCK}/mlp/fc2"),
        *linear(f"{layer}.mlp.gate_proj", f"{BLOCK}/mlp/gate"),
        *linear(f"{layer}.mlp.up_proj", f"{BLOCK}/mlp/fc1"),
        *same(f"{layer}.layer_scale2.lambda1", f"{BLOCK}/layer_scale2"),
        *norm("layernorm", "norm"),
    ]


def _dinov2_resize(source: Source) -> dict[str, Any]:
    return {} if "embeddings.register_tokens" in source else PLAIN_BICUBIC


def _dinov3_fields(source: Source) -> tuple[type[nn.Module], dict[str, Any]]:
    config = source.config
    width = source.shape("embeddings.patch_embeddings.weight", 4)[0]
    registers = "embeddings.register_tokens"
    parameters = config.get("rope_parameters") or {}
    theta = config.get("rope_theta", parameters.get("rope_theta", 100.0))
    return ViT, {
        "width": width,
        "depth": source.count("layer.{i}.norm1.weight"),
        "patch_size": source.patch_size("embeddings.patch_embeddings.weight"),
        "mlp_dim": source.shape("layer.0.mlp.down_proj.weight", 2)[1],
        "num_heads": config.get("num_attention_heads") or dinov3_heads(width),
        "pos_embed": "rope",
        "rope_theta": float(theta),
        "class_token": True,
        "num_registers": source.shape(registers, 3)[1] if registers in source else 0,
        "mlp": "swiglu" if "layer.0.mlp.gate_proj.weight" in source else activation(source),
        "qkv_bias": qkv_bias(source, "layer.0.attention.{}_proj.bias", "qkv"),
        "layer_scale": 1.0,
        "norm_eps": config.get("layer_norm_eps", 1e-5),
    }


def _dinov3_rules(model: ViT) -> list[Rule]:
    rules = [
        *same("embeddings.cls_token", "cls"),
        *same("embeddings.register_tokens", "registers"),
        *conv("embeddings.patch_embeddings", "patch_embedding"),
        *norm("layer.{i}.norm1", f"{BLOCK}/norm1"),
    ]
    for letter, part in zip("qkvo", (*QKV, "out"), strict=True):
        rules += linear(f"layer.{{i}}.attention.{letter}_proj", f"{BLOCK}/attention/{part}")
    return [
        *rules,
        *same("layer.{i}.layer_scale1.lambda1", f"{BLOCK}/layer_scale1"),
        *norm("layer.{i}.norm2", f"{BLOCK}/norm2"),
        *linear("layer.{i}.mlp.gate_proj", f"{BLOCK}/mlp/gate"),
        *linear("layer.{i}.mlp.up_proj", f"{BLOCK}/mlp/fc1"),
        *linear("layer.{i}.mlp.down_proj", f"{BLOCK}/mlp/fc2"),
        *same("layer.{i}.layer_scale2.lambda1", f"{BLOCK}/layer_scale2"),
        *norm("norm", "norm"),
    ]


CROP = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "resample": 3}

HF_DINOV2 = Format(
    name="hf-dinov2",
    title="transformers DINOv2",
    signs=(PATCH, "encoder.layer.0.norm1.weight", "encoder.layer.0.layer_scale1.lambda1"),
    prefixes=("", "dinov2.", "dinov2_with_registers.", "backbone."),
    aliases=MEMORY,
    fields=_dinov2_fields,
    rules=_dinov2_rules,
    preprocess=preprocessing.of_hugging_face({**CROP, **IMAGENET}),
    unused={
        r"embeddings\.mask_token": "of the pretraining",
        r"classifier\..*": "a probe of the class token and the mean of the patches",
    },
    resize=_dinov2_resize,
)

HF_DINOV3 = Format(
    name="hf-dinov3",
    title="transformers DINOv3",
    signs=("embeddings.patch_embeddings.weight", "layer.0.attention.q_proj.weight"),
    prefixes=("", "model."),
    fields=_dinov3_fields,
    rules=_dinov3_rules,
    preprocess=preprocessing.of_hugging_face({**SQUARE, **IMAGENET}),
    unused={r"embeddings\.mask_token": "of the pretraining"},
)
