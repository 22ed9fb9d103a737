"""What segmentation learns from a batch, and what it makes of the logits that a model gives."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.data.preprocess import Preprocess
from vitlab.data.segments import Segments
from vitlab.errors import InputError
from vitlab.evaluation.original import at_original, best_at_original
from vitlab.tasks.task import task_class
from vitlab.training.step import gradients

CLASSES = ("sky", "road", "tree")
RESNET = {"name": "resnet", "variant": "18", "stem": "small", "depths": (1, 1), "widths": (4, 4)}
SEGMENTER = {"name": "segmenter", "depth": 1, "width": 8, "num_heads": 2, "dropout": 0.0,
             "backbone": {"name": "vit", "width": 8, "depth": 1, "num_heads": 2, "patch_size": 4,
                          "pool": "gap", "pos_embed": "none"}}  # fmt: skip
UNET = {"name": "unet", "backbone": RESNET, "widths": (4,)}


def make(model=SEGMENTER, **loss):
    return task_class("segmentation").from_config(model, loss, {}, CLASSES, jnp.float32)


def normalize(pixels):
    return pixels.astype(jnp.float32) / 127.5 - 1


def scene(rng, size=(16, 24)):
    """An image whose classes are bands, with void and a crowd."""
    places = np.repeat(np.arange(4), size[0] // 4)[:, None].repeat(size[1], 1).astype(np.int32)
    places[:2, :2] = -1
    labels = np.array([0, 1, 2, 1], np.int32)
    crowd = np.array([False, False, False, True])
    colours = rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), np.uint8)
    return colours.repeat(8, axis=0).repeat(8, axis=1), Segments(places, labels, crowd)


def batch(ops="semantic", evaluation=False, number=4):
    """Images of 16 x 24, the last of which is padding of the batch."""
    preprocess = Preprocess.parse(f"{ops}|value_range(-1,1)")
    if evaluation:
        preprocess = Preprocess(preprocess.ops, preprocess.scale, preprocess.shift, True)
    rng, rows = np.random.default_rng(0), []
    for i in range(number):
        image, segments = scene(rng)
        example = {"image": image, "segments": lambda segments=segments: segments}
        example = preprocess(example, np.random.default_rng(0))
        last = number - 1
        rows.append(
            {**example, "id": np.int32(i), "epoch": np.int32(0), "mask": np.bool_(i < last)}
        )
    return {key: jnp.asarray(np.stack([row[key] for row in rows])) for key in rows[0]}


def drawn(task, rows):
    """Variables without a zero in them, so that no two logits are alike."""
    init = jax.eval_shape(lambda: task.init(jax.random.key(1), normalize(rows["image"][:1])))
    leaves, tree = jax.tree.flatten(init)
    rng = np.random.default_rng(0)
    return tree.unflatten(jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype) for x in leaves)


def values(task, variables, *batches):
    """Terms of the loss, metrics and gradients of each batch."""

    def loss_fn(params, state, part):
        terms, metrics, new_state = task.loss(params, state, part, jax.random.key(0))
        return terms, (metrics, new_state)

    @jax.jit
    def run(params, rows):
        rows = task.augment(rows, normalize, 0, 0)
        state = {k: v for k, v in variables.items() if k != "params"}
        terms, metrics, _, grads = gradients(loss_fn, params, state, rows, 1)
        return terms, metrics, grads

    return [run(variables["params"], rows) for rows in batches]


@pytest.mark.parametrize(
    "loss",
    [
        {"dice": 1.0},
        pytest.param({"hard_pixels": 0.25, "focal_gamma": 1.0}, marks=pytest.mark.slow),
    ],
)
def test_padding_of_the_batch_void_and_crowds_count_nowhere(loss):
    task, rows = make(**loss), batch()
    assert set(np.unique(rows["semantic"])) == {-1, 0, 1, 2}
    other = {**rows, "image": rows["image"].at[3].set(9), "semantic": rows["semantic"].at[3].set(0)}
    (terms, metrics, _), (others, *_) = values(task, drawn(task, rows), rows, other)
    for name, term in terms.items():
        np.testing.assert_allclose(others[name], term, rtol=1e-5)
    assert float(metrics["pixel_accuracy"][1]) == 3 * (16 * 24 * 3 / 4 - 4)


def test_a_batch_that_is_all_void_learns_nothing_and_is_no_nan():
    task, rows = make(dice=1.0), batch()
    rows["semantic"] = jnp.full_like(rows["semantic"], -1)
    [(terms, metrics, grads)] = values(task, drawn(task, rows), rows)
    assert all(float(total) == float(count) == 0 for total, count, _ in terms.values())
    assert float(metrics["pixel_accuracy"][1]) == 0
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads))


def test_the_loss_is_taken_at_the_resolution_of_the_labels():
    """Where the image is padded to the model's stride as well."""
    task, rows = make(UNET), batch("resize((15, 21))|semantic")
    [(terms, _, _)] = values(task, drawn(task, rows), rows)
    assert float(terms["cross_entropy"][1]) == (np.asarray(rows["semantic"])[:3] >= 0).sum()


