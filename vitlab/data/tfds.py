"""Sets of TensorFlow Datasets as a source, without TensorFlow."""

import dataclasses
import functools
import os
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from vitlab.data.annotations import RLE, Annotation
from vitlab.data.decode import decode_mask, image_size
from vitlab.data.segments import BACKGROUND, Segments, from_instances
from vitlab.data.splits import resolve
from vitlab.errors import InputError

# COCO's 80 classes are numbered from 1 to 90, with gaps.
_COCO_IDS = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
# A split of fewer bytes is kept in memory as it is read.
_KEPT_BYTES = 64 << 20


class TfdsSource:
    """A TFDS set prepared as ArrayRecord, read by `tfds` without TensorFlow.

    Images stay the encoded bytes of the record. Of the rest, "label" is handed on, or where there
    are "objects" with boxes (as in coco, voc), an `Annotation` of them. Where there are "instances"
    besides, an image whose levels are the numbers of the objects from 1 on, the segments are those
    objects and, as one more class, the background (0).
    """

    def __init__(self, name: str, split: str, data_dir: str | None, spec: str):
        if data_dir is not None:
            data_dir = os.path.expanduser(data_dir)
        builder = _tfds_builder(name, data_dir, spec)
        features = builder.info.features
        has_objects = "objects" in features
        within = getattr(features["objects"], "feature", None) if has_objects else None
        self._annotated = within is not None and {"bbox", "label"} <= set(within.keys())
        # Pascal VOC counts pixels from 1, and TFDS leaves it at that.
        self._first_pixel = int(builder.name == "voc")
        if "image" not in features or not self._annotated and "label" not in features:
            raise InputError(f"{spec} has no image and label but {', '.join(sorted(features))}")
        label = features["objects"]["label"] if self._annotated else features["label"]
        if not isinstance(label, tfds.features.ClassLabel):
            raise InputError(f"{spec}: the feature label is no class label")
        self.class_names = tuple(label.names)
        self.category_ids = _COCO_IDS if builder.name == "coco" else None
        if len(self.category_ids or ()) != len(self.class_names):
            self.category_ids = tuple(range(1, len(self.class_names) + 1))
        images = [key for key, value in features.items() if isinstance(value, tfds.features.Image)]
        self._masked = self._annotated and "instances" in images
        if self._masked:
            self.segment_names = (*self.class_names, BACKGROUND)
            self.things = (True,) * len(self.class_names) + (False,)
        self._spec, self._split = spec, split
        sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
        self.ranges = ranges = resolve(split, sizes, spec)
        parts = [f"{name}[{start}:{stop}]" for name, start, stop in ranges]
        self._records = builder.as_data_source(
            "+".join(parts),
            decoders={key: tfds.decode.SkipDecoding() for key in images},
            file_format="array_record",
        )
        stored = sum(builder.info.splits[name].num_bytes for name in {r.name for r in ranges})
        # Parsing a record takes TFDS 40 microseconds, much of what a tiny image costs in all.
        self._kept: dict[int, dict[str, Any]] | None = {} if stored < _KEPT_BYTES else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None if self._kept is None else {}}

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = dict(self._read(index))
        if self._masked:
            instances, background = example.pop("instances"), len(self.class_names)
            example["segments"] = functools.partial(
                _segments, instances, example["objects"], background
            )
        return example

    def _read(self, index: int) -> dict[str, Any]:
        """What an example is made of; it is not to be changed."""
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        try:
            example = self._records[index]
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(f"{self.describe(index)}: cannot be read ({_line(error)})") from error
        found = {"image": example["image"]}
        if self._annotated:
            found["objects"] = self._annotation(example, index)
        else:
            found["label"] = int(example["label"])
        if self._masked:
            found["instances"] = example["instances"]
        if self._kept is not None:
            self._kept[index] = found
        return found

    def annotation(self, index: int) -> Annotation:
        """The objects of example `index`, of a set that has some, with masks if it has any."""
        example = self._read(index)
        objects = example["objects"]
        if self._masked:
            instances = decode_mask(example["instances"])
            masks = tuple(RLE.of(instances == number) for number in range(1, len(objects) + 1))
            objects = dataclasses.replace(objects, segmentations=masks)
        return objects

    def segments(self, index: int) -> Segments:
        """The segments of example `index`, of a set that has some."""
        return self[index]["segments"]()

    def _annotation(self, example: dict[str, Any], index: int) -> Annotation:
        objects = example["objects"]
        width, height = image_size(example["image"], self.describe(index))
        # TFDS has y0, x0, y1, x1 as fractions of the image.
        boxes = np.asarray(objects["bbox"], np.float64).reshape(-1, 4)[:, [1, 0, 3, 2]]
        boxes = boxes * [width, height, width, height]
        boxes[:, :2] -= self._first_pixel
        # Of rounding alone: TFDS takes no box that reaches outside.
        boxes = boxes.clip(0, [width, height, width, height])
        none = np.zeros(len(boxes), bool)
        return Annotation(
            image_id=int(example.get("image/id", index + 1)),
            width=width,
            height=height,
            boxes=boxes,
            labels=np.asarray(objects["label"], np.int32).reshape(-1),
            crowd=np.asarray(objects.get("is_crowd", none), bool),
            difficult=np.asarray(objects.get("is_difficult", none), bool),
            area=np.asarray(
                objects.get("area", (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)), np.float64
            ),
            segmentations=(None,) * len(boxes),
        )

    def describe(self, index: int) -> str:
        return f"{self._spec} {self._split}[{index}]"


def _segments(instances: bytes, objects: Annotation, background: int) -> Segments:
    return from_instances(decode_mask(instances), objects, background)


def _tfds_builder(name: str, data_dir: str | None, spec: str):
    """The builder of a set that is prepared as ArrayRecord; an InputError says how to get there."""
    try:
        # TFDS itself looks at the variable only when it is imported.
        builder = tfds.builder(name, data_dir=data_dir or os.environ.get("TFDS_DATA_DIR"))
    except tfds.core.DatasetNotFoundError:
        where = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        raise InputError(f"{spec}: TFDS knows no set {name!r} and {where} holds none") from None
    except ImportError:  # The code of some sets, COCO's too, needs TensorFlow; their files do not.
        root = epath.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
        place, _, version = name.partition(":")
        versions = sorted((root / place).expanduser().glob(version or "*.*.*"))
        if not versions:
            raise InputError(f"{spec} is not prepared in {root / place}") from None
        builder = tfds.builder_from_directory(versions[-1])
    except (ValueError, AssertionError, RuntimeError) as error:
        raise InputError(f"{spec}: {_line(error)}") from error
    if not builder.is_prepared():
        where = f", data_dir={data_dir!r}" if data_dir else ""
        raise InputError(
            f"{spec} is not prepared in {builder.data_dir}: run "
            f'python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder({name!r}{where}, file_format='array_record')"
            '.download_and_prepare()" (once; pip install tensorflow importlib_resources for it)'
        )
    # The builder in TFDS's code overlooks a second format that a conversion has added.
    builder = tfds.builder_from_directory(builder.data_dir)
    formats = {each.value for each in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise InputError(
            f"{spec} is prepared as {', '.join(sorted(formats))}, which has no random access: run "
            f"tfds convert_format --dataset_version_dir={builder.data_dir} "
            "--out_file_format=array_record (once; pip install tensorflow apache-beam mlcroissant "
            "for it)"
        )
    return builder


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
