"""ViT against published parameter counts and the reference implementations' outputs."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from vitlab.models.vit import ViT

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
TINY = {"patch_size": 8, "width": 24, "depth": 2, "mlp_dim": 48, "num_heads": 3}
GRID = (2, 3)  # patches of the fixtures' images

# Published sizes: big_vision's, timm's (`sum(p.numel() ...)` of the model named), DINOv3's.
COUNTS = {
    "recipe ViT-S/16": (
        ViT("S/16", num_classes=1000, pos_embed="sincos2d", pool="gap", rep_size=384),
        224,
        22_122_472,
    ),
    "vit_tiny_patch16_224": (ViT("Ti/16", num_classes=1000), 224, 5_717_416),
    "vit_small_patch16_224": (ViT("S/16", num_classes=1000), 224, 22_050_664),
    "vit_base_patch16_224": (ViT("B/16", num_classes=1000), 224, 86_567_656),
    "vit_base_patch32_224": (ViT("B/32", num_classes=1000), 224, 88_224_232),
    "vit_large_patch16_224": (ViT("L/16", num_classes=1000), 224, 304_326_632),
    "vit_huge_patch14_224": (ViT("H/14", num_classes=1000), 224, 632_045_800),
    "vit_giant_patch14_224": (ViT("g/14", num_classes=1000), 224, 1_012_611_432),
    "vit_gigantic_patch14_224": (ViT("G/14", num_classes=1000), 224, 1_844_440_680),
    "deit3_small_patch16_224": (
        ViT("S/16", num_classes=1000, layer_scale=1e-5, class_position=False),
        224,
        22_059_496,
    ),
    "vit_base_patch16_clip_224": (ViT("B/16", pre_norm=True), 224, 85_799_424),
    "vit_so400m_patch14_siglip_224": (ViT("So400m/14", pool="map"), 224, 427_680_704),
    "vit_small_patch14_dinov2": (ViT("S/14", layer_scale=1.0), 518, 22_056_192),
    "vit_small_patch14_reg4_dinov2": (
        ViT("S/14", layer_scale=1.0, num_registers=4, class_position=False),
        518,
        22_057_344,
    ),
    "vit_giant_patch14_dinov2": (
        ViT(
            width=1536,
            depth=40,
            num_heads=24,
            mlp_dim=4096,
            patch_size=14,
            mlp="swiglu",
            layer_scale=1.0,
        ),
        518,
        1_136_479_232,
    ),
    # transformers counts a mask token of 384 with it.
    "DINOv3 ViT-S/16": (
        ViT("S/16", pos_embed="rope", qkv_bias="qv", num_registers=4, layer_scale=1.0),
        224,
        21_596_544 - 384,
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_published_ones(name):
    model, side, count = COUNTS[name]
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == count


def rename(name, table):
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


TORCH_NAMES = [
    (r"^embeddings\.|^model\.", ""),
    (r"^(blocks|layer)\.(\d+)\.", r"encoder.block_\2."),
    (r"patch_embed\.proj|patch_embeddings", "patch_embedding"),
    (r"cls_token", "cls"),
    (r"reg_token|register_tokens", "registers"),
    (r"\.attn\.|\.attention\.", ".attention."),
    (r"\.ls(\d)\.gamma|\.layer_scale(\d)\.lambda1", r".layer_scale\1\2"),
    (r"\.q_proj", ".query"),
    (r"\.k_proj", ".key"),
    (r"\.v_proj", ".value"),
    (r"\.proj\b|\.o_proj", ".out"),
    (r"\.([qk])_norm", lambda m: {"q": ".query_norm", "k": ".key_norm"}[m[1]]),
    (r"gate_proj", "gate"),
    (r"up_proj", "fc1"),
    (r"down_proj", "fc2"),
    (r"attn_pool\.latent", "map_head.probe"),
    (r"attn_pool\.(norm|mlp)", r"map_head.\1"),
    (r"attn_pool\.(q|kv|out)\b", r"map_head.attention.\1"),
    (r"attention\.q\.", "attention.query."),
]


def from_torch(params, class_position=False, packed_swiglu=False):
    fused = {".qkv.": (".query.", ".key.", ".value."), ".kv.": (".key.", ".value.")}
    if packed_swiglu:
        fused[".fc1."] = (".gate.", ".fc1.")
    tree = {}
    for name, value in params.items():
        name = rename(name, TORCH_NAMES)
        if name == "pos_embed":
            if class_position:
                tree["cls_position"], value = value[:, :1], value[:, 1:]
            tree["position_embedding/table"] = value.reshape(*GRID, -1)
            continue
        if name.endswith(".weight"):
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
            name = name.removesuffix("weight") + ("scale" if value.ndim == 1 else "kernel")
        old = next((old for old in fused if old in name), "")
        news = fused.get(old, ("",))
        for new, piece in zip(news, np.split(value, len(news), axis=-1), strict=True):
            tree[(name.replace(old, new) if old else name).replace(".", "/")] = piece
    tree.pop("mask_token", None)
    return tree


BIG_VISION_NAMES = [
    (r"^embedding", "patch_embedding"),
    (r"Transformer/encoderblock_", "encoder/block_"),
    (r"Transformer/encoder_norm", "norm"),
    (r"MAPHead_0/LayerNorm_0", "map_head/norm"),
    (r"MAPHead_0", "map_head"),
    (r"LayerNorm_0", "norm1"),
    (r"LayerNorm_1", "norm2"),
    (r"MultiHeadDotProductAttention_0", "attention"),
    (r"MlpBlock_0/Dense_0", "mlp/fc1"),
    (r"MlpBlock_0/Dense_1", "mlp/fc2"),
    (r"pos_embedding", "position_embedding/table"),
]


def from_big_vision(params):
    tree = {}
    for name, value in params.items():
        name = rename(name, BIG_VISION_NAMES)
        if name == "position_embedding/table":
            value = value.reshape(*GRID, -1)
        elif "attention/out/kernel" in name:
            value = value.reshape(-1, value.shape[-1])
        elif re.search("attention/(query|key|value)", name):
            value = value.reshape(24, -1) if name.endswith("kernel") else value.reshape(-1)
        tree[name] = value
    return tree


ODD = {**TINY, "num_classes": 7}
PARITY = {
    "vit_token": (
        ViT(**ODD, layer_scale=1.0),
        functools.partial(from_torch, class_position=True),
    ),
    "vit_avg": (
        ViT(
            **{**ODD, "mlp_dim": 24},
            pool="gap",
            class_token=True,
            class_position=False,
            num_registers=2,
            norm_after_pool=True,
            qk_norm=True,
            layer_scale=1.0,
            mlp="swiglu",
        ),
        functools.partial(from_torch, packed_swiglu=True),
    ),
    "vit_map": (ViT(**ODD, pool="map", pre_norm=True, mlp="gelu_tanh"), from_torch),
    "vit_dinov3": (
        ViT(
            **{**TINY, "mlp_dim": 40},
            pos_embed="rope",
            num_registers=2,
            qkv_bias="qv",
            layer_scale=1.0,
            mlp="swiglu",
            norm_eps=1e-5,
        ),
        from_torch,
    ),
    "vit_big_vision_gap": (
        ViT(**ODD, pos_embed="sincos2d", pool="gap", rep_size=20, mlp="gelu_tanh"),
        from_big_vision,
    ),
    "vit_big_vision_map": (ViT(**ODD, pool="map", mlp="gelu_tanh"), from_big_vision),
}


@pytest.mark.parametrize("name", PARITY)
def test_agrees_with_the_reference_implementations(name):
    model, convert = PARITY[name]
    fixture = dict(np.load(FIXTURES / f"{name}.npz", allow_pickle=False))
    reference = {k.removeprefix("params/"): v for k, v in fixture.items() if k[:7] == "params/"}
    params = convert(reference)
    images = jnp.asarray(fixture["images"])
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images)["params"])
    expected = {k: v.shape for k, v in flatten_dict(shapes, sep="/").items()}
    assert {k: v.shape for k, v in params.items()} == expected

    variables = {"params": unflatten_dict(params, sep="/")}
    with jax.default_matmul_precision("highest"):
        output, stages = jax.jit(model.apply)(variables, images)
    stages["logits"] = output
    for key in [k for k in fixture if k.startswith("outputs/")]:
        reference = fixture[key]
        error = np.abs(np.asarray(stages[key.removeprefix("outputs/")]) - reference).max()
        print(f"{name} {key} {error:.1e} of {np.abs(reference).max():.2f}")
        assert error <= min(1e-4, 1e-5 * np.abs(reference).max())
