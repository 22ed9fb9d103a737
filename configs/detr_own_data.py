"""Your own boxes: a detector on a few hundred photographs or many more.

    vitlab data check yolo:boxes/data.yaml
    python -m vitlab.main --config "configs/detr_own_data.py:source=yolo:boxes/data.yaml"
    python -m vitlab.main --config "configs/detr_own_data.py:source=voc:VOC2007,val=test"
    python -m vitlab.main --config "configs/detr_own_data.py:source=coco:boxes.json?images=photos"
    python -m vitlab.main --config "configs/detr_own_data.py:source=cvat:annotations.xml,holdout"
    python -m vitlab.main \\
        --config "configs/detr_own_data.py:source=yolo:boxes/data.yaml,backbone=resnet50" \\
        --config.init_from=hf:timm/resnet50.tv_in1k

`val` is the split to evaluate on; `holdout` keeps a tenth of `train` for it, as does a source with
but one split (COCO, Labelbox, VIA, LabelMe). Start from a pretrained backbone wherever there is
one, as the last command does; with a few hundred photographs nothing else is worth as much. Such
are `resnet50` of torchvision and timm, with what stands still and learns slowly there as in DETR;
`vit_s16` of timm, DeiT and DINO; `dinov2_s14`, DINOv2's (hf:facebook/dinov2-small); and `vit`, of a
run of `mae_image_folder` on the same photographs. They are for `init_from`, which takes a file as
well, and not to learn from scratch; where a line says that their images had another mean, as timm's
own ViTs have, `statistics=half` is -1 to 1. A detector does too: its heads know what classes have
the same names, and are made anew for others. From scratch a ResNet learns from far fewer images
than a ViT, so a small one, `resnet`, is the default. There is no published number to compare with.
"""

import ml_collections

from vitlab.config import parse_arg
from vitlab.errors import InputError

BACKBONES = {
    "resnet": dict(name="resnet", variant="18", depths=(2, 2, 2), widths=(64, 128, 256)),
    # That of `mae_image_folder` and `image_folder`.
    "vit": dict(name="vit", width=192, depth=6, num_heads=3, patch_size=8, pool="gap"),
    # As published.
    "resnet50": dict(name="resnet", variant="50", norm="frozen"),
    "vit_s16": dict(name="vit", variant="S/16"),
    "dinov2_s14": dict(name="vit", variant="S/14", layer_scale=1.0),
}


def get_config(arg=None):
    """`arg`: `source=SOURCE`, `val=SPLIT`, `holdout`, `backbone=resnet`, `size=320` (pixels, which
    become a multiple of a ViT's patch), `epochs=100`, `max_boxes=100`,
    `statistics=imagenet` (of `normalize`)."""
    arg = parse_arg(
        arg,
        source="yolo:data/boxes/data.yaml",
        val="val",
        holdout=False,
        backbone="resnet",
        size=320,
        epochs=100,
        max_boxes=100,
        statistics="imagenet",
    )
    if arg.backbone not in BACKBONES:
        known = ", ".join(BACKBONES)
        raise InputError(f"config argument backbone is {arg.backbone!r}: one of {known}")
    patch = {"vit": 8, "vit_s16": 16, "dinov2_s14": 14}.get(arg.backbone, 1)
    size = -(-arg.size // patch) * patch
    one_split = arg.source.startswith(("coco:", "labelbox:", "via:", "labelme:"))
    holdout = arg.holdout or (one_split and "{split}" not in arg.source)
    ending = f'pad_boxes({arg.max_boxes})|normalize("{arg.statistics}")'

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "detection"
    config.model = dict(
        name="plain_detr",
        backbone=BACKBONES[arg.backbone],
        num_queries=max(100, arg.max_boxes),
        width=128,
        num_heads=4,
        mlp_dim=512,
        encoder_layers=1,
        decoder_layers=3,
        denoising=1,
        upsample=arg.backbone == "resnet50",  # from its stride of 32 to that of the others
    )
    config.init_from = ""
    config.data = dict(
        source=arg.source,
        split="train[:90%]" if holdout else "train",
        preprocess=f"decode|flip_lr|scale_jitter({size},0.6,1.4)|{ending}",
        on_error="skip",
        workers=2,
    )
    config.batch_size = 16
    config.total_epochs = arg.epochs
    config.loss = dict(classification="iou_aware", class_weight=2.0, class_cost=2.0)
    config.augment = dict(color_jitter=(0.3, 0.3, 0.3, 0.0), color_jitter_prob=0.8)
    config.optimizer = dict(name="adamw", lr=5e-4, weight_decay=0.05, clip_norm=0.1)
    if arg.backbone == "resnet50":  # as in `detr_r50_coco`
        config.optimizer.rules = [
            dict(pattern="backbone/(stem_conv|stage_1)/.*", freeze=True),
            dict(pattern="backbone/.*norm.*", freeze=True),
            dict(pattern="backbone/.*", lr=0.1),
            dict(pattern=".*kernel"),
            dict(pattern=".*", weight_decay=0.0),
        ]
    elif arg.backbone in ("vit_s16", "dinov2_s14"):  # as in `detr_vit_s16_coco`
        config.optimizer.update(lr=2e-4, layer_decay=0.8)
    config.schedule = dict(name="cosine", warmup_epochs=min(2, arg.epochs / 10))
    config.evaluators = dict(
        val=dict(
            kind="detection",
            split="train[90%:]" if holdout else arg.val,
            preprocess=f"decode|letterbox({size})|{ending}",
            every_epochs=5,
            on_error="skip",
        ),
    )
    config.checkpoint = dict(every_epochs=5, keep=2, best="val/AP")
    config.logging = dict(every_steps=20)
    return config
