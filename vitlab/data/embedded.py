"""Data sets that come with the installation, prepared for TFDS on first use, without network."""

import contextlib
import importlib
import io
import os
import tempfile

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from vitlab.cache_folder import cache_folder
from vitlab.errors import InputError


class EmbeddedBuilder(tfds.core.GeneratorBasedBuilder):
    """A TFDS builder that downloads nothing."""

    # TFDS 4.9.10 looks beside a builder's code for checksums of downloads, and imports for it
    # importlib_resources, which it does not install.
    url_infos = None


def prepare(name: str) -> epath.Path:
    """Prepares a set on first use.

    Args:
        name: `digits` or `digit_scenes`.

    Returns:
        The TFDS data folder that holds it: `$TFDS_DATA_DIR` where that is a local folder, else
        `$XDG_CACHE_HOME/vitlab/tfds`, else `~/.cache/vitlab/tfds`.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = epath.Path(_data_dir())
    module, attribute = _BUILDERS[name]
    builder_class = getattr(importlib.import_module(module), attribute)
    target = folder / name / str(builder_class.VERSION)
    if target.exists():
        return folder
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Built aside and renamed, so that another process sees either nothing or all of it.
        with tempfile.TemporaryDirectory(dir=folder, prefix=f"{name}.incomplete.") as scratch:
            builder = builder_class(data_dir=scratch, file_format="array_record")
            quiet = io.StringIO()
            with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
                builder.download_and_prepare()
            try:
                os.rename(builder.data_dir, target)
            except OSError:
                if not target.exists():  # Not a race that another process won.
                    raise
    except OSError as error:
        raise InputError(
            f"{name} cannot be prepared in {folder}: {error.strerror}; "
            "set TFDS_DATA_DIR to a folder that can be written"
        ) from error
    return folder


_BUILDERS = {
    "digits": ("vitlab.data.digits", "Digits"),
    "digit_scenes": ("vitlab.data.digit_scenes", "DigitScenes"),
}


def png(image: np.ndarray) -> io.BytesIO:
    """Encodes uint8[height, width(, 3)], for which TFDS would call TensorFlow."""
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "PNG")
    encoded.seek(0)
    return encoded


def _data_dir() -> str:
    data_dir = os.environ.get("TFDS_DATA_DIR")
    if data_dir and "://" not in data_dir:  # A bucket has no atomic rename.
        return os.path.expanduser(data_dir)
    return os.fspath(cache_folder("tfds"))
