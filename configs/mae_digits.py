"""A tiny MAE on scikit-learn's scanned digits: nothing to download, a look at what it learns.

python -m vitlab.main --config configs/mae_digits.py --workdir runs/mae_digits

Takes about a minute on two CPU cores; what came of it is in `experiments/ssl`.
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `epochs=N`."""
    arg = parse_arg(arg, epochs=60)
    pixels = "decode(channels=1)|value_range(-1,1)"

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "mae"
    config.model = dict(
        backbone=dict(
            name="vit",
            width=64,
            depth=4,
            num_heads=4,
            patch_size=2,
            pool="gap",
            pos_embed="sincos2d_mae",
            weight_init="mae",
        ),
        mask_ratio=0.5,
        decoder_width=32,
        decoder_depth=1,
        decoder_heads=2,
    )
    config.loss = dict(norm_pix=False)  # of four pixels there is little to normalize
    config.data = dict(source="digits", preprocess=pixels)
    config.batch_size = 128
    config.total_epochs = arg.epochs
    config.optimizer = dict(name="adamw", lr=3e-3, weight_decay=0.05, args=dict(b2=0.95))
    config.schedule = dict(name="cosine", warmup_epochs=min(5, arg.epochs / 5))
    config.evaluators = dict(
        test=dict(kind="reconstruction", split="test", preprocess=pixels, every_epochs=10),
        features=dict(
            kind="features",
            split="test",
            preprocess=pixels,
            every_epochs=10,
            features=dict(protocols=("knn", "logistic")),
        ),
    )
    config.checkpoint = dict(every_epochs=10, keep=1)
    config.logging = dict(every_steps=100)
    return config
