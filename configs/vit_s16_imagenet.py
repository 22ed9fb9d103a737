"""ViT-S/16 on ImageNet-1k from scratch: "Better plain ViT baselines" (arXiv:2205.01580).

    python -m vitlab.main --config configs/vit_s16_imagenet.py:epochs=90

Published: 76.5 % top-1 after 90 epochs, 78.5 after 150, 80.0 after 300; 90 epochs took 6-7 hours
on a TPU v3-8. Not yet run to the end with vitlab. Needs `imagenet2012` prepared by TFDS as
ArrayRecord. Every number is big_vision's `vit_s16_i1k`; its weight decay of 1e-4, which the
schedule scales but the learning rate does not, is 1e-4 / lr = 0.1 in AdamW's terms.
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `epochs=90|150|300`."""
    arg = parse_arg(arg, epochs=90)
    train = "decode|inception_crop(224)|flip_lr|randaug(2,10)|value_range(-1,1)"
    evaluation = 'decode|resize_small(256, method="area")|central_crop(224)|value_range(-1,1)'

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "classification"
    config.model = dict(
        name="vit",
        variant="S/16",
        pos_embed="sincos2d",
        pool="gap",
        rep_size=True,
        mlp="gelu_tanh",
    )
    config.data = dict(
        source="tfds:imagenet2012", split="train[:99%]", preprocess=train, workers=16
    )
    config.batch_size = 1024
    config.total_epochs = arg.epochs
    config.augment = dict(mixup=0.2)
    config.optimizer = dict(
        name="adamw",
        lr=1e-3,
        weight_decay=0.1,
        clip_norm=1.0,
        args=dict(b1=0.9, b2=0.999, mu_dtype="bfloat16"),
        rules=[dict(pattern=".*kernel"), dict(pattern=".*", weight_decay=0.0)],
    )
    # An epoch has 1,239 steps.
    config.schedule = dict(name="cosine", warmup_steps=min(10_000, 250 * arg.epochs))
    config.evaluators = dict(
        minival=dict(split="train[99%:]", preprocess=evaluation, every_steps=2500),
        val=dict(split="validation", preprocess=evaluation, every_steps=2500),
    )
    config.checkpoint = dict(every_steps=1000, keep=2, best="val/accuracy")
    config.logging = dict(every_steps=50)
    return config
