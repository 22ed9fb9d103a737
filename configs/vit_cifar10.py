"""A small ViT on CIFAR-10, or any folder of 32 x 32 pictures with `train` and `test` in it.

    python -m vitlab.main --config configs/vit_cifar10.py:path=DIR

About an hour on one GPU; not yet run to the end with vitlab. Plain ViTs of this size with patch 4
reach 80 % after 200 epochs and 89 % after 1000 (kentaroy47/vision-transformers-cifar10).
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `path=DIR` with `train/CLASS/*.jpg` and `test/CLASS/*.jpg`; `epochs=N`; `device` for
    data on the device, and without RandAugment, which runs on the host alone."""
    arg = parse_arg(arg, path="data/cifar10", epochs=300, device=False)
    randaug = "randaug(2,10,translate=14,cutout=5)|"  # in pixels, as 100 and 40 are of 224
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "classification"
    config.model = dict(
        name="vit",
        width=192,
        depth=9,
        num_heads=3,
        patch_size=4,
        pool="gap",
        drop_path=0.1,
    )
    config.data = dict(
        source=f"folder:{arg.path}",
        preprocess="decode|random_crop(32, padding=4)|flip_lr|"
        + randaug * (not arg.device)
        + 'normalize("cifar10")',
        workers=4,
        cache="device" if arg.device else "",
    )
    config.batch_size = 512
    config.total_epochs = arg.epochs
    config.loss = dict(label_smoothing=0.1)
    config.augment = dict(mixup=0.8, cutmix=1.0, erasing=0.25)
    config.optimizer = dict(name="adamw", lr=1e-3, weight_decay=0.05, clip_norm=1.0)
    config.schedule = dict(name="cosine", warmup_epochs=min(10, arg.epochs / 5))
    config.ema_decay = 0.9998
    config.evaluators = dict(
        test=dict(split="test", preprocess='decode|normalize("cifar10")', every_epochs=5),
    )
    config.checkpoint = dict(every_epochs=5, keep=2, best="test/accuracy")
    config.logging = dict(every_steps=100)
    return config