def predicted(task, variables, rows):
    return jax.jit(lambda rows: task.evaluate(variables, rows, normalize))(rows)


def test_logits_come_back_at_the_original_resolution():
    """Enlarged or mirrored, the classes lie where they did: a network of one 1 x 1 convolution, in
    effect, cannot tell."""
    task = make(SEGMENTER | {"decoder": "linear"})
    task = type(task)(**{**task.__dict__, "model": OfColour()})
    plain = predicted(task, {}, batch(evaluation=True))
    maps = np.moveaxis(np.asarray(plain["logits"][0]), -1, 0)
    truth = best_at_original([(maps, plain["affine"][0])], 1, (16, 24))
    np.testing.assert_array_equal(truth, np.asarray(plain["logits"][0]).argmax(-1))
    mirrors = "flip_lr(1)", "flip_ud(1)", "letterbox((64, 48))|flip_ud(1)|flip_lr(1)"
    for ops in ("resize((32, 48))", "letterbox((40, 64))", "letterbox((64, 48))", *mirrors):
        found = predicted(task, {}, batch(f"{ops}|semantic", evaluation=True))
        maps = np.moveaxis(np.asarray(found["logits"][0]), -1, 0)
        there = best_at_original([(maps, found["affine"][0])], 1, (16, 24))
        assert (there == truth).mean() > 0.9, ops
    with pytest.raises(InputError, match="cuts off a part of the image"):
        at_original(np.zeros((1, 8, 8), np.float32), 1, np.array([1, 1, 0, 0.0]), (16, 24))


def test_cells_of_padding_alone_reach_no_pixel():
    """Whatever the model says where there is nothing but padding."""
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, 5, 6)).astype(np.float32)
    affine, size = np.array([2.0, 2, 0, 0]), (9, 11)  # content of 18 x 22 pixels
    found = at_original(maps, 4, affine, size)
    wide = np.pad(maps, [(0, 0), (0, 3), (0, 2)], constant_values=1e6)
    np.testing.assert_array_equal(at_original(wide, 4, affine, size), found)
    # In pieces it is the same.
    rows = [slice(0, 4), slice(4, 5), slice(5, 9)]
    pieces = [at_original(maps, 4, affine, size, each) for each in rows]
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), found, atol=1e-6)
    # So it is upside down.
    mirror = {"affine": affine * [1, -1, 1, 1] + [0, 0, 0, 18], "size": size}
    pieces = [at_original(maps, 4, rows=each, **mirror) for each in rows]
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), found[:, ::-1], atol=1e-6)
    maps[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="not finite"):
        at_original(maps, 4, affine, size)


class OfColour:
    """A model whose classes are the brightest channel."""

    stride = 1

    def apply(self, variables, images, content=None, method=None):
        del variables, content, method
        return images


