"""What `config.init_from` names, as the start of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vitlab.data.preprocess import Preprocess
from vitlab.errors import InputError
from vitlab.models.build import NotImportableError
from vitlab.tasks.task import task_class
from vitlab.weights import transfer
from vitlab.weights.class_rows import any_in_common, rows_of, with_rows
from vitlab.weights.filling import names_of, nested

if TYPE_CHECKING:
    from vitlab.training.setup import Setup

# Fields of a model that change what its parameters mean, and none of their shapes.
_MEANING_AROUND = ("num_heads", "decoder_heads", "mask_backbone")
_MEANING = ("num_heads", "pos_embed", "rope_theta", "rope_periods", "mlp", "norm_eps", "stem")
_MEANING += (*_MEANING_AROUND[1:], "pool")  # the pool where a head is taken with it
# Fields of a model that a pretrained backbone may well have otherwise.
_NOT_OF_THE_BACKBONE = (
    "num_classes", "pool", "norm_after_pool", "dropout", "drop_path", "drop_path_uniform",
    "patch_dropout", "rep_size", "head_init_std", "head_init_bias", "weight_init", "remat", "scan",
)  # fmt: skip


class InitialWeights:
    """Parameters of another run, or published ones, that the model of a run begins with.

    Args:
        setup: of the run.

    Raises:
        InputError: there is nothing to start from, or a parameter that nothing accounts for or that
            would mean something else.
    """

    def __init__(self, setup: Setup):
        exp = setup.experiment
        self._name, self._allow, self._task = exp.init_from, exp.init_allow, exp.task
        self._classes, self._class_parameters = setup.classes, setup.task.class_parameters
        self._category_ids = tuple(getattr(setup.source, "category_ids", ()))
        self._preprocess, self._model = setup.preprocess, setup.resolved["model"]
        # A position table is resized as its source would, to what this run will see.
        hints = {"image_size": setup.image_size, **exp.init_hints}
        self._origin = transfer.read(self._name, hints)
        shapes = names_of({"params": setup.target.params, **setup.target.model_state})
        self._source, self._heads, self._told = self._of_our_classes(shapes)
        self._transfer(shapes)
        differing = [key.rpartition(".")[2] for key in self._differing()]
        other = [field for field in differing if field in _MEANING]
        other = [field for field in other if not transfer.allowed(field, self._allow)]
        if other:
            raise InputError(
                "config.init_from: all parameters fit, but would mean something else. "
                f"{self._settings_there()}: set the same, or name {other[0]!r} in config.init_allow"
            )

    def filled(self, variables: Any, log: Callable[[str], None]) -> Any:
        """The variables with the initial ones in their place; says what became of each."""
        filled, report = self._transfer(names_of(variables))
        lines = (self._origin.report, str(report), self._told, self._other_normalization())
        log(f"init_from {self._name}: " + "\n".join(filter(None, lines)))
        return nested(filled)

    def _transfer(
        self, variables: Mapping[str, Any]
    ) -> tuple[dict[str, Any], transfer.TransferReport]:
        """The variables, or shapes of them, with what `init_from` has in its place; by name."""
        return transfer.transfer(
            variables,
            self._source,
            self._allow,
            self._heads,
            self._origin.task == self._task and self._same_kind(),
            settings=self._settings_there(),
        )

    def _same_kind(self) -> bool:
        """Whether the model is of the same name: of a detector, or of a backbone alone."""
        return self._origin.model.get("name") == self._model.get("name")

    def _of_our_classes(
        self, shapes: Mapping[str, Any]
    ) -> tuple[dict[str, Any], tuple[str, ...], str]:
        """The other model's variables, with what it knows of our classes in our order; regexes of
        the parameters that tell classes apart, where they are new; and a line on the classes."""
        origin, ours = self._origin, self._class_parameters
        if origin.task != self._task:
            try:
                theirs = task_class(origin.task).class_parameters if origin.task else {}
            except NotImportableError as e:
                raise InputError(f"config.init_from {self._name}: its {e}") from e
            return origin.variables, (*ours, *theirs), ""
        if origin.classes == self._classes:
            return origin.variables, (), ""
        rows, number, by = None, 0, "names"
        if origin.classes:
            rows, number = rows_of(origin.classes, self._classes), len(origin.classes)
        elif self._category_ids:
            # DETR's classes are the numbers of COCO's categories, whose gaps are classes too.
            rows, number, by = self._category_ids, max(self._category_ids) + 1, "numbers"
        if rows and (taken := with_rows(origin.variables, shapes, ours, rows, number)):
            return taken, (), f"classes by their {by}, {len(rows)} of {number}"
        if not origin.published or any_in_common(origin.classes or (), self._classes):
            return origin.variables, tuple(ours), ""
        # Published ones without names, or all with others, as ImageNet's have several: by order.
        there, here = (
            {name: np.shape(x) for name, x in variables.items() if transfer.allowed(name, ours)}
            for variables in (origin.variables, shapes)
        )
        if there != here:
            return origin.variables, tuple(ours), ""
        if not origin.classes:
            return origin.variables, (), ""
        first = f"{origin.classes[0]!r} there is {self._classes[0]!r} here"
        return origin.variables, (), f"classes by their order: {first}, and so on"

    def _other_normalization(self) -> str:
        """A line where the other model saw its images in another mean or spread than ours does."""
        if not self._origin.normalization:
            return ""
        theirs, ours = Preprocess.parse(self._origin.normalization), self._preprocess
        black = theirs.shift, ours.shift
        white = (255 * each.scale + each.shift for each in (theirs, ours))
        if all(np.allclose(*levels, atol=0.02) for levels in (black, tuple(white))):
            return ""
        last = str(ours).rpartition("|")[2]
        return f"its images had {theirs}, and config.data.preprocess ends in {last}"

    def _settings_there(self) -> str:
        """The settings of the other model where they are not ours, for an error."""
        differ = [f"{key}={value}" for key, value in self._differing().items()]
        return f"The model there has {', '.join(differ)}" if differ else ""

    def _differing(self) -> dict[str, Any]:
        """Settings of the other run's backbone that are not as ours, with their values there; and
        of the same model around it those that change what its parameters mean."""
        theirs, ours = self._origin.model, self._model
        where = "config.model.backbone" if "backbone" in ours else "config.model"
        inner = theirs.get("backbone", theirs), ours.get("backbone", ours)
        fields = [key for key in inner[1] if key not in _NOT_OF_THE_BACKBONE]
        if not self._heads:
            fields += ["pool"]
        # Published weights have sizes and no variant.
        differing = {
            f"{where}.{key}": inner[0][key]
            for key in fields
            if key in inner[0] and key in inner[1] and inner[0][key] != inner[1][key]
            if (key, inner[0][key]) != ("variant", None)
        }
        if "backbone" in ours and self._origin.task == self._task and self._same_kind():
            for key in _MEANING_AROUND:
                if key in theirs and key in ours and theirs[key] != ours[key]:
                    differing[f"config.model.{key}"] = theirs[key]
        return differing
