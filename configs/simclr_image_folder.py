"""Your own images without labels: SimCLR of the ViT of `image_folder`, or of a ResNet-18.

    python -m vitlab.main --config configs/simclr_image_folder.py:path=DIR --workdir runs/simclr
    python -m vitlab.main --config configs/image_folder.py:path=LABELLED \\
        --config.init_from=runs/simclr

Every image below `DIR` is taken, of any mode and size; a twentieth is held out. It compares each
image with all others of its batch: give it a thousand of them at least, and `mae_image_folder`
where there are fewer. Not run to an end; there is no published number to compare with.
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `path=DIR`, `size=64` (pixels), `resnet`, `epochs=200`."""
    arg = parse_arg(arg, path="data/images", size=64, resnet=False, epochs=200)
    # The views are crops of this.
    resize = f"decode|resize_small({arg.size * 5 // 4}, antialias=True)"
    ending = 'normalize("imagenet")'

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "simclr"
    rules = [dict(pattern=".*kernel"), dict(pattern=".*", weight_decay=0.0)]
    if arg.resnet:
        backbone = dict(name="resnet", variant="18", stem="small" if arg.size <= 64 else "imagenet")
    else:
        backbone = dict(name="vit", width=192, depth=6, num_heads=3, patch_size=8, pool="gap")
        rules.insert(0, dict(pattern="backbone/patch_embedding/.*", freeze=True))
    config.model = dict(backbone=backbone, projector_layers=3, projector_dim=128)
    config.loss = dict(temperature=0.2)
    config.augment = dict(size=arg.size, color_jitter=(0.4, 0.4, 0.2, 0.1))
    config.data = dict(
        source=f"images:{arg.path}",
        split="train[:95%]",
        preprocess=f"{resize}|random_crop({arg.size * 5 // 4})|{ending}",
        on_error="skip",
        workers=2,
    )
    config.batch_size = 256
    config.total_epochs = arg.epochs
    config.optimizer = dict(name="adamw", lr=1e-3, weight_decay=0.1, rules=rules)
    config.schedule = dict(name="cosine", warmup_epochs=min(10, arg.epochs / 10))
    config.evaluators = dict(
        views=dict(
            kind="contrast",
            split="train[95%:]",
            preprocess=f"{resize}|central_crop({arg.size * 5 // 4})|{ending}",
            every_epochs=10,
            on_error="skip",
        ),
        features=dict(
            kind="features",
            split="train[95%:]",
            preprocess=f"{resize}|central_crop({arg.size})|{ending}",
            every_epochs=10,
            on_error="skip",
            features=dict(protocols=()),  # which would need labels; the alarms do not
        ),
    )
    config.checkpoint = dict(every_epochs=10, keep=1)
    config.logging = dict(every_steps=20)
    return config
