"""SimCLR with the small ViT of `mae_fashion_mnist`, on Fashion-MNIST without its labels.

    python -m vitlab.main --config configs/simclr_fashion_mnist.py:path=DIR --workdir runs/simclr
    python -m vitlab.main --config configs/finetune_fashion_mnist.py:path=DIR \\
        --config.init_from=runs/simclr

Three epochs took 14 minutes on two cores of an AMD EPYC, which other jobs used too
(`experiments/ssl`).
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `path=DIR` of the four `.gz` files; `epochs=N`."""
    arg = parse_arg(arg, path="data/fashion_mnist", epochs=10)
    names = "T-shirt,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
    pixels = 'decode(channels=1)|normalize("fashion_mnist")'

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "simclr"
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
        projector_layers=3,
        projector_width=256,
        projector_dim=64,
    )
    config.loss = dict(temperature=0.2)
    config.augment = dict(
        crop_area=(0.3, 1.0),
        crop_method="bilinear",
        color_jitter=(0.4, 0.4, 0.0, 0.0),
        greyscale=0.0,
        blur=(0.0, 0.0),
    )
    config.data = dict(source=f"idx:{arg.path}?classes={names}", preprocess=pixels)
    config.batch_size = 256
    config.total_epochs = arg.epochs
    config.optimizer = dict(
        name="adamw",
        lr=2e-3,
        weight_decay=0.05,
        rules=[
            dict(pattern="backbone/patch_embedding/.*", freeze=True),
            dict(pattern=".*kernel"),
            dict(pattern=".*", weight_decay=0.0),
        ],
    )
    config.schedule = dict(name="cosine", warmup_epochs=1)
    config.evaluators = dict(
        test=dict(kind="contrast", split="test[:2048]", preprocess=pixels, every_epochs=2),
        features=dict(
            kind="features",
            split="test",
            preprocess=pixels,
            every_epochs=2,
            features=dict(train_split="train[:10000]", layer="encoder"),
        ),
    )
    config.checkpoint = dict(every_epochs=2, keep=1)
    config.logging = dict(every_steps=100)
    return config
