"""Pascal VOC's folders of xml files (http://host.robots.ox.ac.uk/pascal/VOC) as a source."""

import math
import os
import posixpath
import xml.etree.ElementTree as ET

from etils import epath

from vitlab.data.annotated import AnnotatedSource
from vitlab.data.annotations import Annotations, Object, Record, duplicates
from vitlab.data.folders import IMAGE_SUFFIXES, names_in, read_file, read_lines
from vitlab.data.splits import INSTEAD
from vitlab.errors import InputError


def open_voc(place: str, options: dict[str, str], split: str, spec: str) -> AnnotatedSource:
    """Opens `voc:PATH[?classes=a,b,c&offset=1]`.

    PATH holds Annotations/*.xml, JPEGImages/ and ImageSets/Main/SPLIT.txt, whose lines are or begin
    with the name of an annotation without ".xml". Without ImageSets/Main every annotation is of the
    split "train". Without Annotations/ too, the xml files lie beside the images in PATH itself, as
    LabelImg writes them. An image is the file that <filename> names, else the one named as its xml.
    It is numbered by the place of its xml among all, from 1.

    VOC counts pixels from 1 and both corners are inside of the box, so the lower corner is lowered
    by 1: a box that covers the image, from (1, 1) to (width, height), becomes (0, 0, width,
    height). So it is taken to be in BCCD too, whose boxes touch exactly these bounds and never 0.
    A box whose corners coincide in the file has no area, whatever the offset.

    Args:
        place: the PATH.
        options: "classes" names them in the order of their labels; by default they are the sorted
            names of the objects in the split "train", else "trainval", else of all. "offset" is
            "0" for files that count from 0, which keeps their numbers.
        split: e.g. "train[:90%]".
        spec: the source string, for errors.

    Raises:
        InputError: a file is missing or is not as VOC defines it, or has a class of no name above.
    """
    offset = options.get("offset", "1")
    if offset not in ("0", "1"):
        raise InputError(f"source {spec!r}: offset is {offset!r} but must be 0 or 1")
    reader = _Reader(place, int(offset), spec)
    return AnnotatedSource(spec, split, lambda name: reader.read(name, options.get("classes")))


