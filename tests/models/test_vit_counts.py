"""ViT against published parameter counts; its outputs: tests/weights/test_formats.py."""

import jax
import jax.numpy as jnp
import pytest

from vitlab.models.vit import ViT

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
