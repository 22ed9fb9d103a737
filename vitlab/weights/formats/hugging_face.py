"""transformers' Vision Transformers (github.com/huggingface/transformers).

The names are those of its files. A model of transformers 5 has others in memory, which are read
too.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn

from vitlab.errors import InputError
from vitlab.models.mae import MAE
from vitlab.models.vit import ViT
from vitlab.weights import preprocessing
from vitlab.weights.formats.facebook import fixed_decoder_positions, has_fixed_positions
from vitlab.weights.formats.format import Format, Shapes, Source, default_heads
from vitlab.weights.formats.timm import PLAIN_BICUBIC, QKV
from vitlab.weights.table import Rule, below, conv, flat, fused, linear, norm, positions, same

BLOCK = "encoder/block_{i}"
ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
PATCH = "embeddings.patch_embeddings.projection.weight"
SQUARE = {"size": {"height": 224, "width": 224}, "resample": 2}
IMAGENET = {"image_mean": preprocessing.IMAGENET[0], "image_std": preprocessing.IMAGENET[1]}


def vit_block(theirs: str, ours: str) -> list[Rule]:
    """A block as ViT and ViTMAE have it."""
    rules = norm(f"{theirs}.layernorm_before", f"{ours}/norm1")
    for part in QKV:
        rules += linear(f"{theirs}.attention.attention.{part}", f"{ours}/attention/{part}")
    return [
        *rules,
        *linear(f"{theirs}.attention.output.dense", f"{ours}/attention/out"),
        *norm(f"{theirs}.layernorm_after", f"{ours}/norm2"),
        *linear(f"{theirs}.intermediate.dense", f"{ours}/mlp/fc1"),
        *linear(f"{theirs}.output.dense", f"{ours}/mlp/fc2"),
    ]


def _vit_rules(model: ViT) -> list[Rule]:
    return [
        *same("embeddings.cls_token", "cls"),
        *positions("embeddings.position_embeddings", True),
        *conv("embeddings.patch_embeddings.projection", "patch_embedding"),
        *vit_block("encoder.layer.{i}", BLOCK),
        *norm("layernorm", "norm"),
        *linear("pooler.dense", "pre_logits"),
        *linear("classifier", "head"),
    ]


def _vit_fields(source: Source) -> tuple[type[nn.Module], dict[str, Any]]:
    config = source.config
    width = source.shape(PATCH, 4)[0]
    depth = source.count("encoder.layer.{i}.layernorm_before.weight")
    pooler, classes = "pooler.dense.weight" in source, "classifier.weight" in source
    return ViT, {
        "width": width,
        "depth": depth,
        "patch_size": source.patch_size(PATCH),
        "mlp_dim": source.shape("encoder.layer.0.intermediate.dense.weight", 2)[0],
        "num_heads": config.get("num_attention_heads") or default_heads(width, depth),
        "num_classes": source.shape("classifier.weight", 2)[0] if classes else None,
        "class_token": True,
        "rep_size": source.shape("pooler.dense.weight", 2)[0] if pooler else False,
        "mlp": activation(source),
        "qkv_bias": qkv_bias(source, "encoder.layer.0.attention.attention.{}.bias", QKV),
        "norm_eps": config.get("layer_norm_eps", 1e-12),
    }


def _vit_config(model: ViT, shapes: Shapes, _: tuple[int, int]) -> dict[str, Any]:
    """config.json of a ViT; an InputError where transformers' ViT has not what the model has."""
    wrong = {
        "stem": model.stem != "patch",
        "pos_embed": model.pos_embed != "learned",
        "class_position": not model.class_position,
        "pool": model.pool != "cls",
        "num_registers": model.num_registers > 0,
        "mlp": model.mlp not in ACTIVATIONS.values(),
        "qkv_bias": model.qkv_bias == "qv",
        "qk_norm": model.qk_norm,
        "layer_scale": model.layer_scale is not None,
        "pre_norm": model.pre_norm,
        "norm_after_pool": model.norm_after_pool,
        "rep_size": bool(model.rep_size)
        and (model.num_classes is not None or model.rep_size not in (True, model.width)),
    }
    for field in [field for field, is_wrong in wrong.items() if is_wrong]:
        raise InputError(f"transformers' ViT has no {field}={getattr(model, field)!r}")
    rows, columns = shapes["position_embedding/table"][:2]
    if rows != columns:
        raise InputError(f"transformers' ViT has no {rows} x {columns} patches: only squares")
    kinds = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    config = {
        "architectures": ["ViTForImageClassification" if model.num_classes else "ViTModel"],
        "model_type": "vit",
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.mlp_dim,
        "hidden_act": kinds[model.mlp],
        "layer_norm_eps": model.norm_eps,
        "image_size": rows * model.patch_size,
        "patch_size": model.patch_size,
        "num_channels": shapes["patch_embedding/kernel"][2],
        "qkv_bias": model.qkv_bias == "qkv",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if model.num_classes:
        # Which is how transformers knows their number.
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(model.num_classes)}
    return config


