"""The scanned digits of scikit-learn as a TFDS data set: 1797 grey images, 8 x 8, ten classes.

The set is the test part of the UCI data set "Optical Recognition of Handwritten Digits"
(https://doi.org/10.24432/C50P49). It comes with scikit-learn, so it needs no network.
"""

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from vitlab.data.embedded import EmbeddedBuilder, png

_DESCRIPTION = "Handwritten digits, 8 x 8 pixels in 17 grey levels, as they come with scikit-learn."


class Digits(EmbeddedBuilder):
    """Builds the splits train (1437) and test (360), stratified by class, the same every time."""

    VERSION = tfds.core.Version("1.0.0")

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
        train, test = split_digits()
        return {"train": self._generate_examples(train), "test": self._generate_examples(test)}

    def _generate_examples(self, indices) -> Iterator[tuple[int, dict]]:
        digits = load_digits()
        for index in indices.tolist():
            image = np.round(digits.images[index] * (255 / 16)).astype(np.uint8)
            yield index, {"image": png(image), "label": int(digits.target[index])}


def split_digits() -> tuple[np.ndarray, np.ndarray]:
    """int[1437], int[360]: which of scikit-learn's digits are for training, which for testing."""
    labels = load_digits().target
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )
    return train, test
