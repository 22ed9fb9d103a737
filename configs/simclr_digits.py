"""SimCLR on scikit-learn's scanned digits: nothing to download, a look at what it learns.

python -m vitlab.main --config configs/simclr_digits.py --workdir runs/simclr_digits

Takes about a minute and a half on two CPU cores; what came of it is in `experiments/ssl`.
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `epochs=N`."""
    arg = parse_arg(arg, epochs=30)
    pixels = "decode(channels=1)|value_range(-1,1)"

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "simclr"
    config.model = dict(
        backbone=dict(
            name="vit",
            width=64,
            depth=4,
            num_heads=4,
            patch_size=2,
            pool="gap",
            pos_embed="sincos2d_mae",
        ),
        projector_layers=2,
        projector_dim=32,
    )
    config.loss = dict(temperature=0.2)
    # A mirrored digit is another one, and eight pixels bear no small crop and no blur.
    config.augment = dict(
        crop_area=(0.4, 1.0),
        crop_method="bilinear",
        flip=0.0,
        color_jitter=(0.4, 0.4, 0.0, 0.0),
        greyscale=0.0,
        blur=(0.0, 0.0),
    )
    config.data = dict(source="digits", preprocess=pixels)
    config.batch_size = 256
    config.total_epochs = arg.epochs
    config.optimizer = dict(name="adamw", lr=2e-3, weight_decay=0.05)
    config.schedule = dict(name="cosine", warmup_epochs=min(3, arg.epochs / 5))
    config.evaluators = dict(
        test=dict(kind="contrast", split="test", preprocess=pixels, every_epochs=10),
        features=dict(
            kind="features",
            split="test",
            preprocess=pixels,
            every_epochs=10,
            features=dict(protocols=("knn", "logistic")),
        ),
    )
    config.checkpoint = dict(every_epochs=10, keep=1)
    config.logging = dict(every_steps=50)
    return config
