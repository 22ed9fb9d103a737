"""Your own images without labels: a MAE whose encoder is the ViT of `image_folder`.

    python -m vitlab.main --config configs/mae_image_folder.py:path=DIR --workdir runs/mae
    python -m vitlab.main --config configs/image_folder.py:path=LABELLED \\
        --config.init_from=runs/mae

Every image below `DIR` is taken, of any mode and size; a twentieth is held out, and its
reconstructions are in the report. There is no published number to compare with.
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `path=DIR`, `size=64` (pixels), `epochs=200`."""
    arg = parse_arg(arg, path="data/images", size=64, epochs=200)
    bicubic = 'method="bicubic", antialias=True'
    crop = f'inception_crop({arg.size}, area_min=20, ratio_max=1.3333, sampling="area", {bicubic})'
    evaluation = f"decode|resize_small({arg.size}, {bicubic})|central_crop({arg.size})"
    normalize = 'normalize("imagenet")'

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "mae"
    config.model = dict(
        backbone=dict(name="vit", width=192, depth=6, num_heads=3, patch_size=8, pool="gap"),
        decoder_width=96,
        decoder_depth=2,
        decoder_heads=3,
    )
    config.data = dict(
        source=f"images:{arg.path}",
        split="train[:95%]",
        preprocess=f"decode|{crop}|flip_lr|{normalize}",
        on_error="skip",
        workers=2,
    )
    config.batch_size = 128
    config.total_epochs = arg.epochs
    config.optimizer = dict(name="adamw", lr=1e-3, weight_decay=0.05, args=dict(b2=0.95))
    config.schedule = dict(name="cosine", warmup_epochs=min(10, arg.epochs / 10))
    config.evaluators = dict(
        val=dict(
            kind="reconstruction",
            split="train[95%:]",
            preprocess=f"{evaluation}|{normalize}",
            every_epochs=10,
            on_error="skip",
        ),
        features=dict(
            kind="features",
            split="train[95%:]",
            preprocess=f"{evaluation}|{normalize}",
            every_epochs=10,
            on_error="skip",
            features=dict(protocols=()),  # which would need labels; the alarms do not
        ),
    )
    config.checkpoint = dict(every_epochs=10, keep=1)
    config.logging = dict(every_steps=20)
    return config
