"""What a benchmark feeds a config's step with, whether or not the data are there."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from vitlab.data.preprocess import Preprocess
from vitlab.data.sources import open_source
from vitlab.data.stand_in import StandIn, Truth
from vitlab.errors import InputError
from vitlab.training.experiment import Experiment
from vitlab.training.setup import Setup

Data = Literal["synthetic", "real"]
Log = Callable[[str], None]
# What stands in for the data of a task: what is known of its images, and the classes of ImageNet,
# COCO, ADE20K and COCO's panoptic segments.
STAND_INS: dict[str, tuple[Truth, int]] = {
    "classification": ("label", 1000),
    "detection": ("objects", 80),
    "segmentation": ("segments", 150),
    "universal_segmentation": ("segments", 133),
}


def prepare(config: dict[str, Any], data: Data, log: Log) -> tuple[Setup, str]:
    """The setup without what takes no part in a step, and what its data are in words.

    Raises:
        InputError: something in the config is wrong, or the data are not there and their images
            have a size that nothing tells.
    """
    exp = Experiment.from_config(config)  # as a run would, whatever is left out below
    checkpoint = {**config.get("checkpoint", {}), "best": ""}
    left_out = {"evaluators": {}, "early_stopping": {}, "init_from": "", "profile": ""}
    config = {**config, **left_out, "checkpoint": checkpoint}
    name = exp.data.source
    if data == "real":
        setup = Setup(config)
        if exp.data.presize:
            setup.source.store(log)
        return setup, name
    config["data"] = {**config["data"], "cache": "", "presize": 0}
    words = f"random pixels as of {name}"
    try:
        source = open_source(name, exp.data.split)
    except (InputError, OSError) as error:
        source, words = _stand_in(exp, error, log), f"a stand-in for {name}"
    return Setup(config, source), words


def _stand_in(exp: Experiment, error: Exception, log: Log) -> StandIn:
    """For data that cannot be opened, for this reason."""
    mnist = exp.data.source.startswith("idx:")
    if not mnist and not Preprocess.parse(exp.data.preprocess).resizes:
        raise InputError(
            "the data are not there, and noise cannot stand in for them, as nothing in "
            f"config.data.preprocess sets the size of an image: {error}"
        )
    kind = "28 x 28 images" if mnist else "JPEG files"
    log(f"the data are not there, so {kind} of noise stand in for them: {error}")
    truth, classes = ("label", 10) if mnist else STAND_INS.get(exp.task, ("label", 0))
    return StandIn(truth, exp.model.get("num_classes") or classes, mnist)


def random_batch(setup: Setup) -> dict[str, np.ndarray]:
    """The first example as often as the batch has rows, each with pixels of its own."""
    rows = setup.experiment.batch_size
    batch = {key: np.repeat(value, rows, axis=0) for key, value in setup.example.items()}
    pixels = np.random.default_rng(0).integers(0, 256, batch["image"].shape, np.uint8)
    return {**batch, "image": pixels, "id": np.arange(rows, dtype=np.int32)}
