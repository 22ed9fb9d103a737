"""What detection learns from a batch, and what it makes of the boxes that a model gives."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.data.annotations import Annotation
from vitlab.data.preprocess import Preprocess
from vitlab.errors import InputError
from vitlab.tasks.detection import Detection
from vitlab.tasks.task import task_class
from vitlab.training.step import gradients, mean

BACKBONE = {"name": "vit", "width": 8, "depth": 1, "num_heads": 2, "patch_size": 8,
            "pool": "gap", "pos_embed": "sincos2d_mae"}  # fmt: skip
SIZES = {"backbone": BACKBONE, "width": 8, "num_heads": 2, "mlp_dim": 8, "num_queries": 4,
         "decoder_layers": 2}  # fmt: skip
PLAIN = {"name": "plain_detr", **SIZES, "encoder_layers": 0, "denoising": 1}
PUBLISHED = {"name": "detr", **SIZES, "encoder_layers": 1}
SLOW = pytest.mark.slow
CLASSES = ("cat", "dog", "owl")


def make(model=PLAIN, **loss):
    loss = {"classification": "focal", **loss} if model is PLAIN else loss
    return task_class("detection").from_config(model, loss, {}, CLASSES, jnp.float32)


def normalize(pixels):
    return pixels.astype(jnp.float32) / 127.5 - 1


def annotation(boxes, labels):
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    none = np.zeros(len(boxes), bool)
    labels = np.array(labels, np.int32)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return Annotation(1, 48, 24, boxes, labels, none, none, area)


def batch(ops="pad_boxes(3)", objects=2):
    """Four images of 24 x 48, the last of which is padding of the batch."""
    preprocess = Preprocess.parse(f"{ops}|value_range(-1,1)")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(4):
        low = rng.uniform(0, 12, (objects, 2))
        boxes = np.concatenate([low, low + rng.uniform(6, 12, (objects, 2))], axis=1)
        example = {
            "image": rng.integers(0, 256, (24, 48, 3), np.uint8),
            "objects": annotation(boxes, rng.integers(0, 3, objects)),
        }
        example = preprocess(example, np.random.default_rng(0))
        rows.append({**example, "id": np.int32(i), "epoch": np.int32(0), "mask": np.bool_(i < 3)})
    return {key: jnp.asarray(np.stack([row[key] for row in rows])) for key in rows[0]}


def fresh(task, rows):
    return jax.jit(task.init)(jax.random.key(1), normalize(rows["image"][:1]))


def drawn(task, rows):
    """Variables without a zero in them, so that no two boxes or scores are alike."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda: fresh(task, rows)))
    rng = np.random.default_rng(0)
    return tree.unflatten(jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype) for x in leaves)


def value(task, variables, rows, key=0):
    """The loss as the step forms it, the terms, and its gradients."""

    def loss_fn(params, state, part):
        terms, metrics, new_state = task.loss(params, state, part, jax.random.key(key))
        return terms, (metrics, new_state)

    @jax.jit
    def run(params, rows):
        rows = task.augment(rows, normalize, 0, 0)
        terms, metrics, _, grads = gradients(loss_fn, params, {}, rows, 1)
        return terms, metrics, grads

    terms, metrics, grads = run(variables["params"], rows)
    total = sum(w * s / max(float(c), 1e-9) for s, c, w in terms.values())
    return float(total), terms, metrics, grads


@SLOW
@pytest.mark.parametrize("model", [PLAIN, PUBLISHED])
def test_a_row_that_is_padding_of_the_batch_counts_nowhere(model):
    task, rows = make(model), batch()
    variables = fresh(task, rows)
    three = {key: rows[key][:3] for key in rows}
    other = rows["boxes"].at[3].set(jnp.array([1.0, 1, 9, 9]))
    expected = value(task, variables, three)
    four = {**rows, "boxes": other, "image": rows["image"].at[3].set(9)}
    found = value(task, variables, four)
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for name, (total, count, weight) in expected[1].items():
        np.testing.assert_allclose(found[1][name], (total, count, weight), rtol=1e-5)


@SLOW
@pytest.mark.parametrize("classification", ["softmax", "focal", "iou_aware"])
def test_a_batch_without_any_object_learns_that_there_is_none(classification):
    task, rows = make(classification=classification), batch(objects=0)
    total, terms, metrics, grads = value(task, fresh(task, rows), rows)
    assert float(terms["l1"][1]) == float(metrics["iou"][1]) == 0
    assert np.isfinite(total)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    if classification == "softmax":
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads)) > 0


