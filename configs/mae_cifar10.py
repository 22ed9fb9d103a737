"""A small MAE on CIFAR-10 without its labels, to be fine-tuned by `finetune_cifar10`.

    python -m vitlab.main --config configs/mae_cifar10.py:path=DIR --workdir runs/mae_cifar10
    python -m vitlab.main --config configs/finetune_cifar10.py:path=DIR \\
        --config.init_from=runs/mae_cifar10

Not yet run to the end with vitlab. Published for small MAEs on the lossless CIFAR-10, fine-tuned:
96.41 % (arXiv:2402.03752, 3.65 M parameters), 89.77 % (IcarusWizard/MAE, ViT-Ti/2, 2000 epochs).
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `path=DIR` with `train/CLASS/*.jpg` and `test/CLASS/*.jpg`; `epochs=N`."""
    arg = parse_arg(arg, path="data/cifar10", epochs=800)
    evaluation = 'decode|normalize("cifar10")'

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "mae"
    config.model = dict(
        backbone=dict(
            name="vit",
            width=192,
            depth=9,
            num_heads=3,
            patch_size=4,
            pos_embed="sincos2d_mae",
            weight_init="mae",
        ),
        decoder_width=96,
        decoder_depth=3,
        decoder_heads=3,
    )
    config.data = dict(
        source=f"folder:{arg.path}",
        preprocess='decode|random_crop(32, padding=4)|flip_lr|normalize("cifar10")',
        workers=4,
        cache="device",
    )
    config.batch_size = 1024
    config.total_epochs = arg.epochs
    config.optimizer = dict(name="adamw", lr=2e-3, weight_decay=0.05, args=dict(b2=0.95))
    config.schedule = dict(name="cosine", warmup_epochs=min(40, arg.epochs / 5))
    config.evaluators = dict(
        test=dict(kind="reconstruction", split="test", preprocess=evaluation, every_epochs=50),
        features=dict(
            kind="features",
            split="test",
            preprocess=evaluation,
            every_epochs=50,
            features=dict(protocols=("knn", "linear"), layer="encoder"),
        ),
    )
    config.checkpoint = dict(every_epochs=50, keep=1)
    config.logging = dict(every_steps=100)
    return config
