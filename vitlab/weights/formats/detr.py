"""transformers' DETR (github.com/huggingface/transformers), with either of its ResNets."""

from typing import Any

import flax.linen as nn

from vitlab.errors import InputError
from vitlab.models.detr import DETR
from vitlab.weights import preprocessing
from vitlab.weights.formats.convnets import BATCHES, resnet_fields, resnet_rules
from vitlab.weights.formats.format import Format, Source
from vitlab.weights.table import Rule, below, conv, linear, norm, same

_BACKBONE = "backbone."


def _fields(source: Source) -> tuple[type[nn.Module], dict[str, Any]]:
    config = source.config
    if config.get("dilation"):
        raise InputError(f"{source.where}: ResNet has no dilation, which this DETR (DC5) needs")
    heads = config.get("encoder_attention_heads")
    if config.get("decoder_attention_heads", heads) != heads:
        raise InputError(f"{source.where}: DETR has as many heads in the encoder as in the decoder")
    if config.get("activation_function", "relu") != "relu":
        raise InputError(f"{source.where}: DETR has no {config['activation_function']}, only relu")
    queries, width = source.shape("query_position_embeddings.weight", 2)
    cls, backbone = resnet_fields(_below(source, _BACKBONE))
    return DETR, {
        "backbone": (cls, {**backbone, "norm": "frozen"}),
        "num_classes": source.shape("class_labels_classifier.weight", 2)[0],
        "num_queries": queries,
        "width": width,
        "num_heads": heads or (8 if width == 256 else None),
        "mlp_dim": source.shape("encoder.layers.0.fc1.weight", 2)[0],
        "encoder_layers": source.count("encoder.layers.{i}.fc1.weight"),
        "decoder_layers": source.count("decoder.layers.{i}.fc1.weight"),
        # Its ResNet sees padding as zeros.
        "mask_backbone": False,
    }


def _rules(model: DETR) -> list[Rule]:
    kernel = conv("input_projection", "input_projection")
    kernel[0] = Rule(
        kernel[0].theirs,
        kernel[0].ours,
        lambda a, _: [a[0][:, :, 0, 0].T],
    )
    rules = [
        *below("backbone", _of_backbone(resnet_rules(model.backbone))),
        *kernel,
        *same("query_position_embeddings.weight", "query_positions"),
        *norm("decoder.layernorm", "decoder_norm"),
        *linear("class_labels_classifier", "class_head"),
        *linear("bbox_predictor.layers.{i}", "box_head/layer_{i}"),
    ]
    for part in ("encoder", "decoder"):
        theirs, ours = f"{part}.layers.{{i}}", f"{part}_{{i}}"
        for attention, name in (("self_attn", "attention"), ("encoder_attn", "cross_attention")):
            for letter, kind in zip(("q", "k", "v", "out"), _KINDS, strict=True):
                rules += linear(f"{theirs}.{attention}.{letter}_proj", f"{ours}/{name}/{kind}")
        rules += [
            *norm(f"{theirs}.self_attn_layer_norm", f"{ours}/norm1"),
            *norm(f"{theirs}.encoder_attn_layer_norm", f"{ours}/norm_cross"),
            *linear(f"{theirs}.fc1", f"{ours}/mlp/fc1"),
            *linear(f"{theirs}.fc2", f"{ours}/mlp/fc2"),
            *norm(f"{theirs}.final_layer_norm", f"{ours}/norm2"),
        ]
    return rules


_KINDS = ("query", "key", "value", "out")


def _below(source: Source, prefix: str) -> Source:
    tensors = {n.removeprefix(prefix): t for n, t in source.tensors.items() if n.startswith(prefix)}
    origin = {n.removeprefix(prefix): o for n, o in source.origin.items() if n.startswith(prefix)}
    return source.replace(tensors=tensors, origin=origin)


def _of_backbone(rules: list[Rule]) -> list[Rule]:
    return [Rule(tuple(_BACKBONE + n for n in rule.theirs), rule.ours, rule.load) for rule in rules]


# The names of transformers' ResNet in the place of timm's; those of a model in memory in the place
# of a file's.
_ALIASES = (
    (r"^backbone\.(conv_encoder\.)?model\.", "backbone."),
    (r"^backbone\.embedder\.embedder\.convolution\.", "backbone.conv1."),
    (r"^backbone\.embedder\.embedder\.normalization\.", "backbone.bn1."),
    *(
        (rf"^backbone\.encoder\.stages\.{i}\.layers\.(\d+)\.", rf"backbone.layer{i + 1}.\1.")
        for i in range(4)
    ),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    *((rf"\.layer\.{i}\.convolution\.", f".conv{i + 1}.") for i in range(3)),
    *((rf"\.layer\.{i}\.normalization\.", f".bn{i + 1}.") for i in range(3)),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.mlp\.(fc[12])\.", r".\1."),
)

HF_DETR = Format(
    name="hf-detr",
    title="transformers DETR",
    signs=(
        "class_labels_classifier.weight",
        "query_position_embeddings.weight",
        "backbone.conv1.weight",
    ),
    prefixes=("model.",),
    aliases=_ALIASES,
    fields=_fields,
    rules=_rules,
    preprocess=preprocessing.of_hugging_face(
        {
            "size": {"shortest_edge": 800, "longest_edge": 1333},
            "resample": 2,
            "image_mean": preprocessing.IMAGENET[0],
            "image_std": preprocessing.IMAGENET[1],
        }
    ),
    unused=BATCHES,
)
