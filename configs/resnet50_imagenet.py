"""ResNet-50 on ImageNet-1k: "Accurate, Large Minibatch SGD" (arXiv:1706.02677).

    python -m vitlab.main --config configs/resnet50_imagenet.py

Published: 76.3 % top-1 after 90 epochs. Not yet run to the end with vitlab. Needs `imagenet2012`
prepared by TFDS as ArrayRecord. What differs: the warm-up starts at 0 and not at 0.1.
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `epochs=90`; the learning rate falls at 1/3, 2/3 and 8/9 of them."""
    arg = parse_arg(arg, epochs=90)
    crop = 'inception_crop(224, area_min=8, sampling="area", antialias=True)'
    train = f'decode|{crop}|flip_lr|normalize("imagenet")'
    resize = 'decode|resize_small(256, method="bilinear", antialias=True)|central_crop(224)'
    evaluation = f'{resize}|normalize("imagenet")'

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "classification"
    config.model = dict(name="resnet", variant="50")
    config.data = dict(source="tfds:imagenet2012", split="train", preprocess=train, workers=16)
    config.batch_size = 1024
    config.total_epochs = arg.epochs
    config.optimizer = dict(
        name="sgd",
        lr=0.4,  # 0.1 for each 256 examples of the batch
        weight_decay=1e-4,
        args=dict(momentum=0.9, nesterov=True),
        rules=[dict(pattern=".*kernel"), dict(pattern=".*", weight_decay=0.0)],
    )
    config.schedule = dict(
        name="stair", warmup_epochs=min(5, arg.epochs / 5), decay_at=(30 / 90, 60 / 90, 80 / 90)
    )
    config.evaluators = dict(
        val=dict(split="validation", preprocess=evaluation, every_epochs=1),
    )
    config.checkpoint = dict(every_epochs=1, keep=2, best="val/accuracy")
    config.logging = dict(every_steps=100)
    return config