def test_batches_without_a_place_for_objects_have_a_loss_too():
    """With noisy copies of none of them; traced alone, as its values are the set loss's own."""
    task, rows = make(), batch("pad_boxes(1)", objects=0)
    boxes = ("boxes", "box_label", "box_mask")
    rows = {name: x[:, :0] if name in boxes else x for name, x in rows.items()}
    variables = jax.eval_shape(lambda: task.init(jax.random.key(1), rows["image"][:1]))

    def loss(params):
        terms = task.loss(params, {}, task.augment(rows, normalize, 0, 0), jax.random.key(0))[0]
        return sum(value for value, _, _ in terms.values())

    slopes = jax.eval_shape(jax.grad(loss), variables["params"])
    assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, slopes, variables["params"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classification", "objects"), [("softmax", 2), ("focal", 2), ("focal", 0)]
)
def test_each_layer_counts_as_much_as_the_last(classification, objects):
    """Where all layers predict alike, the others weigh layers - 1 times what the last one does;
    without any object too, where each is divided by 1."""
    task = make(PUBLISHED, classification=classification)
    rows = task.augment(batch(objects=objects), normalize, 0, 0)
    variables = fresh(task, rows)
    real = task.model

    def stub(variables, images, *args, **kwargs):
        (found, stages), state = real.apply(variables, images, *args, **kwargs)
        same = jax.tree.map(lambda x: jnp.repeat(x[:, -1:], 5, axis=1), stages["layers"])
        return (found, {**stages, "layers": same}), state

    task = dataclasses.replace(task, model=types.SimpleNamespace(apply=stub))
    loss = jax.jit(lambda params: task.loss(params, {}, rows, jax.random.key(0))[0])
    terms = loss(variables["params"])
    for name in ("class", "l1", "giou"):
        (last, n, weight), (others, m, times) = terms[name], terms[f"aux_{name}"]
        assert float(mean(others, m)) == pytest.approx(float(mean(last, n)), rel=1e-5)
        assert times == pytest.approx(4 * weight)


