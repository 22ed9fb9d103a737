"""A small MAE on Fashion-MNIST without its labels, to be fine-tuned by `finetune_fashion_mnist`.

    python -m vitlab.main --config configs/mae_fashion_mnist.py:path=DIR --workdir runs/mae
    python -m vitlab.main --config configs/finetune_fashion_mnist.py:path=DIR \\
        --config.init_from=runs/mae

Takes 18 minutes on two cores of an AMD EPYC; what came of it is in `experiments/ssl`.
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `path=DIR` of the four `.gz` files; `epochs=N`."""
    arg = parse_arg(arg, path="data/fashion_mnist", epochs=20)
    names = "T-shirt,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
    statistics = 'normalize("fashion_mnist")'
    evaluation = f"decode(channels=1)|{statistics}"

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "mae"
    config.model = dict(
        backbone=dict(
            name="vit",
            width=64,
            depth=4,
            num_heads=4,
            patch_size=4,
            pos_embed="sincos2d_mae",
            weight_init="mae",
        ),
        decoder_width=32,
        decoder_depth=1,
        decoder_heads=2,
    )
    config.data = dict(
        source=f"idx:{arg.path}?classes={names}",
        preprocess=f"decode(channels=1)|random_crop(28, padding=2)|flip_lr|{statistics}",
    )
    config.batch_size = 256
    config.total_epochs = arg.epochs
    config.optimizer = dict(name="adamw", lr=2e-3, weight_decay=0.05, args=dict(b2=0.95))
    config.schedule = dict(name="cosine", warmup_epochs=min(2, arg.epochs / 5))
    config.evaluators = dict(
        test=dict(kind="reconstruction", split="test", preprocess=evaluation, every_epochs=2),
        features=dict(
            kind="features",
            split="test",
            preprocess=evaluation,
            every_epochs=2,
            features=dict(train_split="train[:10000]", layer="encoder"),
        ),
    )
    config.checkpoint = dict(every_epochs=5, keep=1)
    config.logging = dict(every_steps=100)
    return config
