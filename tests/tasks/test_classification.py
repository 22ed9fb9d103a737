"""The classification task: losses of the recipes, outputs, and counting true rows only."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vitlab.errors import InputError
from vitlab.tasks.classification import AugmentConfig, Classification, LossConfig

CLASSES = tuple("abcdefg")
MODEL = {"name": "vit", "width": 8, "depth": 1, "num_heads": 2, "patch_size": 4,
         "head_init_std": 1.0}  # fmt: skip
FOUR_STAGES = {"depths": (1, 1, 1, 1), "widths": (8, 8, 8, 8)}
RNG = np.random.default_rng(0)


def batch(rows=6):
    return {
        "image": jnp.asarray(RNG.normal(size=(rows, 8, 8, 3)), jnp.float32),
        "label": jnp.arange(rows) % 7,
        "target": jax.nn.one_hot(jnp.arange(rows) % 7, 7),
        "mask": jnp.arange(rows) < rows - 2,
        "id": jnp.arange(rows),
        "epoch": jnp.zeros(rows, jnp.int32),
    }


@pytest.fixture(scope="module")
def task():
    return Classification.from_config(MODEL, {}, {}, CLASSES, jnp.float32)


@pytest.fixture(scope="module")
def variables(task):
    return task.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


@pytest.mark.parametrize(
    "model",
    [
        MODEL,
        dict(name="resnet", variant="18", **FOUR_STAGES),
        dict(name="convnext", **FOUR_STAGES),
        dict(name="bit", norm_groups=4, **FOUR_STAGES),
    ],
)
def test_logits_are_float32_in_bfloat16_too(model):
    """Rounded to 8 bits, two of a thousand classes are often alike."""
    task = Classification.from_config(model, {}, {}, CLASSES, jnp.bfloat16)
    images = jnp.zeros((2, 32, 32, 3))
    variables = jax.eval_shape(task.init, jax.random.key(0), images)
    logits, stages = jax.eval_shape(task.model.apply, variables, images)
    assert logits.dtype == jnp.float32
    assert stages["pre_logits"].dtype == jnp.bfloat16


@pytest.mark.parametrize("head", [{}, {"num_classes": 5}])
def test_one_class_alone_is_refused(head):
    with pytest.raises(InputError, match="has one class alone, 'photos': classification tells two"):
        Classification.from_config(MODEL | head, {}, {}, ("photos",), jnp.float32)


def test_padding_changes_no_loss_and_no_metric(task, variables):
    rows = batch()
    params = variables["params"]
    key = jax.random.key(0)
    terms, metrics, _ = task.loss(params, {}, rows, key)
    true = {k: v[:4] for k, v in rows.items()}
    expected_terms, expected_metrics, _ = task.loss(params, {}, true, key)
    np.testing.assert_allclose(terms["softmax"], expected_terms["softmax"], rtol=1e-6)
    np.testing.assert_array_equal(metrics["accuracy"], expected_metrics["accuracy"])
    assert terms["softmax"][1] == 4


def test_outputs_agree_with_the_logits(task, variables):
    rows = batch()
    outputs = task.evaluate(variables, rows, lambda images: images)
    logits, _ = task.model.apply(variables, rows["image"])
    np.testing.assert_array_equal(outputs["top_k"], np.argsort(-logits, axis=1)[:, :5])
    np.testing.assert_allclose(
        outputs["nll"],
        optax.softmax_cross_entropy_with_integer_labels(logits, rows["label"]),
        rtol=1e-5,
    )
    np.testing.assert_allclose(outputs["confidence"], jax.nn.softmax(logits).max(1), rtol=1e-5)


def test_losses_of_the_recipes():
    logits = jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)
    targets = jnp.asarray([[1, 0, 0, 0], [0.3, 0.7, 0, 0], [0, 0, 0, 1.0]])
    probability = 1 / (1 + np.exp(-np.float64(logits)))

    def binary(t):
        return -(t * np.log(probability) + (1 - t) * np.log(1 - probability))

    # big_vision sums over the classes; DeiT III averages, and a mixed image has two positives.
    np.testing.assert_allclose(
        LossConfig("sigmoid")(logits, targets), binary(np.array(targets)).sum(1), rtol=1e-5
    )
    np.testing.assert_allclose(
        LossConfig("bce")(logits, targets), binary(np.array(targets) > 0).mean(1), rtol=1e-5
    )
    with pytest.raises(InputError, match="every class a positive of bce"):
        LossConfig("bce", label_smoothing=0.1)


def test_augmentation_off_is_the_normalized_image(task):
    rows = {**batch(), "image": jnp.asarray(RNG.integers(0, 256, (6, 8, 8, 3)), jnp.uint8)}
    out = task.augment(rows, lambda x: x / 127.5 - 1, 0, jnp.int32(0))
    np.testing.assert_allclose(out["image"], rows["image"] / 127.5 - 1, atol=1e-5)
    np.testing.assert_array_equal(out["target"].argmax(1), rows["label"])


@pytest.mark.slow
def test_every_augmentation_changes_training_images():
    rows = {**batch(), "image": jnp.asarray(RNG.integers(0, 256, (6, 8, 8, 3)), jnp.uint8)}
    plain = np.asarray(rows["image"] / 255.0)
    for name, value in {
        "color_jitter": (0.4, 0.4, 0.4, 0.1), "noise": 0.1, "erasing": 1.0, "mixup": 1.0,
        "cutmix": 1.0,
    }.items():  # fmt: skip
        task = Classification.from_config(MODEL, {}, {name: value}, CLASSES, jnp.float32)
        out = task.augment(rows, lambda x: x / 255.0, 0, jnp.int32(3))
        assert np.abs(np.asarray(out["image"]) - plain).max() > 0.05, name
        np.testing.assert_allclose(out["target"].sum(1), 1, rtol=1e-6)


def test_the_head_may_be_larger_than_the_data_but_not_smaller():
    task = Classification.from_config({**MODEL, "num_classes": 9}, {}, {}, CLASSES, jnp.float32)
    assert task.classes[6:] == ("g", "unused 7", "unused 8")
    with pytest.raises(InputError, match="num_classes is 3 but the data have 7 classes"):
        Classification.from_config({**MODEL, "num_classes": 3}, {}, {}, CLASSES, jnp.float32)


def test_layers_for_layer_decay(task):
    assert task.layer_of("patch_embedding/kernel") == 0
    assert task.layer_of("encoder/block_0/mlp/fc1/kernel") == 1
    assert task.layer_of("head/kernel") == task.num_layers == 2


def test_settings_out_of_range_are_refused():
    with pytest.raises(InputError, match="erasing is 2"):
        AugmentConfig(erasing=2)
    with pytest.raises(InputError, match="mixup is -1"):
        AugmentConfig(mixup=-1)
