"""Your own outlines: single objects with a mask each, from a few hundred photographs or many more.

    vitlab data check coco:outlines.json
    python -m vitlab.main --config configs/eomt_own_data.py:source=coco:outlines.json
    python -m vitlab.main --config configs/eomt_own_data.py:source=yolo:outlines/data.yaml
    python -m vitlab.main --config "configs/eomt_own_data.py:source=cvat:annotations.xml,holdout"
    python -m vitlab.main \\
        --config configs/eomt_own_data.py:source=coco:outlines.json,backbone=dinov2_s14 \\
        --config.init_from=hf:facebook/dinov2-small

`val` is the split to evaluate on; `holdout` keeps a tenth of `train` for it, as does a source with
but one split (COCO, Labelbox, VIA, LabelMe). The model is EoMT, whose one head gives the objects
and the class of each pixel. It is a ViT, and with a few hundred photographs a ViT is worth what it
has seen before: take the last command wherever you can. `dinov2_s14` is DINOv2's, `vit_s16` that of
timm, DeiT and DINO, `vit` that of a run of `mae_image_folder` on the same photographs; each from
`init_from`, which takes a file as well; where a line says that its images had another mean, as
timm's own ViTs have, `statistics=half` is -1 to 1. Without any, the default is a small ViT behind
convolutions, which finds what stands out but hardly tells many classes apart. There is no published
number to compare with.
"""

import ml_collections

from vitlab.config import parse_arg
from vitlab.errors import InputError

BACKBONES = {
    "small": dict(
        name="vit", width=192, depth=6, num_heads=3, patch_size=8, stem="conv", pool="gap"
    ),
    # That of `mae_image_folder` and `image_folder`.
    "vit": dict(name="vit", width=192, depth=6, num_heads=3, patch_size=8, pool="gap"),
    # As published.
    "vit_s16": dict(name="vit", variant="S/16"),
    "dinov2_s14": dict(name="vit", variant="S/14", layer_scale=1.0),
}


def get_config(arg=None):
    """`arg`: `source=SOURCE`, `val=SPLIT`, `holdout`, `backbone=small`, `size=320` (pixels, which
    become a multiple of the patch), `epochs=100`, `max_segments=100` (objects and what none
    covers), `statistics=imagenet` (of `normalize`)."""
    arg = parse_arg(
        arg,
        source="coco:data/outlines.json",
        val="val",
        holdout=False,
        backbone="small",
        size=320,
        epochs=100,
        max_segments=100,
        statistics="imagenet",
    )
    if arg.backbone not in BACKBONES:
        known = ", ".join(BACKBONES)
        raise InputError(f"config argument backbone is {arg.backbone!r}: one of {known}")
    published = arg.backbone in ("vit_s16", "dinov2_s14")
    patch = {"vit_s16": 16, "dinov2_s14": 14}.get(arg.backbone, 8)
    size = -(-arg.size // patch) * patch
    one_split = arg.source.startswith(("coco:", "labelbox:", "via:", "labelme:"))
    holdout = arg.holdout or (one_split and "{split}" not in arg.source)
    ending = f'pad_segments({arg.max_segments})|normalize("{arg.statistics}")'

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "universal_segmentation"
    config.model = dict(
        name="eomt",
        backbone=BACKBONES[arg.backbone],
        num_queries=arg.max_segments,
        num_blocks=3 if published else 2,
        masked_attention=published,  # with it a step takes a third longer
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
    config.augment = dict(color_jitter=(0.3, 0.3, 0.3, 0.0), color_jitter_prob=0.8)
    config.optimizer = dict(
        name="muon", lr=1e-3, weight_decay=0.05, clip_norm=1.0, args=dict(consistent_rms=0.2)
    )
    if published:  # as in `eomt_vit_s16_coco_panoptic`
        config.optimizer = dict(
            name="adamw",
            lr=1e-4,
            weight_decay=0.05,
            clip_norm=0.01,
            layer_decay=0.8,
            rules=[dict(pattern=".*")],
        )
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
    config.checkpoint = dict(every_epochs=5, keep=2, best="val/AP")
    config.logging = dict(every_steps=20)
    return config
