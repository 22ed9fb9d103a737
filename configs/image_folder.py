"""Your own images: a folder with one folder a class.

    python -m vitlab.main --config configs/image_folder.py:path=DIR
    python -m vitlab.main --config configs/image_folder.py:path=DIR,backbone=dinov2_s14 \\
        --config.init_from=hf:facebook/dinov2-small

`DIR/train/CLASS/*.jpg` and `DIR/val/CLASS/*.jpg`; or just `DIR/CLASS/*.jpg`, of which a tenth is
then held out (`:path=DIR,holdout`). Any mode and size of image. Start from published weights
wherever you can: `resnet50` of torchvision and timm, `vit_s16` of timm, DeiT and DINO, and
`dinov2_s14`, DINOv2's, are for `init_from`, which takes a file as well; where a line says that its
images had another mean, as timm's own ViTs have, `statistics=half` is -1 to 1. From scratch, the
default, expect a baseline of a few thousand images, not a record. There is no published number to
compare with.
"""

import ml_collections

from vitlab.config import parse_arg
from vitlab.errors import InputError

BACKBONES = {
    # That of `mae_image_folder`.
    "vit": dict(name="vit", width=192, depth=6, num_heads=3, patch_size=8, pool="gap"),
    # As published.
    "resnet50": dict(name="resnet", variant="50"),
    "vit_s16": dict(name="vit", variant="S/16"),
    "dinov2_s14": dict(name="vit", variant="S/14", layer_scale=1.0),
}


def get_config(arg=None):
    """`arg`: `path=DIR`, `holdout`, `backbone=vit`, `size` (pixels, a multiple of the patch; 64, of
    published backbones 224), `epochs=100`, `statistics=imagenet` (of `normalize`)."""
    arg = parse_arg(
        arg,
        path="data/images",
        holdout=False,
        backbone="vit",
        size=0,
        epochs=100,
        statistics="imagenet",
    )
    if arg.backbone not in BACKBONES:
        known = ", ".join(BACKBONES)
        raise InputError(f"config argument backbone is {arg.backbone!r}: one of {known}")
    size = arg.size or (64 if arg.backbone == "vit" else 224)
    pixels = f"translate={size * 100 // 224},cutout={size * 40 // 224}"
    train = f"decode|inception_crop({size}, area_min=30)|flip_lr|randaug(2,10,{pixels})"
    evaluation = f"decode|resize_small({size * 8 // 7})|central_crop({size})"
    normalize = f'normalize("{arg.statistics}")'

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "classification"
    config.init_from = ""
    config.init_allow = ["head/.*"]
    config.model = BACKBONES[arg.backbone]
    if arg.backbone != "resnet50":
        config.model.drop_path = 0.1
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
    if arg.backbone != "vit":
        config.optimizer.lr = 1e-4
    if arg.backbone in ("vit_s16", "dinov2_s14"):
        config.optimizer.layer_decay = 0.75  # as usual where a ViT is fine-tuned (2106.08254)
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
