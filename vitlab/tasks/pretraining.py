"""What the tasks share that pretrain a backbone on images without labels."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitlab import config as config_lib
from vitlab.models.build import build_with_backbone
from vitlab.tasks.backbone import AroundBackbone
from vitlab.tasks.task import Arrays


@dataclasses.dataclass(frozen=True)
class Pretraining(AroundBackbone):
    """A task whose model has a `backbone`, which is what remains of it.

    A method names its classes and its `evaluators`, and adds `init`, `augment`, `loss`, `evaluate`,
    `show`, `metrics` and `pictures`; see `vitlab.tasks.task.Task` for what each promises.
    """

    axis_name: str | None = None

    classes: ClassVar[tuple[str, ...]] = ()
    views: ClassVar[int] = 0
    class_parameters: ClassVar[Mapping[str, int | None]] = {}
    some_metrics: ClassVar[tuple[str, ...]] = ()
    model_class: ClassVar[type[nn.Module]]  # around a backbone
    loss_class: ClassVar[type]  # of `config.loss`
    augment_class: ClassVar[type]  # of `config.augment`

    @classmethod
    def from_config(
        cls,
        model: Arrays,
        loss: Arrays,
        augment: Arrays,
        classes: tuple[str, ...],
        dtype: Any,
        axis_name: str | None = None,
    ) -> Self:
        """Builds the task. `config.model` has `backbone` and the fields of the model's class.

        Raises:
            InputError: a wrong key or value.
        """
        del classes
        return cls(
            model=build_with_backbone(cls.model_class, model, dtype=dtype, axis_name=axis_name),
            loss_config=config_lib.section(loss, cls.loss_class, "config.loss"),
            augment_config=config_lib.section(augment, cls.augment_class, "config.augment"),
            axis_name=axis_name,
        )

    def settings(self) -> dict[str, Any]:
        """The sections that this task read, resolved. Its model is its own and so has no name."""
        settings = super().settings()
        settings["model"].pop("name", None)
        return settings

    def augment_alike(self, batch: Arrays, normalize: Callable) -> Arrays:
        """`augment` for an evaluation, where the draws of an example are always the same."""
        always = jnp.zeros_like(batch["id"])
        return self.augment({**batch, "epoch": always}, normalize, 0, jnp.zeros((), jnp.int32))

    def features(self, variables: Arrays, images: jax.Array) -> Arrays:
        """The backbone's stages for whole images f32[batch, height, width, channels]."""
        return self.model.apply(variables, images, method=lambda model, x: model.backbone(x)[1])
