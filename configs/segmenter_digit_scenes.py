"""Digits in coloured scenes, a class for each pixel: on a laptop, with nothing to download.

    python -m vitlab.main --config configs/segmenter_digit_scenes.py

RESULT
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `epochs=N`."""
    arg = parse_arg(arg, epochs=6)

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "segmentation"
    config.model = dict(
        name="segmenter",
        backbone=dict(name="resnet", variant="18", stem="small", depths=(1, 2), widths=(32, 64)),
        decoder="mask",
        depth=1,
        num_heads=2,
        mlp_dim=128,
        dropout=0.0,
    )
    config.data = dict(
        source="digit_scenes",
        split="train",
        preprocess="decode|scale_jitter(64,0.8,1.25)|semantic|value_range(-1,1)",
    )
    config.batch_size = 16
    config.total_epochs = arg.epochs
    config.loss = dict(dice=1.0)
    config.optimizer = dict(name="adamw", lr=2e-3, weight_decay=0.05, clip_norm=1.0)
    config.schedule = dict(name="cosine", warmup_steps=100)
    config.ema_decay = 0.998
    config.evaluators = dict(
        test=dict(
            kind="segmentation",
            split="test",
            preprocess="decode|semantic|value_range(-1,1)",
            every_epochs=1,
        ),
    )
    config.checkpoint = dict(every_epochs=2, keep=1)
    config.logging = dict(every_steps=50)
    return config
