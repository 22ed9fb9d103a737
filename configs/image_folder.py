"""Your own images: a folder with one folder a class.

    python -m vitlab.main --config configs/image_folder.py:path=DIR

`DIR/train/CLASS/*.jpg` and `DIR/val/CLASS/*.jpg`; or just `DIR/CLASS/*.jpg`, of which a tenth is
then held out (`:path=DIR,holdout`). Any mode and size of image. From scratch on a few thousand
images expect a baseline, not a record: there is no published number to compare with.
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `path=DIR`, `holdout`, `size=64` (pixels), `epochs=100`."""
    arg = parse_arg(arg, path="data/images", holdout=False, size=64, epochs=100)
    pixels = f"translate={arg.size * 100 // 224},cutout={arg.size * 40 // 224}"
    train = f"decode|inception_crop({arg.size}, area_min=30)|flip_lr|randaug(2,10,{pixels})"
    evaluation = f"decode|resize_small({arg.size * 8 // 7})|central_crop({arg.size})"
    normalize = 'normalize("imagenet")'

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "classification"
    config.init_from = ""  # a run of `mae_image_folder`, say
    config.init_allow = ["head/.*"]
    config.model = dict(
        name="vit",
        width=192,
        depth=6,
        num_heads=3,
        patch_size=8,
        pool="gap",
        drop_path=0.1,
    )
    config.data = dict(
        source=f"folder:{arg.path}",
        split="train[:90%]" if arg.holdout else "train",
        preprocess=f"{train}|{normalize}",
        on_error="skip",
        workers=2,
    )
    config.batch_size = 64
    config.total_epochs = arg.epochs
    config.loss = dict(label_smoothing=0.1)
    config.augment = dict(mixup=0.2)
    config.optimizer = dict(name="adamw", lr=5e-4, weight_decay=0.05, clip_norm=1.0)
    config.schedule = dict(name="cosine", warmup_epochs=min(5, arg.epochs / 10))
    config.evaluators = dict(
        val=dict(
            split="train[90%:]" if arg.holdout else "val",
            preprocess=f"{evaluation}|{normalize}",
            every_epochs=1,
            on_error="skip",
        ),
    )
    config.checkpoint = dict(every_epochs=5, keep=2, best="val/accuracy")
    config.logging = dict(every_steps=20)
    return config
