"""Blood cells (BCCD, 364 photographs, Pascal VOC's format): a detector from 205 images.

git clone https://github.com/Shenggan/BCCD_Dataset
python -m vitlab.main --config configs/detr_bccd.py:path=BCCD_Dataset/BCCD

Not yet run to the end. YOLO models pretrained on COCO stand at AP50 0.90 to 0.94.
"""

import ml_collections

from vitlab.config import parse_arg
from vitlab.errors import InputError

BACKBONES = {
    "resnet": dict(name="resnet", variant="18", depths=(2, 2, 2), widths=(32, 64, 128)),
    "vit": dict(name="vit", variant="S/16", pool="gap", pos_embed="sincos2d_mae", drop_path=0.1),
}


def get_config(arg=None):
    """`arg`: `path=BCCD`, `backbone=resnet` or `vit`, `size=320` (pixels of the longer side),
    `epochs=120`."""
    arg = parse_arg(arg, path="BCCD_Dataset/BCCD", backbone="resnet", size=320, epochs=120)
    if arg.backbone not in BACKBONES:
        raise InputError(f"config argument backbone is {arg.backbone!r}: resnet or vit")
    canvas = (arg.size * 3 // 4, arg.size)
    ending = 'pad_boxes(40)|normalize("imagenet")'

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "detection"
    config.model = dict(
        name="plain_detr",
        backbone=BACKBONES[arg.backbone],
        num_queries=60,
        width=128,
        num_heads=4,
        mlp_dim=256,
        encoder_layers=1,
        decoder_layers=3,
        denoising=1,
    )
    config.init_from = ""
    config.data = dict(
        source=f"voc:{arg.path}",
        split="train",
        # A microscope's photographs have no upright.
        preprocess=f"decode|flip_lr|flip_ud|scale_jitter({canvas},0.7,1.4)|{ending}",
        workers=2,
    )
    config.batch_size = 8
    config.total_epochs = arg.epochs
    config.loss = dict(classification="iou_aware", class_weight=2.0, class_cost=2.0)
    config.augment = dict(color_jitter=(0.3, 0.3, 0.3, 0.05), color_jitter_prob=0.8)
    config.optimizer = dict(name="adamw", lr=1e-3, weight_decay=0.05, clip_norm=0.1)
    # An epoch has 26 steps.
    config.schedule = dict(name="cosine", warmup_steps=min(100, 5 * arg.epochs))
    config.ema_decay = 0.99
    evaluation = dict(
        kind="detection", preprocess=f"decode|letterbox({canvas})|{ending}", every_epochs=10
    )
    config.evaluators = dict(
        val=dict(split="val", **evaluation), test=dict(split="test", **evaluation)
    )
    config.checkpoint = dict(every_epochs=10, keep=2)
    config.logging = dict(every_steps=20)
    return config
