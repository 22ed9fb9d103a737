"""ViT-B/16 fine-tuned on ImageNet-1k from MAE (He et al., arXiv:2111.06377).

    python -m vitlab.main --config configs/mae_finetune_b16_imagenet.py \\
        --config.init_from=runs/mae_b16

`init_from` is a run of `mae_b16_imagenet` or the authors' mae_pretrain_vit_base.pth. Published:
83.66 % top-1 (four seeds 83.57 ± 0.08). Not yet run to the end with vitlab. The numbers are those
of github.com/facebookresearch/mae. What differs: RandAugment is big_vision's form at the same
magnitude 9, and positions stay fixed, where the authors' start from the same table and learn at
0.004 of the rate.
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `epochs=N`."""
    arg = parse_arg(arg, epochs=100)
    bicubic = 'method="bicubic", antialias=True'
    crop = f'inception_crop(224, area_min=8, ratio_max=1.3333, sampling="area", {bicubic})'

    evaluation = f'decode|resize_small(256, {bicubic})|central_crop(224)|normalize("imagenet")'

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "classification"
    config.model = dict(
        name="vit",
        variant="B/16",
        pos_embed="sincos2d_mae",
        pool="gap",
        class_token=True,
        norm_after_pool=True,
        drop_path=0.1,
        head_init_std=2e-5,
    )
    config.init_from = "runs/mae_b16"
    config.init_allow = ["head/.*", "norm/.*", "fc_norm/.*"]  # pretraining has its norm elsewhere
    config.data = dict(
        source="tfds:imagenet2012",
        split="train",
        preprocess=f'decode|{crop}|flip_lr|randaug(2,9)|normalize("imagenet")',
        workers=32,
    )
    config.batch_size = 1024
    config.total_epochs = arg.epochs
    config.loss = dict(label_smoothing=0.1)
    config.augment = dict(mixup=0.8, cutmix=1.0, erasing=0.25)
    lr = 5e-4 * 1024 / 256
    config.optimizer = dict(name="adamw", lr=lr, weight_decay=0.05, layer_decay=0.65)
    config.schedule = dict(
        name="cosine", warmup_epochs=min(5, arg.epochs / 5), end_factor=1e-6 / lr
    )
    config.evaluators = dict(
        val=dict(
            split="validation",
            preprocess=evaluation,
            every_epochs=1,
        ),
    )
    config.checkpoint = dict(every_epochs=1, keep=2, best="val/accuracy")
    config.logging = dict(every_steps=100)
    return config
