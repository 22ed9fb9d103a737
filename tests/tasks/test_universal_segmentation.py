"""What a head of queries learns from a batch, and the segments that are made of what it says."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.data.annotations import RLE, Annotation
from vitlab.data.preprocess import Preprocess
from vitlab.data.segments import Segments
from vitlab.errors import InputError
from vitlab.tasks.task import task_class
from vitlab.tasks.universal_segmentation import instances, segmented
from vitlab.training.step import gradients

CLASSES = ("cat", "dog", "background")
THINGS = (True, True, False)
EOMT = {"name": "eomt", "num_queries": 5, "num_blocks": 1,
        "backbone": {"name": "vit", "width": 8, "depth": 2, "num_heads": 2, "patch_size": 4,
                     "pool": "gap", "pos_embed": "none"}}  # fmt: skip
# Two cats, a dog, and the rest, in quarters of 8 x 8 pixels; one corner is void.
MAP = np.kron(np.array([[0, 1], [2, 3]], np.int32), np.ones((8, 8), np.int32))
MAP[:2, :2] = -1
LABELS = np.array([0, 0, 1, 2], np.int32)


def make(model=EOMT, **loss):
    return task_class("universal_segmentation").from_config(model, loss, {}, CLASSES, jnp.float32)


def normalize(pixels):
    return pixels.astype(jnp.float32) / 127.5 - 1


def batch(progress=0.5):
    """Three images of 16 x 16, the last of which is padding of the batch."""
    preprocess = Preprocess.parse("pad_segments(4)|value_range(-1,1)")
    rng, rows = np.random.default_rng(0), []
    segments = Segments(MAP, LABELS, np.zeros(4, bool))
    for i in range(3):
        image = rng.integers(0, 256, (16, 16, 3), np.uint8)
        example = {"image": image, "segments": lambda: segments}
        example = preprocess(example, np.random.default_rng(0))
        rows.append({**example, "id": np.int32(i), "epoch": np.int32(0), "mask": np.bool_(i < 2),
                     "progress": np.float32(progress)})  # fmt: skip
    return {key: jnp.asarray(np.stack([row[key] for row in rows])) for key in rows[0]}


@pytest.mark.slow
def test_a_row_that_is_padding_of_the_batch_counts_nowhere():
    task, rows = make(), batch()
    variables = jax.jit(task.init)(jax.random.key(1), normalize(rows["image"][:1]))

    def loss_fn(params, state, part):
        terms, metrics, new_state = task.loss(params, state, part, jax.random.key(0))
        return terms, (metrics, new_state)

    @jax.jit
    def run(params, rows):
        rows = task.augment(rows, normalize, 0, 0)
        return gradients(loss_fn, params, {}, rows, 1)

    terms, metrics, _, grads = run(variables["params"], rows)
    assert set(terms) == {"class", "mask", "dice", "aux_class", "aux_mask", "aux_dice"}
    assert float(terms["mask"][1]) == float(metrics["iou"][1]) == 2 * 4
    other = {**rows, "image": rows["image"].at[2].set(9), "segments": rows["segments"].at[2].set(1)}
    others, *_ = run(variables["params"], other)
    for name, term in terms.items():
        np.testing.assert_allclose(others[name], term, rtol=1e-5)
    nothing = {**rows, "segments": jnp.full_like(rows["segments"], -1),
               "segment_mask": jnp.zeros_like(rows["segment_mask"])}  # fmt: skip
    terms, _, _, grads = run(variables["params"], nothing)
    assert float(terms["mask"][1]) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads)) > 0  # of "no object"


def test_queries_are_held_to_their_masks_less_and_less():
    task = make()
    masked = [task.augment(batch(p), normalize, 0, 0)["masked"] for p in (0.0, 0.25, 1.0)]
    assert [float(each[0, 0]) for each in masked] == pytest.approx([1, 0.5**0.9, 0])


def perfect():
    """Scores and masks that say just what there is, with a fifth query that says nothing."""
    scores = np.full((5, 4), 0.01, np.float32)
    scores[np.arange(5), [*LABELS, 3]] = 0.97
    masks = np.full((5, 16, 16), -9, np.float32)
    for number in range(4):
        masks[number][number == MAP] = 9
    masks[0][MAP < 0] = 9  # what is void is the first cat's, say
    return scores, masks


def test_one_head_gives_semantic_panoptic_and_instances():
    scores, masks = perfect()
    known = MAP >= 0
    labels, found = segmented(scores, [masks], THINGS)
    np.testing.assert_array_equal(labels[known], LABELS[MAP[known]])
    np.testing.assert_array_equal(found.labels, LABELS)
    np.testing.assert_array_equal(found.map[known], MAP[known])
    banded = segmented(scores, [masks[:, :5], masks[:, 5:6], masks[:, 6:]], THINGS)
    np.testing.assert_array_equal(banded[0], labels)
    np.testing.assert_array_equal(banded[1].map, found.map)
    objects = instances(scores, masks.__getitem__, THINGS)
    sure = objects.scores > 0.9
    assert sorted(objects.labels[sure].tolist()) == [0, 0, 1]
    assert 2 not in objects.labels
    assert len(objects) == 5 * 2
    best = objects.boxes[sure][objects.labels[sure] == 1][0]
    assert best.tolist() == [0, 8, 8, 16]


def test_stuff_is_one_segment_and_things_are_not():
    scores, masks = perfect()
    scores[0], scores[1] = scores[3], scores[3]  # two quarters and the rest are background
    _, found = segmented(scores, [masks], THINGS)
    assert found.labels.tolist() == [2, 1]
    assert (found.map == 0).sum() == 3 * 64
    _, found = segmented(scores, [masks], (True, True, True))
    assert found.labels.tolist() == [2, 2, 1, 2]


def test_a_query_that_lost_most_of_its_mask_is_no_segment():
    scores, masks = perfect()
    masks[4, :8] = 5  # says cat over both cats, less surely
    scores[4] = [0.85, 0.05, 0.05, 0.05]
    _, found = segmented(scores, [masks], THINGS)
    np.testing.assert_array_equal(found.labels, LABELS)
    scores[:] = 0.25
    _, found = segmented(scores, [masks], THINGS)
    assert len(found.labels) == 0
    assert (found.map == -1).all()


def test_a_perfect_model_has_all_metrics_at_one(tmp_path):
    scores, masks = perfect()
    outlines = []
    for number in range(3):
        runs = np.flatnonzero(np.diff(np.r_[False, (number == MAP).T.ravel()])) - 0
        counts = np.diff(np.r_[0, runs, 256]).tolist()
        outlines.append(RLE((16, 16), tuple(counts)))
    boxes = np.array([[0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16]], np.float64)
    none = np.zeros(3, bool)
    annotation = Annotation(7, 16, 16, boxes, LABELS[:3], none, none, np.full(3, 64.0),
                            tuple(outlines))  # fmt: skip
    examples = types.SimpleNamespace(
        segments=lambda i: Segments(MAP, LABELS, np.zeros(4, bool)),
        annotation=lambda i: annotation,
        original=lambda i: np.zeros((16, 16, 3), np.uint8),
        things=THINGS,
        category_ids=(1, 2),
    )
    masks[0][MAP < 0] = -9
    outputs = {
        "id": np.zeros(1, np.int32),
        "scores": scores[None],
        "masks": masks[None],
        "affine": np.array([[1.0, 1, 0, 0]]),
    }
    task = make(EOMT)
    task = type(task)(**{**task.__dict__, "model": types.SimpleNamespace(stride=1, num_queries=5)})
    reduced = task.reduce(outputs, examples)
    metrics = task.metrics(reduced, examples)
    for name in ("mIoU", "boundary_F", "PQ", "PQ_things", "PQ_stuff", "AP", "AP50", "AP75"):
        assert metrics[name] == pytest.approx(1), name
    task.pictures(reduced, outputs, examples, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "segmentations.png", "classes.png", "boundaries.png", "confusion.png", "panoptic.png",
        "classes.json", "instances.json",
    }  # fmt: skip
    of_class = json.loads((tmp_path / "classes.json").read_text())
    assert list(of_class) == ["IoU", "boundary_F", "PQ"]
    for name, values in of_class.items():
        assert list(values) == list(CLASSES), name
        found = [value for value in values.values() if value is not None]
        assert found == pytest.approx([1.0] * len(found)), name


def test_a_source_without_things_has_no_instances():
    scores, masks = perfect()
    examples = types.SimpleNamespace(
        segments=lambda i: Segments(MAP, LABELS, np.zeros(4, bool)), things=(False,) * 3
    )
    outputs = {"id": np.zeros(1, np.int32), "scores": scores[None], "masks": masks[None],
               "affine": np.array([[1.0, 1, 0, 0]])}  # fmt: skip
    task = make()
    task = type(task)(**{**task.__dict__, "model": types.SimpleNamespace(stride=1, num_queries=5)})
    assert set(task.reduce(outputs, examples)) == {"id", "confusion", "boundary"}


def test_layers_for_layer_decay_are_the_published_ones():
    """Of two blocks."""
    layers = {
        "backbone/patch_embedding/kernel": 0,
        "backbone/cls": 0,
        "backbone/encoder/block_0/mlp/fc1/kernel": 0,
        "backbone/encoder/block_1/mlp/fc1/kernel": 1,
        "backbone/norm/scale": 1,
        "queries": 1,
        "predict/class/kernel": 1,
    }
    task = make()
    assert {path: task.layer_of(path) for path in layers} == layers
    assert task.num_layers == 1


def test_the_settings_make_the_task_again():
    task = make(no_object=0.2)
    settings = task.settings()
    again = type(task).from_config(**settings, classes=CLASSES, dtype=jnp.float32)
    assert (again.model, again.loss_config) == (task.model, task.loss_config)


def test_what_does_not_fit_is_one_line():
    task, rows = make(), batch()
    without = {key: rows[key] for key in ("image", "id", "epoch", "mask")}
    with pytest.raises(InputError, match="config.data.preprocess has no pad_segments"):
        task.augment(without, normalize, 0, 0)
    with pytest.raises(InputError, match="config.data.source has no masks"):
        type(task).from_config(EOMT, {}, {}, (), jnp.float32)
    resnet = {"name": "resnet", "variant": "18"}
    with pytest.raises(InputError, match="EoMT backbone is a ResNet"):
        make({**EOMT, "backbone": resnet})
    with pytest.raises(InputError, match="mask_weight is -1.0: it cannot be negative"):
        make(mask_weight=-1.0)
