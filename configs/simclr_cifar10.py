"""SimCLR on CIFAR-10 without its labels, with the small ViT of `mae_cifar10` or a ResNet-18.

    python -m vitlab.main --config configs/simclr_cifar10.py:path=DIR --workdir runs/simclr_cifar10
    python -m vitlab.main --config configs/finetune_cifar10.py:path=DIR \\
        --config.init_from=runs/simclr_cifar10
    python -m vitlab.main --config configs/simclr_cifar10.py:path=DIR,resnet

Not yet run to the end with vitlab. Published with a ResNet-18: 90.74 % with a linear probe after
1000 epochs (solo-learn), 84.8 and 87.9 % with kNN after 200 and 800 (lightly). Nobody publishes it
with a ViT.
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `path=DIR` with `train/CLASS/*.jpg` and `test/CLASS/*.jpg`; `resnet`; `epochs=N`."""
    arg = parse_arg(arg, path="data/cifar10", resnet=False, epochs=800)
    evaluation = 'decode|normalize("cifar10")'

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "simclr"
    rules = [dict(pattern=".*kernel"), dict(pattern=".*", weight_decay=0.0)]
    if arg.resnet:
        backbone = dict(name="resnet", variant="18", stem="small")
        projector_layers, temperature = 2, 0.5
        optimizer = dict(name="lars", lr=0.3 * 1024 / 256, weight_decay=1e-4)
    else:
        backbone = dict(
            name="vit", width=192, depth=9, num_heads=3, patch_size=4, pos_embed="sincos2d_mae"
        )
        projector_layers, temperature = 3, 0.2
        optimizer = dict(name="adamw", lr=1.5e-3, weight_decay=0.1)
        rules.insert(0, dict(pattern="backbone/patch_embedding/.*", freeze=True))
    config.model = dict(backbone=backbone, projector_layers=projector_layers, projector_dim=128)
    config.loss = dict(temperature=temperature)
    config.augment = dict(color_jitter=(0.4, 0.4, 0.4, 0.1), blur=(0.0, 0.0))
    config.data = dict(
        source=f"folder:{arg.path}", preprocess=evaluation, workers=4, cache="device"
    )
    config.batch_size = 1024
    config.total_epochs = arg.epochs
    config.optimizer = dict(rules=rules, **optimizer)
    config.schedule = dict(name="cosine", warmup_epochs=min(10, arg.epochs / 5))
    config.evaluators = dict(
        views=dict(kind="contrast", split="test", preprocess=evaluation, every_epochs=50),
        features=dict(
            kind="features",
            split="test",
            preprocess=evaluation,
            every_epochs=50,
            features=dict(protocols=("knn", "linear")),
        ),
    )
    config.checkpoint = dict(every_epochs=50, keep=1)
    config.logging = dict(every_steps=100)
    return config
