import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from vitlab.data import digit_scenes
from vitlab.data.digits import split_digits
from vitlab.data.sources import open_source


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A folder with a few of the scenes, drawn as all are."""
    patch = pytest.MonkeyPatch()
    patch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("scenes")))
    patch.setattr(digit_scenes, "_SCENES", {"train": 40, "test": 20})
    yield lambda split: open_source("digit_scenes", split)
    patch.undo()


def test_boxes_are_tight_around_the_pixels_of_their_digits(scenes):
    source = scenes("train")
    assert source.class_names == tuple("0123456789")
    for index in range(len(source)):
        objects = source.annotation(index)
        assert (objects.width, objects.height) == (64, 64)
        assert 1 <= len(objects) <= 5
        assert (objects.boxes == objects.boxes.round()).all()
        assert ((objects.boxes[:, 2:] - objects.boxes[:, :2]) >= 3).all()
        assert (objects.area <= (objects.boxes[:, 2:] - objects.boxes[:, :2]).prod(axis=1)).all()


def test_a_scene_and_its_masks_agree():
    digits = load_digits()
    ink = digits.images.astype(np.float32) / 16
    for seed in range(30):
        rng = np.random.default_rng(seed)
        image, instances, labels = digit_scenes.draw_scene(rng, ink, digits.target)
        assert image.shape == (64, 64, 3)
        assert set(np.unique(instances)) == set(range(len(labels) + 1))
        assert len(labels) >= 1


def test_scenes_for_testing_are_of_digits_that_training_never_sees():
    train, test = split_digits()
    assert not set(train) & set(test)
    assert len(train) + len(test) == len(load_digits().target)


def test_the_scenes_never_change(scenes):
    # Recorded: results on them have to be comparable with older ones.
    first = scenes("test")[0]
    image = np.asarray(Image.open(io.BytesIO(first["image"])))
    assert first["objects"].labels.tolist() == [2, 3]
    assert int(image.sum(dtype=np.int64)) == 1_554_892
