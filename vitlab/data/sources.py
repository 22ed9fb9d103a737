"""Sources: random access to labelled images, from one string.

| string | what is read |
|---|---|
| `digits` | scikit-learn's 1797 scanned digits; nothing to download |
| `digit_scenes` | coloured scenes of those digits, with boxes and masks; nothing to download |
| `tfds:NAME[/CONFIG][:VERSION][?data_dir=PATH]` | a TFDS set prepared as ArrayRecord |
| `folder:PATH` | PATH/SPLIT/CLASS/**/*.jpg, or PATH/CLASS/*.jpg as the one split `train` |
| `images:PATH` | every image file below PATH, without labels, as the one split `train` |
| `idx:PATH[?classes=a,b,c]` | the four files of the MNIST family, plain or gzipped |
| `coco:INSTANCES.json[?images=PATH]` | COCO's objects; `{split}` in either is filled in |
| `voc:PATH[?classes=a,b,c&offset=1]` | Pascal VOC's Annotations, JPEGImages and ImageSets/Main |
| `yolo:data.yaml` | YOLO's labels, a text file an image |
| `masks:PATH[?images=...&masks=...&classes=...]` | images with masks of class ids or colours |
| `panoptic:PANOPTIC.json[?images=PATH&masks=PATH]` | COCO's panoptic segments |

Every source understands the split grammar of TFDS (see `splits`).
"""

import dataclasses
import functools
import gzip
import math
import os
import zlib
from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import parse_qsl

import numpy as np
from etils import epath

from vitlab.data.annotations import RLE, Annotation
from vitlab.data.decode import decode_mask, image_size
from vitlab.data.folders import FolderSource, ImagesSource
from vitlab.data.segments import Segments, from_instances
from vitlab.data.splits import Range, resolve, split_names
from vitlab.errors import InputError

# COCO's 80 classes are numbered from 1 to 90, with gaps.
_COCO_IDS = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
# A TFDS split of fewer bytes is kept in memory as it is read.
_KEPT_BYTES = 64 << 20


class Source(Protocol):
    """Random access to the examples of one split; can be pickled into worker processes.

    An example is a dict with "image" (the encoded bytes of a file, or uint8[height, width] or
    uint8[height, width, channels]) and "label" (int, the index of its class name; 0 where there are
    no classes). Where images have objects, there are instead "objects" (an `Annotation`), and the
    source has `annotation(index)` and `category_ids`, the data set's own numbers of its classes.

    Where it is known what each pixel belongs to, there is "segments", a function of no argument
    that gives the `Segments` of the image, so that who has no need of them pays nothing. The source
    then has `segments(index)`, which gives the same, `segment_names`, and `things`, which is true
    for each of those names that stands for objects that can be counted, false for the others, as
    sky and road.
    """

    class_names: tuple[str, ...]
    ranges: Sequence[Range]  # of the stored splits, whose examples these are

    def __len__(self) -> int:
        """The number of examples."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Example `index`; an InputError that names it where it cannot be read."""

    def describe(self, index: int) -> str:
        """What a person would look for when example `index` is wrong: a file name, or split[i]."""


