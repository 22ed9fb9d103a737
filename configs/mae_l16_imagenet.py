"""MAE: ViT-L/16 pretrained on ImageNet-1k without labels (He et al., arXiv:2111.06377).

    python -m vitlab.main --config configs/mae_l16_imagenet.py --workdir runs/mae_l16

Published, after 1600 epochs: 85.95 % top-1 fine-tuned (50 epochs, layer decay 0.75, stochastic
depth 0.2). Not yet run to the end with vitlab. Needs `imagenet2012` prepared by TFDS as
ArrayRecord. The numbers are those of github.com/facebookresearch/mae.
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `epochs=N` (the paper's ablations take 800, the released weights 1600)."""
    arg = parse_arg(arg, epochs=800)
    bicubic = 'method="bicubic", antialias=True'
    crop = f'inception_crop(224, area_min=20, ratio_max=1.3333, sampling="area", {bicubic})'
    evaluation = f'decode|resize_small(256, {bicubic})|central_crop(224)|normalize("imagenet")'

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "mae"
    config.model = dict(
        backbone=dict(name="vit", variant="L/16", pos_embed="sincos2d_mae", weight_init="mae"),
        mask_ratio=0.75,
        decoder_width=512,
        decoder_depth=8,
        decoder_heads=16,
    )
    config.loss = dict(norm_pix=True)
    config.data = dict(
        source="tfds:imagenet2012",
        split="train",
        preprocess=f'decode|{crop}|flip_lr|normalize("imagenet")',
        workers=32,
    )
    config.batch_size = 4096
    config.total_epochs = arg.epochs
    config.optimizer = dict(
        name="adamw",
        lr=1.5e-4 * 4096 / 256,
        weight_decay=0.05,
        args=dict(b2=0.95),
        # The reference decays all that is no vector, so these two tokens as well.
        rules=[
            dict(pattern=".*kernel|backbone/cls|mask_token"),
            dict(pattern=".*", weight_decay=0.0),
        ],
    )
    config.schedule = dict(name="cosine", warmup_epochs=min(40, arg.epochs / 5))
    config.evaluators = dict(
        val=dict(kind="reconstruction", split="validation", preprocess=evaluation, every_epochs=20),
        features=dict(
            kind="features",
            split="validation",
            preprocess=evaluation,
            every_epochs=20,
            features=dict(train_split="train[:10%]"),
        ),
    )
    config.checkpoint = dict(every_epochs=5, keep=2)
    config.logging = dict(every_steps=100)
    return config
