"""SimCLR: ResNet-50 pretrained on ImageNet-1k without labels (Chen et al., arXiv:2002.05709).

    python -m vitlab.main --config configs/simclr_r50_imagenet.py --workdir runs/simclr_r50
    vitlab evaluate runs/simclr_r50 linear few_shot --train_split train

Published for 100 epochs at this batch: 64.5 % top-1 with a linear probe, and 69.1 for 1000 epochs.
Not yet run to the end with vitlab. Needs `imagenet2012` prepared by TFDS as ArrayRecord. The
numbers are the paper's, and those of the first version of github.com/google-research/simclr (its
later one has a third layer in the projector, and 1e-4 of weight decay). What differs: the views are
cut from a random square of the image, its shorter side at 256 pixels, and by torchvision's law; the
loss is the paper's mean over both views, where the repository adds them up, which makes the steps
of what LARS does not adapt twice as long; and `vitlab evaluate` probes features that are not
augmented.
"""

import ml_collections

from vitlab.config import parse_arg


def get_config(arg=None):
    """`arg`: `epochs=N`."""
    arg = parse_arg(arg, epochs=100)
    evaluation = "decode|resize_small(256)|central_crop(224)|value_range(0,1)"

    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = "simclr"
    config.model = dict(
        backbone=dict(name="resnet", variant="50"), projector_layers=2, projector_dim=128
    )
    config.loss = dict(temperature=0.1)
    config.augment = dict(size=224)  # and the defaults, which are the paper's
    config.data = dict(
        source="tfds:imagenet2012",
        split="train",
        preprocess="decode|resize_small(256)|random_crop(256)|value_range(0,1)",
        workers=32,
    )
    config.batch_size = 4096
    config.total_epochs = arg.epochs
    config.optimizer = dict(
        name="lars", lr=0.3 * 4096 / 256, weight_decay=1e-6, args=dict(momentum=0.9)
    )
    config.schedule = dict(name="cosine", warmup_epochs=min(10, arg.epochs / 5))
    config.evaluators = dict(
        views=dict(
            kind="contrast",
            split="validation",
            preprocess="decode|resize_small(256)|central_crop(256)|value_range(0,1)",
            every_epochs=5,
        ),
        features=dict(
            kind="features",
            split="validation",
            preprocess=evaluation,
            every_epochs=5,
            features=dict(train_split="train[:10%]"),
        ),
    )
    config.checkpoint = dict(every_epochs=1, keep=2)
    config.logging = dict(every_steps=100)
    return config
