"""What the backbone of a run sees in images: attention, its rollout, features in colours, nearest
neighbours. Images are read again for the sheets, so that any number of them fits the memory."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flax.errors
import jax
import numpy as np
from etils import epath

from vitlab.config import nearest
from vitlab.data.preprocess import Preprocess
from vitlab.data.sources import Source
from vitlab.errors import InputError
from vitlab.evaluation import inspection_pictures as draw
from vitlab.evaluation.attention import attention_rollout, on_patches
from vitlab.evaluation.neighbours import nearest_neighbours
from vitlab.evaluation.principal_components import component_colours
from vitlab.models import attention_weights as attention
from vitlab.ops.padding import content_mask
from vitlab.own_files import OwnFiles
from vitlab.tasks.photometric import without_padding
from vitlab.tasks.task import Task
from vitlab.training.features import feature_map, pooled
from vitlab.training.step import normalizer

KINDS = ("attention", "rollout", "pca", "neighbours")
_BATCH = 8
# Bytes of attention: a batch keeps to the first, and an image beyond the second is refused.
_BATCH_BYTES, _IMAGE_BYTES = 2**29, 2**33
_SHEETS = {"pca": 60, "neighbours": 20}  # Of these kinds many images are on a picture.

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Look:
    """What is looked at.

    Attributes:
        kinds: of KINDS.
        blocks: of the ViT, whose attention is drawn; -1 is the last. None: all.
        layer: the stage that is compared for `neighbours`, and coloured for `pca` where it has
            places. "": `pre_logits`, and the last stage with places.
        count: of neighbours.
    """

    kinds: tuple[str, ...]
    blocks: tuple[int, ...] | None = (-1,)
    layer: str = ""
    count: int = 5


class Inspection:
    """Draws what a task's backbone sees.

    Args:
        task, variables: of a run.
        preprocess: of the images; its ops of boxes and segments leave them out.
        look: what to draw.
        own: the folder of the pictures.
        wrote: called with each picture's path and what it shows.
        broke: called with one line about each image that cannot be read.

    Raises:
        InputError: attention of a model that has none, or of a block that does not exist.
    """

    def __init__(
        self,
        task: Task,
        variables: Any,
        preprocess: Preprocess,
        look: Look,
        own: OwnFiles,
        wrote: Callable[[os.PathLike, str], None],
        broke: Callable[[str], None],
    ):
        self._task, self._variables, self._look, self._own = task, variables, look, own
        self._preprocess = dataclasses.replace(preprocess, prediction=True)
        self._normalize = normalizer(preprocess.scale, preprocess.shift)
        self._wrote, self._broke = wrote, broke
        self._first: tuple[str, tuple[int, ...]] | None = None  # image, and its shape
        self._vit, self._blocks = None, ()
        if {"attention", "rollout"} & set(look.kinds):
            self._vit = attention.vit_of(task.model)
            self._blocks = _blocks(look.blocks, self._vit.depth)

    def run(self, images: Source, among: Source | None = None) -> None:
        """Draws all pictures of some images.

        Args:
            images: what is looked at.
            among: where neighbours are looked for; None: among the images themselves.

        Raises:
            InputError: the preprocessing leaves images of several sizes, or such as the model
                cannot take; there is no such layer; or a picture would replace a file that is not
                one's own.
        """
        kinds, found = set(self._look.kinds), []
        names, attend, see = _names(images), jax.jit(self._attention), jax.jit(self._features)
        self._own.check(_pictures(self._look.kinds, names))
        for batch in self._batches(images):
            if kinds & {"pca", "neighbours"}:  # first: a wrong layer is found before files are
                found.append({"id": batch["id"], **self._computed(see, batch)})
            if self._vit:
                attended = self._computed(attend, batch)
                for row, index in enumerate(batch["id"]):
                    one = {key: value[row] for key, value in {**batch, **attended}.items()}
                    self._draw_attention(one, names[index], images.describe(index))
        if not found:
            return
        if "pca" in kinds:
            self._draw_colours(images, found)
        if "neighbours" in kinds:
            queries = _joined([_without_maps(each) for each in found])
            if among is None:
                self._draw_neighbours(images, queries, images, queries)
                return
            others = [
                _without_maps({"id": batch["id"], **self._computed(see, batch)})
                for batch in self._batches(among)
            ]
            if not others:
                raise InputError("--among: none of the images can be read")
            self._draw_neighbours(images, queries, among, _joined(others))

    def _attention(self, variables, batch) -> dict[str, jax.Array]:
        """Of each row: `attention` f32[blocks, heads, rows, columns] of the blocks that are looked
        at, `probe` f32[1, heads, rows, columns] of a MAP head, and `mixed` f32[blocks, tokens,
        tokens] of all blocks, the mean over the heads."""
        model, vit, content = self._task.model, self._vit, batch.get("content")
        images = without_padding(self._normalize(batch["image"]), batch)
        grid, found = _grid(batch["image"].shape[1:], vit.patch_size), {}
        every = "rollout" in self._look.kinds
        weights = attention.attention_weights(
            model, variables, images, content, None if every else self._blocks
        )
        if every:
            found["mixed"] = weights.mean(axis=2)
        if "attention" in self._look.kinds:
            weights = weights[:, np.array(self._blocks)] if every else weights
            found["attention"] = on_patches(weights, attention.whole_image_tokens(model), grid)
            params = variables["params"]
            if "map_head" in params.get("backbone", params):
                probe = attention.probe_weights(model, variables, images)
                found["probe"] = probe.reshape(len(probe), 1, -1, *grid)
        return found

    def _features(self, variables, batch) -> dict[str, jax.Array]:
        """Of each row: `map` f32[rows, columns, features], `inside` bool[rows, columns], what is no
        padding, and `features` f32[features]."""
        kinds, layer = self._look.kinds, self._look.layer
        images = without_padding(self._normalize(batch["image"]), batch)
        stages, found = self._task.features(variables, images), {}
        if layer and layer not in stages:
            raise InputError(f"--layer: there is no stage {layer!r}{nearest(layer, stages)}")
        if "neighbours" in kinds:
            found["features"] = pooled(stages, layer or "pre_logits")
        if "pca" in kinds:
            x = found["map"] = _map(stages, layer).astype(np.float32)
            if "content" in batch:
                size, cells = images.shape[1:3], x.shape[1:3]
                stride = self._stride(size, cells)
                found["inside"] = content_mask(batch["content"], cells, stride)
        return found

    def _computed(self, function: Callable, batch: Arrays) -> Arrays:
        """What a function gives of a batch, on the host."""
        rows = len(batch["id"])
        size = self._batch_size(batch["image"].shape[1:])
        # Always as many, so that it is compiled once.
        full = {
            key: np.concatenate([value, value[:1].repeat(size - rows, axis=0)])
            for key, value in batch.items()
            if key != "id"
        }
        try:
            found = function(self._variables, full)
        except flax.errors.ScopeParamShapeError as error:
            raise InputError(
                f"the preprocessing makes images {batch['image'].shape[1:]}, which do not fit the "
                "model that the training images made"
            ) from error
        return {key: np.asarray(value)[:rows] for key, value in found.items()}

    def _batches(self, source: Source) -> Iterator[Arrays]:
        """The images that can be read: `image`, `id`, and `content` where the model is told of
        padding."""
        waiting: list[dict[str, Any]] = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(source), 4 * _BATCH):  # not all at once
                some = range(start, min(start + 4 * _BATCH, len(source)))
                for example in pool.map(lambda index: self._read(source, index), some):
                    if isinstance(example, str):
                        self._broke(example)
                        continue
                    shape = example["image"].shape
                    self._check_shape(source.describe(example["id"]), shape)
                    waiting.append(example)
                    if len(waiting) == self._batch_size(shape):
                        yield _stacked(waiting)
                        waiting = []
        if waiting:
            yield _stacked(waiting)

    def _read(self, source: Source, index: int) -> dict[str, Any] | str:
        """An example, or the line that says what is wrong with it."""
        try:
            example = self._preprocess(source[index], np.random.default_rng(0))
        except InputError as error:
            where, fault = source.describe(index), " ".join(str(error).split())
            return fault if where in fault else f"{where}: {fault}"
        return {"id": index} | {k: example[k] for k in ("image", "content") if k in example}

    def _check_shape(self, where: str, shape: tuple[int, ...]) -> None:
        self._first = self._first or (where, shape)
        if shape != self._first[1]:
            raise InputError(
                f"after the preprocessing {where} is {_size(shape)} and {self._first[0]} is "
                f"{_size(self._first[1])}: make them of one size, such as by --preprocess "
                "'decode|resize(224)|value_range(-1,1)'"
            )

    def _batch_size(self, shape: tuple[int, ...]) -> int:
        if self._vit is None:
            return _BATCH
        rows, columns = _grid(shape, self._vit.patch_size)
        blocks = self._vit.depth if "rollout" in self._look.kinds else len(self._blocks)
        needed = 4 * blocks * self._vit.num_heads * (rows * columns) ** 2
        if needed > _IMAGE_BYTES:
            raise InputError(
                f"images of {_size(shape)} have {rows * columns:,} patches, whose attention takes "
                f"{needed / 2**30:,.0f} GiB: make them smaller, such as by --preprocess "
                "'decode|resize(224)|value_range(-1,1)', or take --what pca,neighbours"
            )
        return int(np.clip(_BATCH_BYTES // needed, 1, _BATCH))

    def _stride(self, size: Sequence[int], cells: Sequence[int]) -> int:
        """Pixels from one cell of a feature map to the next."""
        backbone = getattr(self._task.model, "backbone", self._task.model)
        known = getattr(backbone, "strides", ())
        for stride in sorted({*known, *(2**i for i in range(8))}):
            # A last piece that fills no cell may have one or not.
            some = {tuple(-(-side // stride) for side in size), tuple(x // stride for x in size)}
            if tuple(cells) in some:
                return stride
        return -(-max(size) // max(cells))

    def _draw_attention(self, one: Arrays, name: str, where: str) -> None:
        stride = self._vit.patch_size
        seen = draw.Seen(one["image"], os.path.basename(where), one.get("content"))
        by = "the class token" if self._vit.class_token else "all patches, on average"
        if "attention" in one:
            maps = list(one["attention"])
            labels = [f"block {block}" for block in self._blocks]
            if "probe" in one:
                maps, labels = [*maps, *one["probe"]], [*labels, "probe"]
            path = self._own.path(f"attention/{name}.png")
            draw.attention_heads(seen, maps, labels, stride, f"attention by {by}", path)
            self._wrote(path, where)
        if "mixed" in one:
            rollout = attention_rollout(one["mixed"][:, None])
            tokens = attention.whole_image_tokens(self._task.model)
            cells = on_patches(rollout, tokens, _grid(one["image"].shape, stride))
            path, label = self._own.path(f"rollout/{name}.png"), f"{self._vit.depth} blocks"
            draw.attention_beside(seen, cells, label, stride, f"rollout of attention by {by}", path)
            self._wrote(path, where)

    def _draw_colours(self, images: Source, found: list[Arrays]) -> None:
        arrays = _joined(found)
        colours, shares = component_colours(arrays["map"], arrays.get("inside"))
        parts = ", ".join(f"{100 * share:.0f}" for share in shares)
        title = f"principal components of the features: {parts} % of the variance"
        for some, name in _sheets("pca", len(colours)):
            seen = [self._seen(images, index) for index in arrays["id"][some]]
            stride = self._stride(seen[0].image.shape[:2], colours.shape[1:3])
            path = self._own.path(name)
            draw.colours_beside(seen, colours[some], stride, title, path)
            self._wrote(path, _number(seen))

    def _draw_neighbours(
        self, images: Source, queries: Arrays, among: Source, keys: Arrays
    ) -> None:
        files = [_files(images, queries["id"]), _files(among, keys["id"])]
        _, number = np.unique(files[0] + files[1], return_inverse=True)
        same = number[: len(files[0]), None] == number[len(files[0]) :]
        nearest, similarity = nearest_neighbours(
            queries["features"], keys["features"], self._look.count, same
        )
        title = f"most alike by the cosine of {self._look.layer or 'pre_logits'}"
        for some, name in _sheets("neighbours", len(nearest)):
            rows = []
            for query, others, alike in zip(
                queries["id"][some], nearest[some], similarity[some], strict=True
            ):
                row = [self._seen(images, query)]
                for other, cosine in zip(others, alike, strict=True):
                    if np.isfinite(cosine):
                        row.append(self._seen(among, keys["id"][other], f"\n{cosine:.3f}"))
                rows.append(row)
            path = self._own.path(name)
            draw.neighbours_beside(rows, title, path)
            self._wrote(path, _number(rows))

    def _seen(self, source: Source, index: int, more: str = "") -> draw.Seen:
        """An example again, which was readable before."""
        index = int(index)
        example = self._read(source, index)
        if isinstance(example, str):
            raise InputError(f"{example}; it could be read before")
        name = os.path.basename(source.describe(index))
        return draw.Seen(example["image"], name + more, example.get("content"))


def _map(stages, layer: str):
    """The stage of this name if it has places, or else the last that has."""
    pools = ("pooled", "pre_logits", "logits")
    for name in (layer, *reversed([name for name in stages if name not in pools])):
        if name and (found := feature_map(stages, name)) is not None:
            return found
    raise InputError(f"none of the model's stages has places: {', '.join(stages)}")


def _blocks(blocks: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """Each once, counted from 0."""
    if blocks is None:
        return tuple(range(depth))
    for block in blocks:
        if not -depth <= block < depth:
            raise InputError(
                f"--blocks: there is no block {block}: the ViT's are 0 to {depth - 1}, or -1 for "
                "the last"
            )
    return tuple(dict.fromkeys(block % depth for block in blocks))


def _grid(shape: Sequence[int], patch: int) -> tuple[int, int]:
    """Rows and columns of patches, of which the last may be cut."""
    return -(-shape[0] // patch), -(-shape[1] // patch)


def _stacked(examples: list[dict[str, Any]]) -> Arrays:
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}


def _joined(batches: Sequence[Arrays]) -> Arrays:
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def _without_maps(batch: Arrays) -> Arrays:
    return {key: batch[key] for key in ("id", "features")}


def _files(source: Source, ids: np.ndarray) -> list[str]:
    """Of each example the file that it is, or else a name of its own."""
    return [os.path.realpath(source.describe(int(index))) for index in ids]


def _names(images: Source) -> list[str]:
    """Of each image a name of its own, like its file's."""
    names: dict[str, None] = {}
    for index in range(len(images)):
        stem, number = epath.Path(images.describe(index)).stem, 2
        name = stem
        while name in names:
            name, number = f"{stem}_{number}", number + 1
        names[name] = None
    return list(names)


def _sheets(kind: str, count: int) -> Iterator[tuple[slice, str]]:
    """Which examples are on a sheet, and its name."""
    most = _SHEETS[kind]
    for start in range(0, count, most):
        number = f"_{start // most + 1}" if count > most else ""
        yield slice(start, start + most), f"{kind}{number}.png"


def _pictures(kinds: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    """What the pictures are called, if all images can be read."""
    for kind in kinds:
        if kind in _SHEETS:
            yield from (name for _, name in _sheets(kind, len(names)))
        else:
            yield from (f"{kind}/{name}.png" for name in names)


def _number(images: Sequence) -> str:
    return f"{len(images)} image{'' if len(images) == 1 else 's'}"


def _size(shape: Sequence[int]) -> str:
    height, width, channels = shape
    return f"{width} x {height} of {channels} channel{'' if channels == 1 else 's'}"