class _Reader:
    """Reads the folders below `place`, each xml once."""

    def __init__(self, place: str, offset: int, spec: str):
        root = epath.Path(place).expanduser()
        self._offset, self._spec = offset, spec
        self._annotations, self._lists = root / "Annotations", root / "ImageSets" / "Main"
        self._images = root / "JPEGImages"
        if not self._annotations.exists() and root.is_dir() and names_in(root, (".xml",)):
            self._annotations = self._images = root
        stems = sorted(n.removesuffix(".xml") for n in names_in(self._annotations, (".xml",)))
        if not stems:
            raise InputError(f"{self._annotations} holds no xml file")
        self._numbers = {stem: number for number, stem in enumerate(stems, start=1)}
        self._files = {posixpath.splitext(n)[0]: n for n in names_in(self._images, IMAGE_SUFFIXES)}
        self._records: dict[str, Record] = {}

    def read(self, split: str, classes: str | None) -> Annotations:
        notes: list[str] = []
        stems = self._stems(split, notes)
        class_names = self._class_names(classes)
        known = frozenset(class_names)
        for stem in stems:
            for each in self._record(stem).objects:
                if each.name not in known:
                    raise InputError(
                        f"{self._xml(stem)}: the class {each.name!r} is not among the classes "
                        f"{', '.join(class_names)}: name them all with ?classes=a,b,c"
                    )
        records = tuple(map(self._record, stems))
        return Annotations(class_names, tuple(range(1, len(known) + 1)), records, tuple(notes))

    def _stems(self, split: str, notes: list[str]) -> list[str]:
        """The annotations of a split, each once; a note for each that is listed twice."""
        if not self._lists.is_dir():
            if split != "train":
                raise InputError(
                    f"{self._spec}: without ImageSets/Main the only split is train: {split!r} "
                    f"does not exist; {INSTEAD}"
                )
            return list(self._numbers)
        path = self._lists / f"{split}.txt"
        if not path.exists():
            raise InputError(f"{self._spec}: split {split!r} does not exist: there is no {path}")
        lines = [line.strip() for line in read_lines(os.fspath(path))]
        # A name may have blanks in it, or behind it the number of a list of one class.
        stems = {
            number: line if line in self._numbers else line.split()[0]
            for number, line in enumerate(lines, 1)
            if line
        }
        for number, stem in stems.items():
            if stem not in self._numbers:
                raise InputError(f"{path}:{number}: there is no {self._xml(stem)}")
        notes += [f"{path}: {stem} is listed twice" for stem in duplicates([*stems.values()])]
        return list(dict.fromkeys(stems.values()))

    def _class_names(self, classes: str | None) -> tuple[str, ...]:
        if classes is not None:
            return listed_classes(classes, self._spec)
        lists = [name for name in ("train", "trainval") if (self._lists / f"{name}.txt").exists()]
        stems = self._stems(lists[0], []) if lists else self._numbers
        return tuple(sorted({each.name for stem in stems for each in self._record(stem).objects}))

    def _xml(self, stem: str) -> str:
        return os.fspath(self._annotations / f"{stem}.xml")

    def _record(self, stem: str) -> Record:
        if stem not in self._records:
            root = parse_xml(self._xml(stem), "annotation", "VOC")
            file_name = root.findtext("filename", "").strip()
            if self._files.get(posixpath.splitext(file_name)[0]) != file_name:
                file_name = self._files.get(stem, f"{stem}.jpg")
            self._records[stem] = Record(
                path=os.fspath(self._images / file_name),
                name=file_name,
                image_id=self._numbers[stem],
                size=_size(root, self._xml(stem)),
                objects=tuple(self._objects(root, self._xml(stem))),
            )
        return self._records[stem]

    def _objects(self, root: ET.Element, path: str):
        for number, found in enumerate(root.findall("object"), start=1):
            where = f"{path}: object {number}"
            name = found.findtext("name", "").strip()
            if not name:
                raise InputError(f"{where} has no name")
            x0, y0, x1, y1 = (
                _number(found, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax")
            )
            if x1 > x0:
                x0 -= self._offset
            if y1 > y0:
                y0 -= self._offset
            # Some tools leave it empty, or write that they do not know.
            told = found.findtext("difficult", "").strip() not in ("", "Unspecified")
            difficult = told and _number(found, "difficult", where)
            yield Object(name, (x0, y0, x1, y1), difficult=bool(difficult))


def listed_classes(classes: str, spec: str) -> tuple[str, ...]:
    """The names in an option "classes", such as "a,b,c" in the source string `spec`."""
    names = tuple(name.strip() for name in classes.split(",") if name.strip())
    if not names or duplicates(names):
        raise InputError(f"source {spec!r}: classes must be names, each once")
    return names


class _Builder(ET.TreeBuilder):
    """Refuses what can declare entities: a few bytes of them expand to gigabytes."""

    def doctype(self, *_) -> None:
        raise InputError("has a DOCTYPE, which annotations never need: remove it")


def parse_xml(path: str, tag: str, whose: str) -> ET.Element:
    """The root of an xml file, which must have that tag; `whose` format it is, for errors."""
    try:
        root = ET.fromstring(read_file(path), ET.XMLParser(target=_Builder()))
    except ET.ParseError as error:
        line, column = error.position
        reason = str(error).partition(":")[0]
        raise InputError(f"{path}:{line}: is not xml ({reason} at column {column + 1})") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (ValueError, LookupError) as error:  # An encoding that does not exist.
        raise InputError(f"{path}: is not xml ({error})") from None
    if root.tag != tag:
        raise InputError(f"{path}: is not {whose}'s: <{tag}> is expected, not <{root.tag}>")
    return root


def _size(root: ET.Element, path: str) -> tuple[int, int] | None:
    """Width and height, or None where the file does not say, or says 0, as some tools write."""
    if root.find("size/width") is None or root.find("size/height") is None:
        return None
    width, height = (int(_number(root, f"size/{side}", path)) for side in ("width", "height"))
    return (width, height) if width > 0 and height > 0 else None


def _number(element: ET.Element, tag: str, where: str) -> float:
    text = element.findtext(tag)
    if text is None:
        raise InputError(f"{where} has no {tag}")
    return finite_number(text, f"{where}: {tag}")


def finite_number(text: str, what: str) -> float:
    """The number in a text; an InputError that begins with `what` it is if it is none."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{what} is {text.strip()!r} but must be a finite number")
    return number
