"""ViT-B/16 on ImageNet-1k from scratch, with the augmentation of "How to train your ViT?".

    python -m vitlab.main --config configs/vit_b16_imagenet.py:epochs=300

Published: about 79 % top-1 after 300 epochs (big_vision's `vit_i1k`, arXiv:2106.10270). Not yet
run to the end with vitlab. Needs `imagenet2012` prepared by TFDS as ArrayRecord. Every number is
big_vision's: RandAugment(2, 15) and mixup 0.5 ("medium2"), a sigmoid loss whose head bias starts
at -6.9, batch 4096, and a weight decay of 1e-4 that is 0.1 in AdamW's terms.
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `epochs=300`."""
    arg = parse_arg(arg, epochs=300)
    train = "decode|inception_crop(224)|flip_lr|randaug(2,15)|value_range(-1,1)"
    evaluation = 'decode|resize_small(256, method="area")|central_crop(224)|value_range(-1,1)'

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "classification"
    config.model = dict(
        name="vit",
        variant="B/16",
        pool="cls",
        class_position=False,
        rep_size=True,
        mlp="gelu_tanh",
        head_init_bias=-6.9,
    )
    config.data = dict(
        source="tfds:imagenet2012", split="train[:99%]", preprocess=train, workers=16
    )
    config.batch_size = 4096
    config.total_epochs = arg.epochs
    config.loss = dict(name="sigmoid")
    config.augment = dict(mixup=0.5)
    config.optimizer = dict(
        name="adamw",
        lr=1e-3,
        weight_decay=0.1,
        clip_norm=1.0,
        args=dict(b1=0.9, b2=0.999, mu_dtype="bfloat16"),
        rules=[dict(pattern=".*kernel"), dict(pattern=".*", weight_decay=0.0)],
    )
    # An epoch has 310 steps.
    config.schedule = dict(name="cosine", warmup_steps=min(10_000, 100 * arg.epochs))
    config.evaluators = dict(
        minival=dict(split="train[99%:]", preprocess=evaluation, every_steps=2500),
        val=dict(split="validation", preprocess=evaluation, every_steps=2500),
    )
    config.checkpoint = dict(every_steps=1000, keep=2, best="val/accuracy")
    config.logging = dict(every_steps=50)
    return config
