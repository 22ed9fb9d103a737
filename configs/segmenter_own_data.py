"""Your own masks: a class for each pixel, from a hundred photographs or many more.

    vitlab data check masks:photos
    python -m vitlab.main --config configs/segmenter_own_data.py:source=masks:photos,holdout
    python -m vitlab.main --config "configs/segmenter_own_data.py:source=coco:outlines.json"
    python -m vitlab.main --config "configs/segmenter_own_data.py:source=via:outlines.json"
    python -m vitlab.main \\
        --config configs/segmenter_own_data.py:source=masks:photos,holdout,model=unet_resnet50 \\
        --config.init_from=hf:timm/resnet50.tv_in1k

`photos` has a folder `images`, a folder `masks` of PNG or TIFF files with the same names, and a
file `classes.txt`: a class a line, in the order of the ids in the masks, or each with its colour.
With `images/train`, `images/val` and so on, `val` is the split to evaluate on; `holdout` keeps a
tenth of `train` for it, as does a source with but one split (COCO, Labelbox, VIA, LabelMe). Start
from a pretrained backbone wherever there is one, as the last command does: a U-Net on the
`unet_resnet50` of torchvision and timm; the mask transformer on `segmenter_vit_s16`, of timm, DeiT
and DINO, on `segmenter_dinov2_s14`, DINOv2's (hf:facebook/dinov2-small), or as `segmenter` on the
ViT of a run of `mae_image_folder` on the same photographs. They are for `init_from`, which takes a
file as well, and not to learn from scratch; where a line says that its images had another mean, as
timm's own ViTs have, `statistics=half` is -1 to 1. From scratch a U-Net learns from far fewer
images than a ViT, so a small one, `unet`, is the default. There is no published number to compare
with.
"""

import ml_collections

from vitlab.config import parse_arg
from vitlab.errors import InputError

MODELS = {
    "unet": dict(
        name="unet",
        backbone=dict(name="resnet", variant="18", widths=(32, 64, 128, 256)),
        widths=(128, 64, 32, 32),
    ),
    # On the ViT of `mae_image_folder` and `image_folder`.
    "segmenter": dict(
        name="segmenter",
        backbone=dict(name="vit", width=192, depth=6, num_heads=3, patch_size=8, pool="gap"),
    ),
    # On backbones as published.
    "unet_resnet50": dict(
        name="unet", backbone=dict(name="resnet", variant="50"), widths=(256, 128, 64, 32)
    ),
    "segmenter_vit_s16": dict(name="segmenter", backbone=dict(name="vit", variant="S/16")),
    "segmenter_dinov2_s14": dict(
        name="segmenter", backbone=dict(name="vit", variant="S/14", layer_scale=1.0)
    ),
}


def get_config(arg=None):
    """`arg`: `source=SOURCE`, `val=SPLIT`, `holdout`, `model=unet`, `size=320` (pixels,
    which become a multiple of a ViT's patch), `epochs=100`, `statistics=imagenet` (of
    `normalize`)."""
    arg = parse_arg(
        arg,
        source="masks:data/photos",
        val="val",
        holdout=False,
        model="unet",
        size=320,
        epochs=100,
        statistics="imagenet",
    )
    if arg.model not in MODELS:
        known = ", ".join(MODELS)
        raise InputError(f"config argument model is {arg.model!r}: one of {known}")
    patches = {"segmenter": 8, "segmenter_vit_s16": 16, "segmenter_dinov2_s14": 14}
    patch = patches.get(arg.model, 1)
    size = -(-arg.size // patch) * patch
    one_split = arg.source.startswith(("coco:", "labelbox:", "via:", "labelme:"))
    holdout = arg.holdout or (one_split and "{split}" not in arg.source)
    ending = f'semantic|normalize("{arg.statistics}")'

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "segmentation"
    config.model = MODELS[arg.model]
    config.init_from = ""
    config.data = dict(
        source=arg.source,
        split="train[:90%]" if holdout else "train",
        preprocess=f"decode|flip_lr|scale_jitter({size},0.6,1.8)|{ending}",
        on_error="skip",
        workers=2,
    )
    config.batch_size = 16
    config.total_epochs = arg.epochs
    config.loss = dict(dice=0.5)
    config.augment = dict(color_jitter=(0.3, 0.3, 0.3, 0.05), color_jitter_prob=0.8)
    config.optimizer = dict(name="adamw", lr=1e-3, weight_decay=0.05, clip_norm=1.0)
    if arg.model == "unet_resnet50":  # a tenth of the head's rate, as DeepLab's and DETR's
        config.optimizer.rules = [
            dict(pattern="backbone/.*kernel", lr=0.1),
            dict(pattern="backbone/.*", lr=0.1, weight_decay=0.0),
            dict(pattern=".*kernel"),
            dict(pattern=".*", weight_decay=0.0),
        ]
    elif arg.model in ("segmenter_vit_s16", "segmenter_dinov2_s14"):
        config.optimizer.update(lr=1e-4, layer_decay=0.8)  # as in `eomt_vit_s16_coco_panoptic`
    config.schedule = dict(name="cosine", warmup_epochs=min(2, arg.epochs / 10))
    config.evaluators = dict(
        val=dict(
            kind="segmentation",
            split="train[90%:]" if holdout else arg.val,
            preprocess=f"decode|letterbox({size})|{ending}",
            every_epochs=5,
            on_error="skip",
        ),
    )
    config.checkpoint = dict(every_epochs=5, keep=2, best="val/mIoU")
    config.logging = dict(every_steps=20)
    return config
