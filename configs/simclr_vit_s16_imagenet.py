"""SimCLR with a ViT-S/16 on ImageNet-1k, in the settings of MoCo v3 (arXiv:2104.02057).

    python -m vitlab.main --config configs/simclr_vit_s16_imagenet.py --workdir runs/simclr_s16
    vitlab evaluate runs/simclr_s16 linear few_shot --train_split train

Published: MoCo v3 itself reaches 73.2 % top-1 with a linear probe after 300 epochs. Not yet run to
the end with vitlab. Needs `imagenet2012` prepared by TFDS as ArrayRecord. AdamW, the frozen random
patch embedding that stops the training spikes, and the two unlike views are those of
github.com/facebookresearch/moco-v3. What differs: no momentum encoder and no predictor; the views
are cut from a random square of the image, its shorter side at 256 pixels; kernels alone decay; the
patch kernel is drawn as LeCun's normal; the last batch norm has a scale.
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `epochs=N`."""
    arg = parse_arg(arg, epochs=300)
    resize = "decode|resize_small(256)"

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "simclr"
    config.model = dict(
        backbone=dict(name="vit", variant="S/16", num_heads=12, pos_embed="sincos2d_mae"),
        projector_layers=3,
        projector_width=4096,
        projector_dim=256,
    )
    config.loss = dict(temperature=0.2)
    config.augment = dict(
        size=224,
        color_jitter=(0.4, 0.4, 0.2, 0.1),
        blur=(1.0, 0.1),
        solarize=(0.0, 0.2),
    )
    config.data = dict(
        source="tfds:imagenet2012",
        split="train",
        preprocess=f'{resize}|random_crop(256)|normalize("imagenet")',
        workers=32,
    )
    config.batch_size = 4096
    config.total_epochs = arg.epochs
    config.optimizer = dict(
        name="adamw",
        lr=1.5e-4 * 4096 / 256,
        weight_decay=0.1,
        rules=[
            dict(pattern="backbone/patch_embedding/.*", freeze=True),
            dict(pattern=".*kernel"),
            dict(pattern=".*", weight_decay=0.0),
        ],
    )
    config.schedule = dict(name="cosine", warmup_epochs=min(40, arg.epochs / 5))
    config.evaluators = dict(
        views=dict(
            kind="contrast",
            split="validation",
            preprocess=f'{resize}|central_crop(256)|normalize("imagenet")',
            every_epochs=10,
        ),
        features=dict(
            kind="features",
            split="validation",
            preprocess=f'{resize}|central_crop(224)|normalize("imagenet")',
            every_epochs=10,
            features=dict(train_split="train[:10%]"),
        ),
    )
    config.checkpoint = dict(every_epochs=1, keep=2)
    config.logging = dict(every_steps=100)
    return config
