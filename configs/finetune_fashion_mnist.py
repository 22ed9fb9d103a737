"""Fine-tunes a small ViT on 1 % of Fashion-MNIST's labels: the first 600 images.

    python -m vitlab.main --config configs/finetune_fashion_mnist.py:path=DIR \\
        --config.init_from=runs/mae

`init_from` is a run of `mae_fashion_mnist` or `simclr_fashion_mnist`; without it the same training
starts from scratch.

Reached 81.48 % on the test images after `mae_fashion_mnist` and 74.71 from scratch (means of three
seeds), in 4 minutes on two cores of an AMD EPYC (`experiments/ssl`).
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `path=DIR` of the four `.gz` files; `labels=600`; `epochs=N`."""
    arg = parse_arg(arg, path="data/fashion_mnist", labels=600, epochs=100)
    names = "T-shirt,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
    statistics = 'normalize("fashion_mnist")'

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "classification"
    config.model = dict(
        name="vit",
        width=64,
        depth=4,
        num_heads=4,
        patch_size=4,
        pos_embed="sincos2d_mae",
        weight_init="mae",
        pool="gap",
        class_token=True,
        norm_after_pool=True,
        drop_path=0.1,
    )
    config.init_from = ""
    config.init_allow = ["head/.*", "norm/.*", "fc_norm/.*"]  # the pretrained norm is per token
    config.data = dict(
        source=f"idx:{arg.path}?classes={names}",
        split=f"train[:{arg.labels}]",
        preprocess=f"decode(channels=1)|random_crop(28, padding=2)|flip_lr|{statistics}",
    )
    config.batch_size = 50
    config.total_epochs = arg.epochs
    config.loss = dict(label_smoothing=0.1)
    config.optimizer = dict(name="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.75)
    config.schedule = dict(name="cosine", warmup_epochs=min(5, arg.epochs / 5))
    config.evaluators = dict(
        test=dict(
            split="test",
            preprocess=f"decode(channels=1)|{statistics}",
            every_epochs=25,
        ),
    )
    config.checkpoint = dict(every_epochs=25, keep=1)
    return config
