"""Segmenter-Mask-S/16 on ADE20K, the published recipe: mIoU 45.3 (Strudel et al., 2105.05633).

    wget http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip
    unzip ADEChallengeData2016.zip; cd ADEChallengeData2016
    cut -f5 objectInfo150.txt | tail -n +2 | cut -d, -f1 > classes.txt; cd -
    python -m vitlab.main --config configs/vit_s16_imagenet.py --workdir runs/vit_s16
    python -m vitlab.main --config configs/segmenter_vit_s16_ade20k.py:path=ADEChallengeData2016 \\
        --config.init_from=runs/vit_s16

The published number begins with a ViT-S/16 from ImageNet-21k that has a class token and learned
positions. Its windows of 512 pixels run over the image with the shorter side at 512; here they run
over the image within a square of 688, which is that for sides of 3 to 4, of 512 x 683 pixels, and
smaller for longer images; the last window ends with the last patch, not with the last pixel.
Colours there change by four ops, of which each is drawn for half of the images, brightness being
added; here half of the images have all four, and brightness is a factor. Not yet run to the end.
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `path=ADE20K`, `size=512` (of the crops, in pixels)."""
    arg = parse_arg(arg, path="data/ADEChallengeData2016", size=512)
    normalize = 'normalize("half")'
    canvas = -(-arg.size * 4 // 3 // 16) * 16

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "segmentation"
    config.model = dict(
        name="segmenter",
        # That of `vit_s16_imagenet`.
        backbone=dict(
            name="vit",
            variant="S/16",
            pool="gap",
            pos_embed="sincos2d",
            mlp="gelu_tanh",
            drop_path=0.1,
        ),
        decoder="mask",
        window=arg.size,
    )
    config.init_from = ""
    config.data = dict(
        source=f"masks:{arg.path}?images=images/{{split}}&masks=annotations/{{split}}&offset=1",
        split="training",
        preprocess=f"decode|random_scale({arg.size},0.5,2.0)|segment_crop({arg.size})|flip_lr"
        f"|semantic|{normalize}",
        on_error="skip",
        workers=16,
    )
    config.batch_size = 8
    config.total_epochs = 64
    config.augment = dict(color_jitter=(0.125, 0.5, 0.5, 0.1), color_jitter_prob=0.5)
    config.optimizer = dict(name="sgd", lr=1e-3, args=dict(momentum=0.9, nesterov=True))
    config.schedule = dict(name="poly", end_factor=0.01)
    config.evaluators = dict(
        val=dict(
            kind="segmentation",
            split="validation",
            preprocess=f"decode|letterbox({canvas})|semantic|{normalize}",
            every_epochs=2,
        ),
    )
    config.checkpoint = dict(every_epochs=2, keep=2, best="val/mIoU")
    config.logging = dict(every_steps=100)
    return config