def open_source(spec: str, split: str) -> Source:
    """Opens a source.

    Args:
        spec: one of the strings above, e.g. "folder:~/flowers".
        split: e.g. "train", "train[:90%]", "train+test".

    Raises:
        InputError: anything about the string, the split or the files is wrong.
    """
    scheme, _, rest = spec.partition(":")
    place, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if scheme in _OPTIONS and not place:
        raise InputError(f"source {spec!r} names nothing: write {scheme}:{_EXAMPLES[scheme]}")
    for key in options:
        if key not in _OPTIONS.get(scheme, ()):
            allowed = ", ".join(_OPTIONS.get(scheme, ())) or "no option"
            raise InputError(f"source {spec!r}: unknown option {key!r}, {scheme}: takes {allowed}")
    if spec in ("digits", "digit_scenes"):
        from vitlab.data import embedded  # TFDS takes half a second to import.

        return TfdsSource(spec, split, os.fspath(embedded.prepare(spec)), spec)
    if scheme == "tfds":
        return TfdsSource(place, split, options.get("data_dir"), spec)
    if scheme == "folder":
        return FolderSource(place, split)
    if scheme == "images":
        return ImagesSource(place, split)
    if scheme == "idx":
        return IdxSource(place, split, options.get("classes"))
    if scheme == "coco":
        from vitlab.data.coco import open_coco

        return open_coco(place, options, split, spec)
    if scheme == "voc":
        from vitlab.data.voc import open_voc

        return open_voc(place, options, split, spec)
    if scheme == "yolo":
        from vitlab.data.yolo import open_yolo

        return open_yolo(place, options, split, spec)
    if scheme == "masks":
        from vitlab.data.masks import MaskSource

        return MaskSource(place, options, split, spec)
    if scheme == "panoptic":
        from vitlab.data.panoptic import open_panoptic

        return open_panoptic(place, options, split, spec)
    known = ", ".join(f"{name}:{example}" for name, example in _EXAMPLES.items())
    raise InputError(f"source {spec!r} is not known: the sources are digits, digit_scenes, {known}")


_EXAMPLES = {
    "tfds": "NAME",
    "folder": "PATH",
    "images": "PATH",
    "idx": "PATH",
    "coco": "INSTANCES.json",
    "voc": "PATH",
    "yolo": "data.yaml",
    "masks": "PATH",
    "panoptic": "PANOPTIC.json",
}
_OPTIONS = {
    "tfds": ("data_dir",),
    "folder": (),
    "images": (),
    "idx": ("classes",),
    "coco": ("images",),
    "voc": ("classes", "offset"),
    "yolo": (),
    "masks": ("images", "masks", "classes", "ignore", "offset"),
    "panoptic": ("images", "masks"),
}


class IdxSource:
    """The MNIST family's idx files (http://yann.lecun.com/exdb/mnist); images uint8[height, width].

    `PATH` holds train-images-idx3-ubyte, train-labels-idx1-ubyte and the same with t10k for the
    split "test", each plain or with .gz. Class names come from `?classes=a,b,c`, else from the
    lines of a classes.txt or labels.txt beside the files, else they are "0" to "9".
    """

    _PREFIXES = {"train": "train", "test": "t10k"}

    def __init__(self, path: str, split: str, classes: str | None):
        self._root, self._split = epath.Path(path).expanduser(), split
        if not self._root.is_dir():
            raise InputError(f"idx folder {self._root} does not exist or is not a folder")
        self.class_names = self._read_class_names(classes)
        self._load()
        largest = int(self._labels.max())
        if largest >= len(self.class_names):
            raise InputError(
                f"idx folder {self._root} has the label {largest} but {len(self.class_names)} "
                "class names: name them all with ?classes=a,b,c or one a line in classes.txt"
            )

    def _read_class_names(self, classes: str | None) -> tuple[str, ...]:
        if classes is not None:
            names = classes.split(",")
        else:
            listed = [self._root / name for name in ("classes.txt", "labels.txt")]
            listed = [path for path in listed if path.exists()]
            names = listed[0].read_text().splitlines() if listed else "0123456789"
        return tuple(name.strip() for name in names if name.strip())

    def _load(self) -> None:
        splits = {}
        for name in dict.fromkeys(split_names(self._split)):
            if name not in self._PREFIXES:
                raise InputError(
                    f"idx folder {self._root} has the splits test, train: {name!r} does not exist"
                )
            prefix = self._PREFIXES[name]
            images = _read_idx(self._root, f"{prefix}-images", dimensions=3)
            labels = _read_idx(self._root, f"{prefix}-labels", dimensions=1)
            if len(images) != len(labels):
                raise InputError(
                    f"idx folder {self._root}: {len(images)} images but {len(labels)} labels "
                    f"in the split {name}"
                )
            splits[name] = images, labels
        sizes = {name: len(labels) for name, (_, labels) in splits.items()}
        self.ranges = ranges = resolve(self._split, sizes, f"idx:{self._root}")
        self._images, self._labels = (
            np.concatenate([splits[name][part][start:stop] for name, start, stop in ranges])
            for part in (0, 1)
        )

    def __getstate__(self) -> dict[str, Any]:
        # A worker reads the files itself: cheaper than sending the images through a pipe.
        return {k: v for k, v in self.__dict__.items() if k not in ("_images", "_labels")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._images[index], "label": int(self._labels[index])}

    def describe(self, index: int) -> str:
        return f"idx:{self._root} {self._split}[{index}]"