def test_boxes_come_back_in_pixels_of_the_original_image():
    """Whatever the canvas: enlarged, mirrored, padded."""
    task = make()
    rows = batch()
    variables = drawn(task, rows)
    evaluate = jax.jit(lambda rows: task.evaluate(variables, rows, normalize))
    model = jax.jit(lambda images: task.model.apply(variables, normalize(images))[0])
    plain, found = evaluate(rows), model(rows["image"])
    size = np.array([48, 24, 48, 24])
    centres, sides = np.split(np.asarray(found.boxes), 2, axis=-1)
    corners = np.concatenate([centres - sides / 2, centres + sides / 2], axis=-1) * size
    p = np.asarray(jax.nn.sigmoid(found.logits)).reshape(4, -1)
    order = np.argsort(-p, axis=1, kind="stable")
    np.testing.assert_allclose(plain["scores"], np.take_along_axis(p, order, axis=1), rtol=1e-5)
    np.testing.assert_array_equal(plain["labels"], order % 3)
    boxes = np.take_along_axis(corners, (order // 3)[..., None], axis=1)
    np.testing.assert_allclose(plain["boxes"], boxes, atol=1e-4)

    mirrored = batch("flip_lr(1)|pad_boxes(3)")
    there = model(mirrored["image"]).boxes[0, 0]
    x0, x1 = (there[0] - there[2] / 2) * 48, (there[0] + there[2] / 2) * 48
    back = np.asarray(evaluate(mirrored)["boxes"][0])
    sides = np.sort(back[:, [0, 2]], axis=1)
    assert (np.abs(sides - [48 - x1, 48 - x0]).max(axis=1) < 1e-3).any()

    mirrored = batch("flip_ud(1)|pad_boxes(3)")
    there = model(mirrored["image"]).boxes[0, 0]
    y0, y1 = (there[1] - there[3] / 2) * 24, (there[1] + there[3] / 2) * 24
    sides = np.asarray(evaluate(mirrored)["boxes"][0])[:, [1, 3]]
    assert (np.abs(sides - [24 - y1, 24 - y0]).max(axis=1) < 1e-3).any()


@pytest.mark.slow
def test_a_larger_canvas_finds_the_same_boxes():
    task = make()
    rows = [batch(f"letterbox({size})|pad_boxes(3)") for size in ("(24,48)", "(40,48)", "(48,48)")]
    variables = drawn(task, rows[0])
    evaluate = jax.jit(lambda rows: task.evaluate(variables, rows, normalize))
    found = [evaluate(each) for each in rows]
    for other in found[1:]:
        np.testing.assert_allclose(other["boxes"], found[0]["boxes"], atol=1e-3)
        np.testing.assert_allclose(other["scores"], found[0]["scores"], atol=1e-5)


def test_photometric_augmentation_does_not_see_the_padding():
    """Contrast is taken of the image's own mean, and padding stays zero."""
    task = Detection.from_config(
        PLAIN, {}, {"color_jitter": (0.0, 0.5, 0.0, 0.0)}, CLASSES, jnp.float32
    )
    augment = jax.jit(lambda rows: task.augment(rows, normalize, 0, 0)["image"])
    tight, wide = (augment(batch(f"letterbox({s})|pad_boxes(3)")) for s in ("(24,48)", "(96,96)"))
    # The wide canvas doubles the image: compare the means of the contents.
    np.testing.assert_allclose(
        wide[:, :48, :96].mean(axis=(1, 2)), tight.mean(axis=(1, 2)), atol=0.01
    )
    assert not wide[:, 48:].any()
    plain = jax.jit(lambda rows: make().augment(rows, normalize, 0, 0)["image"])
    assert np.abs(plain(batch("letterbox((24,48))|pad_boxes(3)")) - tight).max() > 0.05


@pytest.mark.slow
def test_the_softmax_gives_each_query_one_class_which_is_never_nothing():
    task, rows = make(PUBLISHED), batch()
    variables = fresh(task, rows)
    found = jax.jit(lambda rows: task.evaluate(variables, rows, normalize))(rows)
    logits = jax.jit(task.model.apply)(variables, normalize(rows["image"]))[0].logits
    assert logits.shape == (4, 4, 4)
    p = jax.nn.softmax(logits)[..., :3]
    np.testing.assert_allclose(found["scores"], -np.sort(-p.max(axis=-1), axis=1), rtol=1e-6)
    assert found["labels"].max() < 3


def test_a_perfect_detector_has_an_average_precision_of_one(tmp_path):
    task = make()
    truth = [annotation([(1, 2, 20, 20), (25, 3, 40, 15)], [0, 2]), annotation([], [])]
    examples = types.SimpleNamespace(
        annotation=lambda i: truth[i],
        original=lambda i: np.zeros((24, 48, 3), np.uint8),
        category_ids=(1, 2, 3),
    )
    outputs = {
        "id": np.arange(2),
        "boxes": np.zeros((2, 3, 4), np.float32),
        "scores": np.zeros((2, 3), np.float32),
        "labels": np.ones((2, 3), np.int32),
    }
    outputs["boxes"][0, :2], outputs["scores"][0, :2] = truth[0].boxes, 0.9
    outputs["labels"][0, :2] = truth[0].labels
    metrics = task.metrics(outputs, examples)
    for name in ("AP", "AP50", "AP75", "VOC_AP", "VOC07_AP"):
        assert metrics[name] == pytest.approx(1), name
    task.pictures(outputs, {}, examples, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "detections.png", "precision_recall.png", "classes.png", "confusion.png",
        "classes.json", "detections.json",
    }  # fmt: skip
    # Of the second class there is no object.
    ap = json.loads((tmp_path / "classes.json").read_text())["AP"]
    first, second, third = CLASSES
    assert ap == {first: pytest.approx(1), second: None, third: pytest.approx(1)}


@pytest.mark.slow
def test_the_sigmoids_begin_at_one_per_cent():
    task, rows = make(), batch()
    found, _ = jax.jit(task.model.apply)(fresh(task, rows), normalize(rows["image"]))
    assert float(jnp.median(jax.nn.sigmoid(found.logits))) == pytest.approx(0.01, abs=0.02)


def test_the_settings_make_the_task_again():
    task = make()
    again = Detection.from_config(**task.settings(), classes=CLASSES, dtype=jnp.float32)
    assert (again.model, again.loss_config) == (task.model, task.loss_config)


def test_the_backbone_keeps_its_layers_for_layer_decay():
    task = make()
    assert task.layer_of("backbone/patch_embedding/kernel") == 0
    assert task.layer_of("backbone/encoder/block_0/mlp/fc1/kernel") == 1
    assert task.layer_of("decoder/layer_0/mlp/fc1/kernel") == task.num_layers == 2


def test_what_does_not_fit_is_one_line():
    task, rows = make(), batch()
    without = {key: rows[key] for key in ("image", "id", "epoch", "mask")}
    with pytest.raises(InputError, match="config.data.preprocess has no pad_boxes"):
        task.augment(without, normalize, 0, 0)
    with pytest.raises(InputError, match="preprocess has no pad_boxes"):
        task.evaluate({}, without, normalize)
    with pytest.raises(InputError, match="has no classes"):
        Detection.from_config(PLAIN, {}, {}, (), jnp.float32)
    with pytest.raises(InputError, match="no model 'dter'; did you mean 'detr'"):
        make({**PLAIN, "name": "dter"})
    params = jax.eval_shape(lambda: fresh(task, rows))["params"]
    many = task.augment(batch("pad_boxes(5)"), normalize, 0, 0)
    with pytest.raises(InputError, match="5 targets cannot each be matched with one of 4 queries"):
        jax.eval_shape(lambda params: task.loss(params, {}, many, jax.random.key(0)), params)