def _vit_described(config: dict, string: str, classes: Sequence[str]) -> dict[str, Any]:
    if classes:
        config = {
            **config,
            "id2label": {str(i): name for i, name in enumerate(classes)},
            "label2id": {name: i for i, name in enumerate(classes)},
        }
    files = {"config.json": config}
    if string:
        files["preprocessor_config.json"] = preprocessing.as_hugging_face(string)
    return files


def _vit_file_name(model: ViT, name: str) -> str:
    return f"vit.{name}" if model.num_classes and not name.startswith("classifier") else name


def _mae_fields(source: Source) -> tuple[type[nn.Module], dict[str, Any]]:
    _, fields = _vit_fields(source)
    table = "embeddings.position_embeddings"
    grid = source.grid_of(source.shape(table, 3)[1] - 1)
    if has_fixed_positions(source, table, grid):
        fields["pos_embed"] = "sincos2d_mae"
    del fields["num_classes"], fields["rep_size"]
    fixed_decoder_positions(source, "decoder.decoder_pos_embed", grid)
    width = source.shape("decoder.decoder_embed.weight", 2)[0]
    return MAE, {
        "backbone": (ViT, fields),
        "mask_ratio": source.config.get("mask_ratio", 0.75),
        "decoder_width": width,
        "decoder_depth": source.count("decoder.decoder_encoder.layer.{i}.layernorm_before.weight"),
        "decoder_heads": source.config.get("decoder_num_attention_heads")
        or (16 if width % 64 == 0 else None),
    }


def _mae_rules(model: MAE) -> list[Rule]:
    return [
        *below("backbone", _vit_rules(model.backbone)),
        *linear("decoder.decoder_embed", "decoder_embed"),
        *flat("decoder.mask_token", "mask_token", 2),
        *vit_block("decoder.decoder_encoder.layer.{i}", "decoder/block_{i}"),
        *norm("decoder.decoder_norm", "decoder_norm"),
        *linear("decoder.decoder_pred", "decoder_pred"),
    ]


def _siglip_fields(source: Source) -> tuple[type[nn.Module], dict[str, Any]]:
    config = source.config.get("vision_config", source.config)
    source = source.replace(config=config)
    width = source.shape("embeddings.patch_embedding.weight", 4)[0]
    depth = source.count("encoder.layers.{i}.layer_norm1.weight")
    source.prefix_positions(source.shape("embeddings.position_embedding.weight", 2)[0], (0,))
    return ViT, {
        "width": width,
        "depth": depth,
        "patch_size": source.patch_size("embeddings.patch_embedding.weight"),
        "mlp_dim": source.shape("encoder.layers.0.mlp.fc1.weight", 2)[0],
        "num_heads": config.get("num_attention_heads") or default_heads(width, depth),
        "pool": "map" if "head.probe" in source else "none",
        "mlp": activation(source, "gelu_pytorch_tanh"),
        "norm_eps": config.get("layer_norm_eps", 1e-6),
    }


def _siglip_rules(model: ViT) -> list[Rule]:
    table = Rule(
        ("embeddings.position_embedding.weight",),
        ("position_embedding/table",),
        lambda a, grid: [a[0].reshape(*grid, -1)],
    )
    rules = [
        *conv("embeddings.patch_embedding", "patch_embedding"),
        table,
        *norm("encoder.layers.{i}.layer_norm1", f"{BLOCK}/norm1"),
    ]
    for name, part in zip(("q", "k", "v", "out"), (*QKV, "out"), strict=True):
        rules += linear(f"encoder.layers.{{i}}.self_attn.{name}_proj", f"{BLOCK}/attention/{part}")
    return [
        *rules,
        *norm("encoder.layers.{i}.layer_norm2", f"{BLOCK}/norm2"),
        *linear("encoder.layers.{i}.mlp.fc1", f"{BLOCK}/mlp/fc1"),
        *linear("encoder.layers.{i}.mlp.fc2", f"{BLOCK}/mlp/fc2"),
        *norm("post_layernorm", "norm"),
        *same("head.probe", "map_head/probe"),
        *fused("head.attention.in_proj_", "map_head/attention", QKV),
        *linear("head.attention.out_proj", "map_head/attention/out"),
        *norm("head.layernorm", "map_head/norm"),
        *linear("head.mlp.fc1", "map_head/mlp/fc1"),
        *linear("head.mlp.fc2", "map_head/mlp/fc2"),
    ]


