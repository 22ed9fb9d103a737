"""Your own masks: a class for each pixel, from a hundred photographs or many more.

    vitlab data check masks:photos
    python -m vitlab.main --config configs/segmenter_own_data.py:source=masks:photos,holdout
    python -m vitlab.main --config "configs/segmenter_own_data.py:source=coco:outlines.json"
    python -m vitlab.main --config "configs/segmenter_own_data.py:source=via:outlines.json"

`photos` has a folder `images`, a folder `masks` of PNG files with the same names, and a file
`classes.txt`: a class a line, in the order of the ids in the masks, or each with its colour. With
`images/train`, `images/val` and so on, `val` is the split to evaluate on; `holdout` keeps a tenth
of `train` for it, as does a source with but one split (a file of COCO, Labelbox or VIA). Start
from a pretrained backbone wherever there is one: of a run of `mae_image_folder` on the same
photographs, say, with `:...,model=segmenter` and `--config.init_from=runs/mae`. From scratch a
U-Net learns from far fewer images than a ViT, so it is the default here. There is no published
number to compare with.
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
}


def get_config(arg=None):
    """`arg`: `source=SOURCE`, `val=SPLIT`, `holdout`, `model=unet` or `segmenter`, `size=320`
    (pixels), `epochs=100`."""
    arg = parse_arg(
        arg,
        source="masks:data/photos",
        val="val",
        holdout=False,
        model="unet",
        size=320,
        epochs=100,
    )
    if arg.model not in MODELS:
        raise InputError(f"config argument model is {arg.model!r}: unet or segmenter")
    one_split = arg.source.startswith(("coco:", "labelbox:", "via:", "labelme:"))
    holdout = arg.holdout or (one_split and "{split}" not in arg.source)
    ending = 'semantic|normalize("imagenet")'

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "segmentation"
    config.model = MODELS[arg.model]
    config.init_from = ""
    config.data = dict(
        source=arg.source,
        split="train[:90%]" if holdout else "train",
        preprocess=f"decode|flip_lr|scale_jitter({arg.size},0.6,1.8)|{ending}",
        on_error="skip",
        workers=2,
    )
    config.batch_size = 16
    config.total_epochs = arg.epochs
    config.loss = dict(dice=0.5)
    config.augment = dict(color_jitter=(0.3, 0.3, 0.3, 0.05), color_jitter_prob=0.8)
    config.optimizer = dict(name="adamw", lr=1e-3, weight_decay=0.05, clip_norm=1.0)
    config.schedule = dict(name="cosine", warmup_epochs=min(2, arg.epochs / 10))
    config.evaluators = dict(
        val=dict(
            kind="segmentation",
            split="train[90%:]" if holdout else arg.val,
            preprocess=f"decode|letterbox({arg.size})|{ending}",
            every_epochs=5,
            on_error="skip",
        ),
    )
    config.checkpoint = dict(every_epochs=5, keep=2, best="val/mIoU")
    config.logging = dict(every_steps=20)
    return config
