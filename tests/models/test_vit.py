import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from vitlab.errors import InputError
from vitlab.models.vit import ViT
from vitlab.ops.positions import resize_position_embedding

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
TINY = {"patch_size": 8, "width": 24, "depth": 2, "mlp_dim": 48, "num_heads": 3}
GRID = (2, 3)  # of the images below


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 24, 3)), jnp.float32)


def drawn(model, images, seed=0):
    """Variables without a zero or a one in them, so that no parameter is idle."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    rng = np.random.default_rng(seed)
    leaves, tree = jax.tree.flatten(shapes)
    return tree.unflatten(jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype) for x in leaves)


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


def from_torch(params, class_position):
    tree = {}
    for name, value in params.items():
        name = rename(name, TORCH_NAMES)
        if name.endswith("pos_embed"):
            if class_position:
                tree["cls_position"], value = value[:, :1], value[:, 1:]
            tree["position_embedding/table"] = value.reshape(*GRID, -1)
            continue
        if name.endswith(".weight"):
            kind = "scale" if value.ndim == 1 else "kernel"
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
            name = name.removesuffix("weight") + kind
        parts = {".qkv.": (".query.", ".key.", ".value."), ".kv.": (".key.", ".value.")}
        if re.search(r"\.mlp\.fc1\.", name) and "norm" not in name and value.shape[-1] == 2 * 24:
            parts[".fc1."] = (".gate.", ".fc1.") if "vit_avg" in params else (".fc1.",)
        fused = [old for old in parts if old in name] or [""]
        news = parts.get(fused[0], ("",))
        for new, piece in zip(news, np.split(value, len(news), axis=-1), strict=True):
            tree[name.replace(fused[0], new).replace(".", "/")] = piece
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