class TfdsSource:
    """A TFDS set prepared as ArrayRecord, read by `tfds` without TensorFlow.

    Images stay the encoded bytes of the record. Of the rest, "label" is handed on, or where there
    are "objects" with boxes (as in coco, voc), an `Annotation` of them. Where there are "instances"
    besides, an image whose levels are the numbers of the objects from 1 on, the segments are those
    objects and, as one more class, the background (0).
    """

    def __init__(self, name: str, split: str, data_dir: str | None, spec: str):
        import tensorflow_datasets as tfds

        if data_dir is not None:
            data_dir = os.path.expanduser(data_dir)
        builder = _tfds_builder(name, data_dir, spec)
        features = builder.info.features
        has_objects = "objects" in features
        within = getattr(features["objects"], "feature", None) if has_objects else None
        self._annotated = within is not None and {"bbox", "label"} <= set(within.keys())
        # Pascal VOC counts pixels from 1, and TFDS leaves it at that.
        self._first_pixel = int(name.split("/")[0] == "voc")
        if "image" not in features or not self._annotated and "label" not in features:
            raise InputError(f"{spec} has no image and label but {', '.join(sorted(features))}")
        label = features["objects"]["label"] if self._annotated else features["label"]
        if not isinstance(label, tfds.features.ClassLabel):
            raise InputError(f"{spec}: the feature label is no class label")
        self.class_names = tuple(label.names)
        self.category_ids = _COCO_IDS if name.startswith("coco/") else None
        if len(self.category_ids or ()) != len(self.class_names):
            self.category_ids = tuple(range(1, len(self.class_names) + 1))
        images = [key for key, value in features.items() if isinstance(value, tfds.features.Image)]
        self._masked = self._annotated and "instances" in images
        if self._masked:
            self.segment_names = (*self.class_names, "background")
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
    import tensorflow_datasets as tfds

    try:
        # TFDS itself looks at the variable only when it is imported.
        builder = tfds.builder(name, data_dir=data_dir or os.environ.get("TFDS_DATA_DIR"))
    except tfds.core.DatasetNotFoundError:
        where = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        raise InputError(f"{spec}: TFDS knows no set {name!r} and {where} holds none") from None
    except ImportError:  # The code of some sets, COCO's too, needs TensorFlow; their files do not.
        root = epath.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
        versions = sorted((root / name).expanduser().glob("*.*.*"))
        if not versions:
            raise InputError(f"{spec} is not prepared in {root / name}") from None
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


def _read_idx(root: epath.Path, stem: str, dimensions: int) -> np.ndarray:
    """Reads uint8[count, ...] from the idx file `stem`: a magic number, the sizes, the bytes."""
    names = [f"{stem}{dot}idx{dimensions}-ubyte{gz}" for dot in "-." for gz in ("", ".gz")]
    paths = [root / name for name in names if (root / name).exists()]
    if not paths:
        raise InputError(f"idx folder {root} has no {names[0]} (nor with .gz)")
    path = paths[0]
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({_line(error)})") from error
    # The magic number: two zeros, 8 for unsigned bytes, the number of dimensions.
    if content[:4] != bytes([0, 0, 8, dimensions]):
        raise InputError(f"{path} is no idx file of {dimensions}-dimensional bytes (magic number)")
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:start].ljust(start - 4, b"\0"), ">u4").tolist()
    if len(content) != start + math.prod(shape):
        raise InputError(
            f"{path} is truncated or damaged: {start + math.prod(shape)} bytes expected for "
            f"{' x '.join(map(str, shape))}, {len(content)} found"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
