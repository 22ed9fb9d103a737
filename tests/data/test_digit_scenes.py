import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from vitlab.data import digit_scenes
from vitlab.data.digits import split_digits
from vitlab.data.pipeline import train_batches
from vitlab.data.preprocess import Preprocess
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


def test_segments_are_the_digits_and_the_background(scenes):
    source = scenes("test")
    assert source.segment_names == (*"0123456789", "background")
    assert source.things == (True,) * 10 + (False,)
    for index in range(len(source)):
        objects, segments = source.annotation(index), source.segments(index)
        assert segments.labels.tolist() == [*objects.labels, 10]
        assert not segments.crowd.any()
        for place, (box, mask) in enumerate(zip(objects.boxes, objects.segmentations, strict=True)):
            np.testing.assert_array_equal(mask.mask(), segments.map == place)
            assert mask.mask().sum() == objects.area[place]
            rows, columns = np.nonzero(segments.map == place)
            bounds = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == bounds
        example = source[index]
        assert example.keys() == {"image", "objects", "segments"}
        np.testing.assert_array_equal(example["segments"]().map, segments.map)


def test_worker_processes_see_the_same_segments(scenes):
    ops = "decode|scale_jitter(64)|flip_lr|pad_boxes(5)|semantic|pad_segments(6)|value_range(0,1)"
    batches = []
    for workers in (0, 1):
        preprocess = Preprocess.parse(ops)
        running = train_batches(scenes("test"), preprocess, batch_size=8, seed=0, workers=workers)
        batches.append(next(running))
        running.close()
    assert batches[0].keys() == batches[1].keys()
    for key, value in batches[0].items():
        np.testing.assert_array_equal(value, batches[1][key])


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
