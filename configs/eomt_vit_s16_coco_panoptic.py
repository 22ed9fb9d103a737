"""EoMT on COCO panoptic with a ViT-S/16, after the published recipe (Kerssies et al., 2503.19108).

    python -m vitlab.main --config configs/mae_b16_imagenet.py \\
        --config.model.backbone.variant=S/16 --workdir runs/mae_s16
    python -m vitlab.main --config configs/eomt_vit_s16_coco_panoptic.py:path=COCO \\
        --config.init_from=runs/mae_s16

`COCO` has train2017, val2017 and annotations with panoptic_{split}2017.json and the folders of the
same name. Published: PQ 46.7 with ViT-S/16 after 24 epochs at 640 pixels, and 44.7 after 12; the
numbers are those of github.com/tue-mps/eomt, configs/dinov2/coco/panoptic/eomt_small_640_2x.yaml.
What differs: that ViT is DINOv2's, with registers, layer scale and learned positions, and its patch
of 14 resampled to 16; its backbone stands still for 500 steps while the heads warm up, and then
warms up for 1000, where here all do for 1000; padding, black there, is attended to by none here;
and a crop without a segment is not drawn again. Not yet run to the end.
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `path=COCO`, `epochs=24`, `size=640` (pixels)."""
    arg = parse_arg(arg, path="data/coco", epochs=24, size=640)
    source = f"panoptic:{arg.path}/annotations/panoptic_{{split}}2017.json"
    source = f"{source}?images={arg.path}/{{split}}2017"
    ending = 'pad_segments(100)|normalize("imagenet")'

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "universal_segmentation"
    config.model = dict(
        name="eomt",
        backbone=dict(
            name="vit",
            variant="S/16",
            pool="gap",
            class_token=True,  # of the MAE
            pos_embed="sincos2d_mae",
        ),
        num_queries=200,
        num_blocks=3,
    )
    config.init_from = ""
    config.data = dict(
        source=source,
        split="train",
        preprocess=f"decode|flip_lr|scale_jitter({arg.size},0.1,2.0)|{ending}",
        on_error="skip",
        workers=16,
    )
    config.batch_size = 16
    config.total_epochs = arg.epochs
    config.optimizer = dict(
        name="adamw",
        lr=1e-4,
        weight_decay=0.05,
        clip_norm=0.01,
        layer_decay=0.8,
        rules=[dict(pattern=".*")],  # everything decays, biases and norms too
    )
    config.schedule = dict(name="poly", warmup_steps=1000)
    config.evaluators = dict(
        val=dict(
            kind="segmentation",
            split="val",
            preprocess=f"decode|letterbox({arg.size})|{ending}",
            every_epochs=1,
        ),
    )
    config.checkpoint = dict(every_epochs=1, keep=2, best="val/PQ")
    config.logging = dict(every_steps=100)
    return config