def activation(source: Source, default: str = "gelu") -> str:
    """The MLP's kind, as config.json names it."""
    name = source.config.get("hidden_act", default)
    if name not in ACTIVATIONS:
        legal = ", ".join(ACTIVATIONS)
        raise InputError(f"{source.where}: hidden_act {name!r} is not one of {legal}")
    return ACTIVATIONS[name]


def qkv_bias(source: Source, template: str, parts) -> str:
    """Which of query, key and value have a bias."""
    have = "".join(part[0] for part in parts if template.format(part) in source)
    if have not in ("qkv", "qv", ""):
        raise InputError(f"{source.where}: only {have} of query, key, value have a bias")
    return have or "none"


# Names of transformers 5 in memory, and those that it writes.
MEMORY = (
    (r"^layers\.(\d+)\.", r"encoder.layer.\1."),
    (r"^decoder\.decoder_layers\.(\d+)\.", r"decoder.decoder_encoder.layer.\1."),
    (r"(layer\.\d+\.attention)\.q_proj\.", r"\1.attention.query."),
    (r"(layer\.\d+\.attention)\.k_proj\.", r"\1.attention.key."),
    (r"(layer\.\d+\.attention)\.v_proj\.", r"\1.attention.value."),
    (r"(layer\.\d+\.attention)\.o_proj\.", r"\1.output.dense."),
    (r"\.mlp\.down_proj\.", ".mlp.weights_out."),
)
_MLP = ((r"(layer\.\d+)\.mlp\.fc1\.", r"\1.intermediate.dense."),)
_MLP += ((r"(layer\.\d+)\.mlp\.fc2\.", r"\1.output.dense."),)

HF_VIT = Format(
    name="hf-vit",
    title="transformers ViT",
    signs=(PATCH, "encoder.layer.0.layernorm_before.weight", "embeddings.cls_token"),
    absent=("decoder.decoder_embed.weight",),
    prefixes=("vit.", ""),
    aliases=MEMORY + _MLP,
    fields=_vit_fields,
    rules=_vit_rules,
    preprocess=preprocessing.of_hugging_face(SQUARE),
    unused={r"embeddings\.mask_token": "of a pretraining"},
    resize=lambda source: PLAIN_BICUBIC,
    writes=_vit_config,
    described=_vit_described,
    file_name=_vit_file_name,
)

HF_MAE = Format(
    name="hf-mae",
    title="transformers ViTMAE",
    signs=(PATCH, "encoder.layer.0.layernorm_before.weight", "decoder.decoder_embed.weight"),
    prefixes=("vit.", ""),
    aliases=MEMORY + _MLP,
    fields=_mae_fields,
    rules=_mae_rules,
    preprocess=preprocessing.of_hugging_face({**SQUARE, **IMAGENET}),
    unused={
        r"decoder\.decoder_pos_embed": "fixed sines and cosines",
    },
    resize=lambda source: PLAIN_BICUBIC,
)

HF_SIGLIP = Format(
    name="hf-siglip",
    title="transformers SigLIP, vision tower",
    signs=("embeddings.patch_embedding.weight", "encoder.layers.0.self_attn.q_proj.weight"),
    absent=("embeddings.class_embedding",),
    prefixes=("vision_model.", ""),
    fields=_siglip_fields,
    rules=_siglip_rules,
    preprocess=preprocessing.of_hugging_face({**SQUARE, "resample": 3}),
    unused={
        r"text_model\..*": "of the text tower",
        r"logit_(scale|bias)": "of the text tower",
        r"embeddings\.position_ids": "numbers from 0 on",
    },
    resize=lambda source: PLAIN_BICUBIC,
)
