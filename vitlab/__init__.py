"""vitlab: image recognition research in JAX and Flax, centred on Vision Transformers."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from vitlab.deploy.predictor import Predictor

__version__ = "0.1.0"


def load(path: "os.PathLike | str", preprocess: str = "", **options) -> "Predictor":
    """What a run has learned, ready to be used: `vitlab.load("runs/flowers").predict("rose.jpg")`.

    Args:
        path: a working directory, one of its checkpoints, or an exported .safetensors file.
        preprocess: of the images; by default that of the run's first evaluator of its task.
        options: of `vitlab.deploy.predictor.Predictor`.

    Raises:
        InputError: there is no such run, it is damaged, or it predicts nothing.
    """
    from vitlab.training.trained import load_predictor

    return load_predictor(path, preprocess, **options)
