"""A detector on a plain ViT-S/16 for COCO, with what the field has found since DETR.

    python -m vitlab.main --config configs/mae_b16_imagenet.py \\
        --config.model.backbone.variant=S/16 --workdir runs/mae_s16
    python -m vitlab.main --config configs/detr_vit_s16_coco.py --config.init_from=runs/mae_s16
    python -m vitlab.main --config configs/detr_vit_s16_coco.py:path=COCO --config.init_from=...

Where COCO is read from is as in `detr_r50_coco`. Two-stage queries, box refinement and box-relative
positions as in Plain DETR (2308.01904), noisy copies (2203.03605), groups of queries and the
IoU-aware loss as in LW-DETR (2406.03459), large-scale jitter (2012.07177), layer decay as in ViTDet
(2203.16527). Not yet run to the end; nothing published has quite these numbers.
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `path=COCO`, `epochs=36`, `size=640` (pixels)."""
    arg = parse_arg(arg, path="", epochs=36, size=640)
    source, val = "tfds:coco/2017", "validation"
    if arg.path:
        source = f"coco:{arg.path}/annotations/instances_{{split}}2017.json"
        source, val = f"{source}?images={arg.path}/{{split}}2017", "val"
    ending = 'pad_boxes(100)|normalize("imagenet")'

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "detection"
    config.model = dict(
        name="plain_detr",
        backbone=dict(
            name="vit",
            variant="S/16",
            pool="gap",
            class_token=True,  # of the MAE
            pos_embed="sincos2d_mae",
            drop_path=0.1,
        ),
        num_queries=300,
        encoder_layers=1,
        decoder_layers=6,
        denoising=1,
        query_groups=3,
    )
    config.init_from = ""
    config.data = dict(
        source=source,
        split="train",
        preprocess=f"decode|flip_lr|scale_jitter({arg.size},0.3,1.8)|{ending}",
        on_error="skip",
        workers=16,
    )
    config.batch_size = 64
    config.total_epochs = arg.epochs
    config.loss = dict(classification="iou_aware", class_weight=2.0, class_cost=2.0)
    config.augment = dict(color_jitter=(0.2, 0.2, 0.2, 0.0), color_jitter_prob=0.5)
    config.optimizer = dict(
        name="adamw", lr=2e-4, weight_decay=0.05, clip_norm=0.1, layer_decay=0.8
    )
    config.schedule = dict(name="cosine", warmup_steps=1000)
    config.ema_decay = 0.9997
    config.evaluators = dict(
        val=dict(
            kind="detection",
            split=val,
            preprocess=f"decode|letterbox({arg.size})|{ending}",
            every_epochs=2,
        ),
    )
    config.checkpoint = dict(every_epochs=1, keep=2, best="val/AP")
    config.logging = dict(every_steps=100)
    return config
