"""What a model knows of each class, in another order or of some of them."""

import numpy as np

from vitlab.tasks.detection import Detection
from vitlab.tasks.segmentation import Segmentation
from vitlab.weights.class_rows import rows_of, with_rows


def numbered(shape, axis):
    """An array whose numbers are the places on an axis."""
    places = np.arange(shape[axis], dtype=np.float32)
    return np.broadcast_to(
        places.reshape([-1 if a == axis else 1 for a in range(len(shape))]), shape
    )


def test_rows_are_those_of_the_same_names():
    assert rows_of(("a", "b", "c"), ("c", "a")) == [2, 0]
    assert rows_of(("Cat", "b"), ("cat",)) == [0]
    assert rows_of(("a", "b"), ("a", "z")) is None
    assert rows_of(("a", "b", "a"), ("a", "b")) is None  # which of the two?
    assert rows_of(("a", "b", "a"), ("b",)) == [1]
    assert rows_of(("a", "b"), ("a", "a")) is None


def test_every_parameter_of_the_classes_is_cut_on_its_own_axis():
    """Also where all axes are of one length; what is beyond the classes stays the last."""
    source = {
        "decoder/heads/class/kernel": numbered((4, 4), 1),
        "proposal_heads_0/class/bias": numbered((4,), 0),
        "label_embedding/embedding": numbered((4, 4), 0),
        "decoder/heads/box/kernel": numbered((4, 4), 1),
    }
    target = {name: np.zeros(4 - 1 if x.ndim == 1 else (4, 4)) for name, x in source.items()}
    target["decoder/heads/class/kernel"] = np.zeros((4, 3))
    target["label_embedding/embedding"] = np.zeros((3, 4))
    axes = Detection.class_parameters
    taken = with_rows(source, target, axes, [2, 0], 3)
    assert taken["decoder/heads/class/kernel"].tolist() == [[2, 0, 3]] * 4
    assert taken["proposal_heads_0/class/bias"].tolist() == [2, 0, 3]
    assert taken["label_embedding/embedding"][:, 1].tolist() == [2, 0, 3]
    assert taken["decoder/heads/box/kernel"] is source["decoder/heads/box/kernel"]

    axes = Segmentation.class_parameters
    source = {"class_embedding": numbered((1, 2, 2), 1), "mask_norm/scale": numbered((2,), 0)}
    taken = with_rows(source, source, axes, [1, 0], 2)
    assert taken["class_embedding"].tolist() == [[[1, 1], [0, 0]]]
    assert taken["mask_norm/scale"].tolist() == [1, 0]


def test_what_would_not_fit_is_not_taken():
    source, target = {"class_head/bias": np.zeros(4)}, {"class_head/bias": np.zeros(3)}
    axes = Detection.class_parameters
    assert with_rows(source, target, axes, [0, 1], 3) is not None
    assert with_rows(source, target, axes, [0, 1], 4) is None  # nothing is beyond the classes
    assert with_rows(source, target, axes, [0, 1, 2], 5) is None  # it has no five classes
    assert with_rows({}, target, axes, [0, 1], 3) is None
