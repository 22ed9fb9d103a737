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
| `voc:PATH[?classes=a,b,c&offset=1]` | Pascal VOC's folders, or LabelImg's one |
| `yolo:data.yaml` or `yolo:FOLDER` | YOLO's labels, a text file an image |
| `masks:PATH[?images=...&masks=...&classes=...]` | images with masks of class ids or colours |
| `panoptic:PANOPTIC.json[?images=PATH&masks=PATH]` | COCO's panoptic segments |
| `cvat:FILE.xml[?images=PATH]` | CVAT's xml 1.1, for images or for video |
| `labelbox:FILE.ndjson[?images=PATH&classes=a,b,c&project=ID&label=last]` | Labelbox's export |
| `via:FILE.json[?images=PATH&classes=a,b,c&label=NAME]` | VGG Image Annotator's 1 and 2 |
| `labelme:FOLDER[?images=PATH&classes=a,b,c]` | LabelMe's json files, one an image |

Every source understands the split grammar of TFDS (see `splits`).
"""

import importlib
import os
from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import unquote

from vitlab.data.splits import Range
from vitlab.errors import InputError


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
    # Not as a form's fields, in which a plus is a blank.
    pairs = (part.partition("=") for part in query.split("&") if part)
    options = {unquote(key): unquote(value) for key, _, value in pairs}
    if scheme in _OPTIONS and not place:
        raise InputError(f"source {spec!r} names nothing: write {scheme}:{_EXAMPLES[scheme]}")
    for key in options:
        if key not in _OPTIONS.get(scheme, ()):
            allowed = ", ".join(_OPTIONS.get(scheme, ())) or "no option"
            raise InputError(f"source {spec!r}: unknown option {key!r}, {scheme}: takes {allowed}")
    # Each imports what it needs, TFDS half a second's worth, only when it is opened.
    if spec in ("digits", "digit_scenes"):
        from vitlab.data import embedded
        from vitlab.data.tfds import TfdsSource

        return TfdsSource(spec, split, os.fspath(embedded.prepare(spec)), spec)
    if scheme == "tfds":
        from vitlab.data.tfds import TfdsSource

        return TfdsSource(place, split, options.get("data_dir"), spec)
    if scheme == "folder":
        from vitlab.data.folders import FolderSource

        return FolderSource(place, split)
    if scheme == "images":
        from vitlab.data.folders import ImagesSource

        return ImagesSource(place, split)
    if scheme == "idx":
        from vitlab.data.idx import IdxSource

        return IdxSource(place, split, options.get("classes"))
    if scheme in _OPENERS:
        module, _, function = _OPENERS[scheme].partition(":")
        opener = getattr(importlib.import_module(f"vitlab.data.{module}"), function)
        return opener(place, options, split, spec)
    known = ", ".join(f"{name}:{example}" for name, example in _EXAMPLES.items())
    raise InputError(f"source {spec!r} is not known: the sources are digits, digit_scenes, {known}")


# Those that are opened alike: with their place, options, split and source string.
_OPENERS = {
    "coco": "coco:open_coco",
    "voc": "voc:open_voc",
    "yolo": "yolo:open_yolo",
    "masks": "masks:MaskSource",
    "panoptic": "panoptic:open_panoptic",
    "cvat": "cvat:open_cvat",
    "labelbox": "labelbox:open_labelbox",
    "via": "via:open_via",
    "labelme": "labelme:open_labelme",
}
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
    "cvat": "FILE.xml",
    "labelbox": "FILE.ndjson",
    "via": "FILE.json",
    "labelme": "FOLDER",
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
    "cvat": ("images",),
    "labelbox": ("images", "classes", "project", "label"),
    "via": ("images", "classes", "label"),
    "labelme": ("images", "classes"),
}
