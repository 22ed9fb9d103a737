"""Digits in coloured scenes, one by one: EoMT from scratch, on a laptop, with nothing to download.

    python -m vitlab.main --config configs/eomt_digit_scenes.py

Reached an AP50 of masks of 0.788, 0.723 and 0.771, a PQ of 0.552, 0.506 and 0.550 and an mIoU of
0.687, 0.658 and 0.685 on the 1,000 scenes for testing in three runs, the first in 15:14 on two
cores of an AMD EPYC (`experiments/segmentation`).
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `epochs=N`."""
    arg = parse_arg(arg, epochs=14)

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "universal_segmentation"
    config.model = dict(
        name="eomt",
        backbone=dict(
            name="vit", width=96, depth=5, num_heads=3, patch_size=8, stem="conv", pool="gap"
        ),
        num_queries=12,
        num_blocks=2,
        masked_attention=False,  # with it a step takes a third longer
    )
    config.data = dict(
        source="digit_scenes",
        split="train",
        preprocess="decode|scale_jitter(64,0.8,1.25)|pad_segments(6)|value_range(-1,1)",
    )
    config.batch_size = 16
    config.total_epochs = arg.epochs
    config.optimizer = dict(
        name="muon", lr=2e-3, weight_decay=0.05, clip_norm=1.0, args=dict(consistent_rms=0.2)
    )
    config.schedule = dict(name="cosine", warmup_steps=200)
    config.ema_decay = 0.998
    config.evaluators = dict(
        test=dict(
            kind="segmentation",
            split="test",
            preprocess="decode|pad_segments(6)|value_range(-1,1)",
            every_epochs=2,
        ),
    )
    config.checkpoint = dict(every_epochs=2, keep=1)
    config.logging = dict(every_steps=100)
    return config
