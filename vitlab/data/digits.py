"""The scanned digits of scikit-learn as a TFDS data set: 1797 grey images, 8 x 8, ten classes.

The set is the test part of the UCI data set "Optical Recognition of Handwritten Digits"
(https://doi.org/10.24432/C50P49). It comes with scikit-learn, so it needs no network.
"""

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from vitlab.errors import InputError

_DESCRIPTION = "Handwritten digits, 8 x 8 pixels in 17 grey levels, as they come with scikit-learn."


class Digits(tfds.core.GeneratorBasedBuilder):
    """Builds the splits train (1437) and test (360), stratified by class, the same every time."""

    VERSION = tfds.core.Version("1.0.0")
    # TFDS 4.9.10 looks beside a builder's code for checksums of downloads, and imports for it
    # importlib_resources, which it does not install. There is nothing to download here.
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_digits.html",
        )

    def _split_generators(self, dl_manager):
        labels = load_digits().target
        train, test = train_test_split(
            np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
        )
        return {"train": self._generate_examples(train), "test": self._generate_examples(test)}

    def _generate_examples(self, indices) -> Iterator[tuple[int, dict]]:
        digits = load_digits()
        for index in indices.tolist():
            label = int(digits.target[index])
            yield index, {"image": _png(digits.images[index]), "label": label}


def prepare_digits() -> epath.Path:
    """Prepares the digits on first use.

    Returns:
        The TFDS data folder that holds them: `$TFDS_DATA_DIR` where that is a local folder, else
        `$XDG_CACHE_HOME/vitlab/tfds`, else `~/.cache/vitlab/tfds`.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = epath.Path(_data_dir())
    target = folder / "digits" / str(Digits.VERSION)
    if target.exists():
        return folder
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Built aside and renamed, so that another process sees either nothing or all of it.
        with tempfile.TemporaryDirectory(dir=folder, prefix="digits.incomplete.") as scratch:
            builder = Digits(data_dir=scratch, file_format="array_record")
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
            f"digits cannot be prepared in {folder}: {error.strerror}; "
            "set TFDS_DATA_DIR to a folder that can be written"
        ) from error
    return folder


def _data_dir() -> str:
    data_dir = os.environ.get("TFDS_DATA_DIR")
    if data_dir and "://" not in data_dir:  # A bucket has no atomic rename.
        return os.path.expanduser(data_dir)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(cache, "vitlab", "tfds")


def _png(image: np.ndarray) -> io.BytesIO:
    """Encodes f64[8, 8] in 0..16; given pixels instead, TFDS would call TensorFlow to encode."""
    encoded = io.BytesIO()
    Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8)).save(encoded, "PNG")
    encoded.seek(0)
    return encoded