def test_enlarging_is_torchs_bilinear():
    """torch.nn.functional.interpolate([[0, 1], [2, 5]], scale_factor=2, mode="bilinear")."""
    maps = np.array([[[0, 1], [2, 5]]], np.float32)
    found = at_original(maps, 2, np.array([1, 1, 0, 0.0]), (4, 4))[0]
    expected = [
        [0.0, 0.25, 0.75, 1.0],
        [0.5, 0.875, 1.625, 2.0],
        [1.5, 2.125, 3.375, 4.0],
        [2.0, 2.75, 4.25, 5.0],
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_perfect_segmenter_has_an_miou_of_one(tmp_path):
    rng = np.random.default_rng(0)
    scenes = [scene(rng) for _ in range(3)]
    examples = types.SimpleNamespace(
        segments=lambda i: scenes[i][1], original=lambda i: scenes[i][0]
    )
    task = make()
    task = type(task)(**{**task.__dict__, "model": OfColour()})
    labels = np.stack([np.maximum(segments.semantic(), 0) for _, segments in scenes])
    outputs = {
        "id": np.arange(3),
        "logits": np.eye(3, dtype=np.float32)[labels],
        "affine": np.tile([1.0, 1, 0, 0], (3, 1)),
    }
    reduced = task.reduce(outputs, examples)
    metrics = task.metrics(reduced, examples)
    for name in ("mIoU", "mIoU_present", "pixel_accuracy", "mean_accuracy", "boundary_F"):
        assert metrics[name] == pytest.approx(1), name
    task.pictures(reduced, outputs, examples, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "segmentations.png", "classes.png", "boundaries.png", "confusion.png", "classes.json",
    }  # fmt: skip
    of_class = json.loads((tmp_path / "classes.json").read_text())
    ones = dict.fromkeys(CLASSES, pytest.approx(1))
    assert of_class == {"IoU": ones, "boundary_F": ones}


def test_the_settings_make_the_task_again():
    for model in (SEGMENTER, UNET):
        task = make(model, dice=0.5)
        settings = task.settings()
        again = type(task).from_config(**settings, classes=CLASSES, dtype=jnp.float32)
        assert (again.model, again.loss_config) == (task.model, task.loss_config)


def test_the_backbone_keeps_its_layers_for_layer_decay():
    task = make()
    assert task.layer_of("backbone/patch_embedding/kernel") == 0
    assert task.layer_of("decoder_blocks/block_0/mlp/fc1/kernel") == task.num_layers == 2


def test_what_does_not_fit_is_one_line():
    task, rows = make(), batch()
    without = {key: rows[key] for key in ("image", "id", "epoch", "mask")}
    with pytest.raises(InputError, match="config.data.preprocess has no semantic"):
        task.augment(without, normalize, 0, 0)
    with pytest.raises(InputError, match="has neither semantic nor pad_segments"):
        task.evaluate({}, without, normalize)
    with pytest.raises(InputError, match="config.data.source has no masks"):
        type(task).from_config(SEGMENTER, {}, {}, (), jnp.float32)
    for field, value in (("rep_size", True), ("num_classes", 7), ("patch_dropout", 0.5)):
        backbone = {**SEGMENTER["backbone"], field: value}
        with pytest.raises(InputError, match=f"backbone.{field} is for classification"):
            make({**SEGMENTER, "backbone": backbone})
    with pytest.raises(InputError, match="class_weights has 2 numbers for 3 classes"):
        make(class_weights=(1.0, 2.0))
    with pytest.raises(InputError, match="cross_entropy and dice are both 0"):
        make(cross_entropy=0.0)
    with pytest.raises(InputError, match="hard_pixels is 0"):
        make(hard_pixels=0.0)
    with pytest.raises(InputError, match="no model 'u-net'; did you mean 'unet'"):
        make({**UNET, "name": "u-net"})
    with pytest.raises(InputError, match="window is 6 and window_stride None: both must be mult"):
        make({**SEGMENTER, "window": 6})
