"""What the tasks share whose model has a `backbone`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import numpy as np

from vitlab import config as config_lib
from vitlab.models.build import model_settings
from vitlab.tasks.task import Arrays, Examples


@dataclasses.dataclass(frozen=True)
class AroundBackbone:
    """A task whose model is built around a backbone; see `vitlab.tasks.task.Task`."""

    model: nn.Module
    loss_config: Any
    augment_config: Any

    names: ClassVar[str] = "class_names"
    given: ClassVar[tuple[str, ...]] = ()  # fields of the model that the task sets, not the config

    def settings(self) -> dict[str, Any]:
        """The sections that this task read, resolved."""
        model = config_lib.as_dict(model_settings(self.model))
        return {
            "model": {key: value for key, value in model.items() if key not in self.given},
            "loss": config_lib.as_dict(self.loss_config),
            "augment": config_lib.as_dict(self.augment_config),
        }

    def init(self, key: jax.Array, images: jax.Array) -> dict[str, Any]:
        """Fresh variables for images of this shape."""
        return self.model.init(key, images)

    def judged(self, outputs: Arrays, batch: Arrays) -> Arrays:
        """As they are."""
        del batch
        return outputs

    def in_pixels(self, outputs: Arrays, rows: jax.Array, columns: jax.Array) -> Arrays:
        """As they are."""
        del rows, columns
        return outputs

    def reduce(self, outputs: Mapping[str, np.ndarray], examples: Examples) -> Arrays:
        """All of them."""
        del examples
        return outputs

    def layer_of(self, path: str) -> int:
        """The backbone's layer of a parameter; all else is in the one after its last."""
        root, _, rest = path.partition("/")
        return self.model.backbone.layer_of(rest) if root == "backbone" else self.num_layers

    @property
    def num_layers(self) -> int:
        """As of a classifier with this backbone, whose head is after the last block."""
        return self.model.backbone.num_layers + 1
