"""Photographs stored once in a smaller size, so that no run decodes more than it has use for.

Decoding takes time by the pixel and by the byte, and of a photograph of 2048 x 1536 pixels a crop
of 224 x 224 keeps one in sixty. `Presized` is a source like the one that it is made of, but for the
size of its images. What is stored in the user's cache folder only saves time: an image that is not
there is made when it is asked for, the same to the byte.
"""

import contextlib
import hashlib
import io
import os
import random
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath
from PIL import Image

from vitlab.cache_folder import cache_folder
from vitlab.data.decode import Picture
from vitlab.data.resize import resize_small
from vitlab.data.sources import Source
from vitlab.errors import InputError

_QUALITY = 95
_LABEL = struct.Struct("<i")  # Data sets without labels have -1.
_VERSION = 1  # Of what is stored: another one is another folder.
_SHARD = 4096  # Images in a file, which is written whole or not at all.
_SAMPLES = 64  # Images that tell one data set from another under the same names.
_ABANDONED_SECONDS = 3600
_LINE_SECONDS = 15


class Presized:
    """A source with the images of another, each reduced so that its shorter side is `size`.

    They are upright, reduced with an antialiased bicubic filter and stored as JPEG of quality 95.
    Images that are no larger, broken, or arrays stay as they are and are read from where they
    were. An example is {"image", "label"}.

    The folder is `$XDG_CACHE_HOME/vitlab/presized/SIZEpx-HASH`, or in `~/.cache`. The hash is over
    the names of all images and the bytes of 64 of them: of files that are overwritten in place,
    under the same names, no others are noticed.
    """

    def __init__(self, source: Source, size: int):
        self.class_names, self.ranges = source.class_names, source.ranges
        self.other_files = getattr(source, "other_files", {})
        self._source, self._size = source, size
        self.folder = epath.Path(cache_folder("presized")) / f"{size}px-{self._identity()}"
        self._readers: dict[int, ArrayRecordReader] = {}
        self._opening = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}, "_opening": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "_opening": threading.Lock()}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        stored = self._stored(index)
        if stored:
            return {"image": stored[4:], "label": _LABEL.unpack(stored[:4])[0]}
        example = self._source[index]
        image = example["image"] if stored == b"" else self._reduced(example["image"])
        return {"image": image or example["image"], "label": example.get("label", 0)}

    def describe(self, index: int) -> str:
        return self._source.describe(index)

    def store(self, log: Callable[[str], None]) -> None:
        """Stores all images that are not stored yet, in threads on all cores.

        Killed at any moment it goes on from the last file of 4,096 images, and several processes
        share the work, on one machine or wherever they see the same folder.

        Args:
          log: prints a line.

        Raises:
          InputError: the folder cannot be written.
        """
        missing = [n for n in range(-(-len(self) // _SHARD)) if not self._path(n).exists()]
        if not missing:
            return
        log(f"presize: storing images of {self._size} pixels in {self.folder}")
        random.Random().shuffle(missing)  # Or all processes would be at the same one.
        began = said = time.monotonic()
        total, done = sum(len(self._indices(n)) for n in missing), 0
        for shard in missing:
            for _ in self._write(shard):
                done += 1
                if time.monotonic() - said > _LINE_SECONDS:
                    said = time.monotonic()
                    left = (said - began) / done * (total - done)
                    log(f"presize: {done:,} of {total:,} images, {left:,.0f} s left")
        log(f"presize: {total:,} images in {time.monotonic() - began:,.0f} s")

    def _write(self, shard: int) -> Iterator[None]:
        """Writes a file aside and renames it, image by image; one that is there already stays."""
        path = self._path(shard)
        if path.exists():
            return
        partial = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_abandoned()
            writer = ArrayRecordWriter(os.fspath(partial), "group_size:1,uncompressed")
            with ThreadPoolExecutor() as pool:
                for record in pool.map(self._record, self._indices(shard)):
                    writer.write(record)
                    yield
            writer.close()
            partial.replace(path)  # Another process may have written the same meanwhile.
        # The writer, which is not Python's, raises the other two.
        except (OSError, RuntimeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            raise InputError(
                f"presize: {self.folder} cannot be written ({reason}): set XDG_CACHE_HOME to a "
                "folder that can"
            ) from error

    def _remove_abandoned(self) -> None:
        for partial in self.folder.glob(".*"):
            # Another process may be done with it by now.
            with contextlib.suppress(FileNotFoundError):
                if time.time() - partial.stat().mtime > _ABANDONED_SECONDS:
                    partial.unlink()

    def _record(self, index: int) -> bytes:
        """The label in four bytes and the image; nothing for one that stays as it is."""
        try:
            example = self._source[index]
        except (InputError, OSError):
            return b""  # Whoever asks for it shall hear of it.
        image = self._reduced(example["image"])
        return _LABEL.pack(example.get("label", 0)) + image if image else b""

    def _reduced(self, image: bytes | np.ndarray) -> bytes:
        """The reduced image as JPEG, or nothing for one that stays as it is."""
        if isinstance(image, np.ndarray):
            return b""
        try:
            picture = Picture(image)
            if min(picture.shape[:2]) <= self._size:
                return b""
            pixels = resize_small(picture.decoded(), self._size, "bicubic", antialias=True)
        except InputError:
            return b""
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=_QUALITY)
        return file.getvalue()

    def _stored(self, index: int) -> bytes | None:
        """The record of an image, or None where it is not stored yet."""
        shard, position = divmod(index, _SHARD)
        path = self._path(shard)
        try:
            if shard not in self._readers:
                if not path.exists():
                    return None
                with self._opening:
                    options = "readahead_buffer_size:0,max_parallelism:0"
                    self._readers[shard] = ArrayRecordReader(os.fspath(path), options)
            return self._readers[shard].read([position])[0]
        except (OSError, RuntimeError, ValueError, IndexError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"{path} is damaged ({reason}): remove it") from error

    def _indices(self, shard: int) -> range:
        return range(shard * _SHARD, min((shard + 1) * _SHARD, len(self)))

    def _path(self, shard: int) -> epath.Path:
        return self.folder / f"{shard:05d}.array_record"

    def _identity(self) -> str:
        size = len(self)
        found = hashlib.sha256(repr((_VERSION, self._size, size, self.class_names)).encode())
        for index in range(size):
            found.update(self.describe(index).encode("utf-8", "surrogateescape") + b"\0")
        for index in np.linspace(0, size - 1, min(size, _SAMPLES), dtype=int):
            try:
                example = self._source[int(index)]
            except InputError:
                continue
            image = example["image"]
            found.update(image.tobytes() if isinstance(image, np.ndarray) else image)
            found.update(_LABEL.pack(example.get("label", 0)))
        return found.hexdigest()[:16]
