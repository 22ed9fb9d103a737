"""ViT-B/16 on ImageNet-1k as DeiT III (arXiv:2204.07118): 400 epochs at 192, then 20 at 224.

    python -m vitlab.main --config configs/deit3_b16_imagenet.py --workdir runs/deit3
    python -m vitlab.main --config configs/deit3_b16_imagenet.py:finetune \\
        --config.init_from=runs/deit3

Published: 83.6 % top-1 in Flax (deit3-jax, 4 h 42 min on a TPU v4-64), 83.5 in PyTorch. Not yet
run to the end with vitlab. Needs `imagenet2012` prepared by TFDS as ArrayRecord. The numbers are
deit3-jax's. What differs: the second stage's RandAugment is big_vision's form at the same magnitude
9; tokens and positions start from a normal of 0.02 that is not cut off.
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `finetune` for the second stage; `epochs=N` for another length of the first."""
    arg = parse_arg(arg, finetune=False, epochs=400)
    size, augmentation = (224, "randaug(2,9)") if arg.finetune else (192, "three_augment")
    bicubic = 'method="bicubic", antialias=True'
    crop = f'inception_crop({size}, area_min=8, ratio_max=1.3333, sampling="area", {bicubic})'
    train = f'decode|{crop}|flip_lr|{augmentation}|normalize("imagenet")'
    evaluation = (
        f'decode|resize_small({size}, {bicubic})|central_crop({size})|normalize("imagenet")'
    )

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "classification"
    config.model = dict(
        name="vit",
        variant="B/16",
        pool="cls",
        class_position=False,
        mlp="gelu_tanh",
        layer_scale=1e-4,
        drop_path=0.1,
        drop_path_uniform=True,
        weight_init="deit",
        head_init_std=0.02,
    )
    config.data = dict(source="tfds:imagenet2012", split="train", preprocess=train, workers=32)
    config.augment = dict(mixup=0.8, cutmix=1.0)
    if arg.finetune:
        config.batch_size = 512
        config.total_epochs = 20
        config.loss = dict(name="softmax", label_smoothing=0.1)
        config.optimizer = dict(name="adamw", lr=1e-5, weight_decay=0.1)
        config.init_from = "runs/deit3"  # the first stage's working directory
        config.schedule = dict(name="constant", warmup_epochs=5, start_factor=0.1)
    else:
        config.batch_size = 2048
        config.total_epochs = arg.epochs
        config.data.repeats = 3
        config.loss = dict(name="bce")
        config.augment.color_jitter = (0.3, 0.3, 0.3, 0.0)
        config.optimizer = dict(
            name="lamb", lr=3e-3, weight_decay=0.02, clip_norm=1.0, args=dict(eps=1e-8)
        )
        config.schedule = dict(
            name="cosine",
            warmup_epochs=min(5, arg.epochs / 5),
            start_factor=1e-6 / 3e-3,
            end_factor=1e-5 / 3e-3,
        )
    config.evaluators = dict(
        val=dict(split="validation", preprocess=evaluation, every_epochs=1),
    )
    config.checkpoint = dict(every_epochs=1, keep=2, best="val/accuracy")
    config.logging = dict(every_steps=100)
    return config
