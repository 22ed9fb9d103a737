"""Fine-tunes the small ViT of `mae_cifar10` or `simclr_cifar10` on CIFAR-10's labels.

    python -m vitlab.main --config configs/finetune_cifar10.py:path=DIR \\
        --config.init_from=runs/mae_cifar10

Without `init_from` the same training starts from scratch. Not yet run to the end with vitlab; what
is published for such models stands in `mae_cifar10`.
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `path=DIR` with `train/CLASS/*.jpg` and `test/CLASS/*.jpg`; `epochs=N`."""
    arg = parse_arg(arg, path="data/cifar10", epochs=100)
    randaug = "randaug(2,10,translate=14,cutout=5)"  # in pixels, as 100 and 40 are of 224

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "classification"
    config.model = dict(
        name="vit",
        width=192,
        depth=9,
        num_heads=3,
        patch_size=4,
        pos_embed="sincos2d_mae",
        weight_init="mae",
        pool="gap",
        class_token=True,
        norm_after_pool=True,
        drop_path=0.1,
    )
    config.init_from = ""
    config.init_allow = ["head/.*", "norm/.*", "fc_norm/.*"]  # pretraining has its norm elsewhere
    config.data = dict(
        source=f"folder:{arg.path}",
        preprocess=f'decode|random_crop(32, padding=4)|flip_lr|{randaug}|normalize("cifar10")',
        workers=4,
    )
    config.batch_size = 512
    config.total_epochs = arg.epochs
    config.loss = dict(label_smoothing=0.1)
    config.augment = dict(mixup=0.8, cutmix=1.0, erasing=0.25)
    config.optimizer = dict(name="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.75)
    config.schedule = dict(name="cosine", warmup_epochs=min(5, arg.epochs / 5))
    config.evaluators = dict(
        test=dict(split="test", preprocess='decode|normalize("cifar10")', every_epochs=5),
    )
    config.checkpoint = dict(every_epochs=5, keep=2, best="test/accuracy")
    config.logging = dict(every_steps=100)
    return config
