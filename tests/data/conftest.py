"""Small sources for the tests of the data room."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitlab.errors import InputError


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory) -> Path:
    """A TFDS data folder that all tests share."""
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture
def digits(digits_dir, monkeypatch):
    """Opens a split of the digits."""
    from vitlab.data.sources import open_source

    monkeypatch.setenv("TFDS_DATA_DIR", str(digits_dir))
    return lambda split: open_source("digits", split)


@pytest.fixture
def fashion_mnist() -> Path:
    path = Path(__file__).parents[3] / "shared" / "data" / "fashion_mnist"
    if not path.is_dir():
        pytest.skip("needs the Fashion-MNIST files in ../shared/data/fashion_mnist")
    return path


@pytest.fixture
def coco128() -> Path:
    path = Path(__file__).parents[3] / "shared" / "data" / "coco128"
    if not path.is_dir():
        pytest.skip("needs the first images of COCO in ../shared/data/coco128")
    return path


@pytest.fixture
def write_image():
    """write(path, mode, size) writes an image file, and its folders."""

    def write(path: Path, mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3)
        Image.fromarray(pixels).convert(mode).save(path)
        return path

    return write


# The functions and the class below are local, so that they travel to worker processes by value.


@pytest.fixture
def decode():
    """A stand-in for preprocessing that decodes, and shows what it draws."""

    def preprocess(example, rng):
        image = example["image"]
        if isinstance(image, bytes):
            image = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
        if image.ndim == 2:
            image = image[:, :, None]
        return {**example, "image": image, "draw": rng.random()}

    return preprocess


@pytest.fixture
def numbered():
    """numbered(n, broken) is a source of n images that show their own index."""

    class Numbered:
        class_names = tuple("0123456789")

        def __init__(self, size, broken=()):
            self.size, self.broken = size, frozenset(broken)

        def __len__(self):
            return self.size

        def __getitem__(self, index):
            if index in self.broken:
                raise InputError("not an\nimage")
            return {"image": np.full((2, 3, 1), index % 256, np.uint8), "label": index % 10}

        def describe(self, index):
            return f"{index}.png"

    return Numbered
