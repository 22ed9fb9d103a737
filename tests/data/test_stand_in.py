"""What stands in for data that are not there fits every task's preprocessing."""

import pickle

import numpy as np
import pytest

from vitlab.data.pipeline import train_batches
from vitlab.data.preprocess import Preprocess
from vitlab.data.stand_in import StandIn


@pytest.mark.parametrize(
    ("truth", "ops", "keys"),
    [
        ("label", "inception_crop(32)|flip_lr", {"label"}),
        ("objects", "scale_jitter(64,0.5,1.0)|pad_boxes(20)", {"boxes", "box_label", "content"}),
        ("segments", "segment_crop(64)|semantic", {"semantic"}),
        ("segments", "letterbox(64)|pad_segments(6)", {"segments", "segment_label"}),
    ],
)
def test_batches_of_every_kind(truth, ops, keys):
    source = pickle.loads(pickle.dumps(StandIn(truth, 12)))  # as for worker processes
    preprocess = Preprocess.parse(f"decode|{ops}|value_range(-1,1)")
    batches = train_batches(source, preprocess, batch_size=3, seed=0)
    batch = next(batches)
    batches.close()
    assert keys <= batch.keys()
    assert batch["image"].dtype == np.uint8
    assert len({image.tobytes() for image in batch["image"]}) > 1
    for name in ("label", "box_label", "segment_label"):
        assert (batch.get(name, np.zeros(1)) < 12).all()
    again = train_batches(source, preprocess, batch_size=3, seed=0)
    np.testing.assert_array_equal(next(again)["image"], batch["image"])
    again.close()
