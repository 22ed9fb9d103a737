"""A small ViT on Fashion-MNIST, read from its four original files.

    python -m vitlab.main --config configs/vit_fashion_mnist.py:path=DIR
    python -m vitlab.main --config configs/vit_fashion_mnist.py:path=DIR,long

Results: see `experiments/README.md`.
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `path=DIR` of the four `.gz` files; `long` for a GPU."""
    arg = parse_arg(arg, path="data/fashion_mnist", long=False)
    names = "T-shirt,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
    statistics = 'normalize("fashion_mnist")'

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "classification"
    config.model = dict(
        name="vit",
        width=192 if arg.long else 96,
        depth=9 if arg.long else 6,
        num_heads=3 if arg.long else 4,
        patch_size=4,
        pool="gap",
        drop_path=0.1 if arg.long else 0.0,
    )
    config.data = dict(
        source=f"idx:{arg.path}?classes={names}",
        preprocess=f"decode(channels=1)|random_crop(28, padding=2)|flip_lr|{statistics}",
    )
    config.batch_size = 512 if arg.long else 256
    config.total_epochs = 300 if arg.long else 15
    config.loss = dict(label_smoothing=0.1 if arg.long else 0.0)
    config.augment = dict(mixup=0.2, erasing=0.25 if arg.long else 0.0)
    config.optimizer = dict(
        name="adamw", lr=1e-3, weight_decay=0.1 if arg.long else 0.05, clip_norm=1.0
    )
    config.schedule = dict(name="cosine", warmup_epochs=10 if arg.long else 1)
    config.evaluators = dict(
        test=dict(split="test", preprocess=f"decode(channels=1)|{statistics}", every_epochs=1),
    )
    config.checkpoint = dict(every_epochs=1, keep=2, best="test/accuracy")
    config.logging = dict(every_steps=100)
    return config
