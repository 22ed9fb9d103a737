"""DETR with a ResNet-50 on COCO: "End-to-End Object Detection with Transformers" (2005.12872).

    python -m vitlab.main --config configs/detr_r50_coco.py --config.init_from=runs/r50
    python -m vitlab.main --config configs/detr_r50_coco.py:path=COCO --config.init_from=runs/r50

`init_from` is a run of `resnet50_imagenet` or published weights, such as hf:timm/resnet50.tv_in1k.
The first form needs `coco/2017` prepared by TFDS as ArrayRecord, the second a folder with
`annotations/instances_{train,val}2017.json`, `train2017/` and `val2017/`. Published: 40.6 AP after
300 epochs on 16 GPUs, 42.0 after 500. Not yet run to the end with vitlab. What differs: images go
on a fixed canvas of 1024 pixels with a random scale, not to 480 to 800 on the shorter side and at
most 1333 on the longer; attention weights are not dropped.
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `path=COCO`, `epochs=300` (the learning rate falls at two thirds), `size=1024`."""
    arg = parse_arg(arg, path="", epochs=300, size=1024)
    train = f"decode|flip_lr|random_size_crop(384,600)|scale_jitter({arg.size},0.5,1.0)"
    source, val = "tfds:coco/2017", "validation"
    if arg.path:
        source = f"coco:{arg.path}/annotations/instances_{{split}}2017.json"
        source, val = f"{source}?images={arg.path}/{{split}}2017", "val"
    ending = 'pad_boxes(100)|normalize("imagenet")'

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "detection"
    config.model = dict(
        name="detr",
        backbone=dict(name="resnet", variant="50", norm="frozen"),
        mask_backbone=False,
    )
    config.init_from = ""
    config.data = dict(
        source=source, split="train", preprocess=f"{train}|{ending}", on_error="skip", workers=16
    )
    config.batch_size = 64
    config.total_epochs = arg.epochs
    config.optimizer = dict(
        name="adamw",
        lr=1e-4,
        weight_decay=1e-4,
        clip_norm=0.1,
        rules=[
            dict(pattern="backbone/(stem_conv|stage_1)/.*", freeze=True),
            dict(pattern="backbone/.*norm.*", freeze=True),
            dict(pattern="backbone/.*", lr=0.1),
            dict(pattern=".*"),
        ],
    )
    config.schedule = dict(name="stair", decay_at=(2 / 3,))
    config.evaluators = dict(
        val=dict(
            kind="detection",
            split=val,
            preprocess=f"decode|letterbox({arg.size})|{ending}",
            every_epochs=5,
        ),
    )
    config.checkpoint = dict(every_epochs=1, keep=2, best="val/AP")
    config.logging = dict(every_steps=100)
    return config
