"""vitlab: image recognition research in JAX and Flax, centred on Vision Transformers."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from vitlab.deploy.model import Model
    from vitlab.deploy.predictor import Predictor

__version__ = "0.1.0"


def load(path: "os.PathLike | str", preprocess: str = "", **options) -> "Predictor":
    """What a run has learned, ready to be used: `vitlab.load("runs/flowers").predict("rose.jpg")`.

    Args:
        path: a working directory, one of its checkpoints, an exported safetensors file; or
            published weights, as `vitlab.weights.load` reads them.
        preprocess: of the images; by default that of the run's first evaluator of its task, or
            what comes with the weights.
        options: of `vitlab.deploy.predictor.Predictor`.

    A model or task of one's own is found by the import path in there: that module is imported.

    Raises:
        InputError: there is no such run, it is damaged, or it predicts nothing; so with weights.
    """
    # Only now, so that `import vitlab` is light.
    from vitlab.deploy.predictor import Predictor

    return Predictor(load_model(path, preprocess), **options)


def load_model(path: "os.PathLike | str", preprocess: str = "") -> "Model":
    """As `load`, the model with its preprocessing and classes alone, to be exported."""
    from vitlab.deploy.model import Model
    from vitlab.deploy.published import published_model
    from vitlab.training.trained import load_trained
    from vitlab.weights.hub import is_published

    if is_published(str(path)):
        return published_model(path, preprocess)
    trained = load_trained(path)
    section = trained.evaluator(required=not preprocess)
    return Model(
        task_name=trained.experiment.task,
        task=trained.task,
        variables=trained.chosen(section.params if section else "auto"),
        preprocess=preprocess or section.preprocess,
        image_size=trained.image_size,
        category_ids=trained.category_ids,
        things=trained.things,
    )
