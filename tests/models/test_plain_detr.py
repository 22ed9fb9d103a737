import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from vitlab.errors import InputError
from vitlab.models.plain_detr import BoxBias, PlainDETR, cell_places, moved
from vitlab.models.resnet import ResNet
from vitlab.models.set_loss import Targets
from vitlab.models.vit import ViT

BACKBONE = dict(width=16, depth=1, num_heads=2, patch_size=8, pool="gap", pos_embed="sincos2d_mae")
RESNET = ResNet("18", widths=(8, 8), depths=(1, 1), norm="frozen")
SMALL = dict(num_classes=3, num_queries=5, width=16, num_heads=2, mlp_dim=16, decoder_layers=2)


def detector(**settings):
    return PlainDETR(ViT(**BACKBONE), **{**SMALL, **settings})


def drawn(model, images, seed=0):
    """Variables without a zero in them, so that no parameter is idle."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    rng = np.random.default_rng(seed)
    leaves, tree = jax.tree.flatten(shapes)
    return tree.unflatten(jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype) for x in leaves)


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 48, 3)), jnp.float32)


@pytest.fixture(scope="module")
def targets():
    boxes = np.random.default_rng(1).uniform(0.2, 0.6, (2, 3, 4))
    mask = np.array([[True, True, True], [True, False, False]])
    return Targets(jnp.asarray(boxes, jnp.float32), jnp.ones((2, 3), jnp.int32), jnp.asarray(mask))


@functools.cache
def apply(**settings):
    model = detector(**settings)
    return jax.jit(model.apply, static_argnames="train")


@pytest.mark.slow
def test_padding_an_image_more_does_not_change_its_boxes(images):
    image = images[:, :24, :40]
    variables = drawn(detector(encoder_layers=1), image)
    found = []
    for canvas in ((24, 40), (32, 48), (48, 40)):
        padding = [(0, 0), *((0, b - a) for a, b in zip((24, 40), canvas, strict=True)), (0, 0)]
        # What lies in the padding must not matter, where it fills whole patches.
        padded = jnp.pad(image, padding, constant_values=9.0)
        content = jnp.full((2, 2), jnp.array([24, 40]))
        found.append(apply(encoder_layers=1)(variables, padded, content)[0])
    for other in found[1:]:
        np.testing.assert_allclose(other.boxes, found[0].boxes, atol=2e-5)
        np.testing.assert_allclose(other.logits, found[0].logits, atol=2e-5)
    whole = apply(encoder_layers=1)(variables, image)[0]
    np.testing.assert_allclose(whole.boxes, found[0].boxes, atol=2e-5)


@pytest.mark.parametrize(("backbone", "upsample"), [(ViT(**BACKBONE), False), (RESNET, True)])
@pytest.mark.slow
def test_the_canvas_need_be_no_multiple_of_the_stride_and_changes_no_box(backbone, upsample):
    model = PlainDETR(backbone, **SMALL, upsample=upsample, encoder_layers=0)
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 21, 37, 3)), jnp.float32)
    variables = drawn(model, image)
    alone = model.apply(variables, image)[0].boxes
    for canvas in ((24, 40), (27, 53)):
        image = jnp.pad(
            image,
            [(0, 0), *((0, a - b) for a, b in zip(canvas, image.shape[1:3], strict=True)), (0, 0)],
        )
        found = model.apply(variables, image, jnp.array([[21, 37]]))[0].boxes
        np.testing.assert_allclose(found, alone, atol=2e-5)


@pytest.mark.slow
def test_no_query_of_the_first_group_sees_the_others_or_the_noisy_copies(images, targets):
    """In training the first group predicts what it does without the other queries."""
    model = detector(query_groups=3, denoising=2)
    variables = drawn(model, images)
    keys = {"dropout": jax.random.key(0)}
    run = functools.partial(model.apply, variables, images, None)
    alone = run()[1]["layers"]
    noisy = jax.vmap(model.noisy_copies)(jax.random.split(jax.random.key(0), 2), targets)
    together = run(noisy, train=True, rngs=keys)[1]
    assert together["layers"].boxes.shape == (2, 2, 3, 5, 4)
    assert together["denoised"].logits.shape == (2, 2, 2, 6, 3)
    np.testing.assert_allclose(together["layers"].boxes[:, :, :1], alone.boxes, atol=1e-5)
    np.testing.assert_allclose(together["layers"].logits[:, :, :1], alone.logits, atol=1e-5)


@pytest.mark.slow
def test_the_copy_of_an_object_that_is_not_there_is_seen_by_none(images, targets):
    model = detector(denoising=2)
    variables = drawn(model, images)

    def denoised(boxes):
        keys = jax.random.split(jax.random.key(0), 2)
        noisy = jax.vmap(model.noisy_copies)(keys, targets._replace(boxes=boxes))
        found = model.apply(variables, images, None, noisy, train=True)[1]["denoised"]
        return found.boxes[1, :, :, jnp.array([0, 3])]  # of the second image's one object

    other = targets.boxes.at[1, 1:].set(0.9)
    np.testing.assert_allclose(denoised(targets.boxes), denoised(other), atol=1e-6)


@pytest.mark.slow
def test_noisy_copies_lie_as_far_off_as_they_should(targets):
    model = detector(label_noise=0.5, denoising=4)
    one = jax.tree.map(lambda x: x[0], targets)
    keys = jax.random.split(jax.random.key(0), 200)
    copies = jax.vmap(model.noisy_copies, (0, None))(keys, one)
    boxes = np.asarray(copies.boxes).reshape(-1, 2, 3, 4)
    true = np.asarray(one.boxes)
    low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    off = np.stack([low - (true[:, :2] - true[:, 2:] / 2), high - (true[:, :2] + true[:, 2:] / 2)])
    off = np.abs(off) / (true[:, 2:] / 2)
    assert off[:, :, 0].max() <= 1 + 1e-5
    assert (low >= -1e-6).all()
    assert (high <= 1 + 1e-6).all()
    inside = (low > 1e-5) & (high < 1 - 1e-5)
    assert np.stack([inside, inside])[:, :, 1].any()
    labels = np.asarray(copies.labels)
    # Half of them draw a class anew, a third of which is the same.
    assert abs((labels != 1).mean() - 0.5 * 2 / 3) < 0.03


@pytest.mark.slow
def test_without_a_learned_move_the_boxes_stay_where_they_were_proposed(images):
    model = detector()
    variables = model.init(jax.random.key(0), images)
    found, stages = model.apply(variables, images)
    centres = np.asarray(stages["proposals"].boxes[0, 0, :, :2])
    expected = [((x + 0.5) / 6, (y + 0.5) / 4) for y in range(4) for x in range(6)]
    np.testing.assert_allclose(centres, expected, atol=1e-6)
    np.testing.assert_allclose(stages["proposals"].boxes[0, 0, 0, 2:], [3 * 8 / 48, 3 * 8 / 32])
    proposed, chosen = (
        {tuple(np.round(box, 5)) for box in np.asarray(boxes)}
        for boxes in (stages["proposals"].boxes[0, 0], found.boxes[0])
    )
    assert chosen <= proposed


@pytest.mark.slow
def test_queries_begin_at_the_surest_proposals(images):
    model = detector(refine=False)
    variables = drawn(model, images)
    heads = variables["params"]["decoder"]["heads"]
    heads["box"] = jax.tree.map(jnp.zeros_like, heads["box"])
    found, stages = model.apply(variables, images)
    logits, boxes = (np.asarray(x[:, 0]) for x in stages["proposals"])
    best = np.argsort(-logits.max(axis=-1), axis=1)[:, :5]
    expected = np.take_along_axis(boxes, best[..., None], axis=1)
    np.testing.assert_allclose(found.boxes, expected, atol=1e-6)


def test_boxes_move_in_units_of_their_own_sides():
    boxes = jnp.array([0.5, 0.4, 0.2, 0.1])
    by = jnp.array([0.5, -1.0, np.log(2), 0.0])
    np.testing.assert_allclose(moved(boxes, by), [0.6, 0.3, 0.4, 0.1], rtol=1e-6)
    assert np.isfinite(moved(boxes, jnp.full(4, 1e6))).all()


def test_the_box_bias_knows_rows_from_columns():
    bias = BoxBias(2, 8, jnp.float32)
    places = cell_places(8, (32, 48), 1, 4, 6)
    boxes = jnp.array([[[0.5, 0.5, 0.2, 0.2]]])
    variables = bias.init(jax.random.key(0), boxes, places)
    rows, columns = bias.apply(variables, boxes, places)
    assert rows.shape == (1, 2, 1, 4)
    assert columns.shape == (1, 2, 1, 6)
    # A box that moves along x changes its columns' terms alone.
    aside_rows, aside_columns = bias.apply(variables, boxes.at[..., 0].add(0.1), places)
    np.testing.assert_array_equal(aside_rows, rows)
    assert np.abs(aside_columns - columns).max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (dict(two_stage=False), "proposal_heads_0"),
        (dict(box_bias=False), "decoder/box_bias_0"),
        (dict(encoder_layers=0), "\nencoder/"),
        (dict(upsample=False), "upsample"),
    ],
)
def test_what_is_switched_off_is_not_there(images, settings, part):
    def parts(**settings):
        model = detector(**settings)
        params = jax.eval_shape(lambda: model.init(jax.random.key(0), images))["params"]
        return "\n".join(flatten_dict(params, sep="/"))

    on = {**{key: not value for key, value in settings.items()}}
    assert part in parts(**{key: int(v) if key == "encoder_layers" else v for key, v in on.items()})
    assert part not in parts(**settings)


def test_upsampling_doubles_the_map(images):
    model = detector(upsample=True)
    shapes = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images))[0][1]
    assert shapes["feature_map"].shape == (2, 8, 12, 16)


def test_computes_in_bfloat16_and_answers_in_float32(images):
    model = PlainDETR(ViT(**BACKBONE, dtype=jnp.bfloat16), **SMALL, dtype=jnp.bfloat16)
    variables, (found, stages) = jax.eval_shape(
        lambda: (model.init(jax.random.key(0), images), model.init_with_output(
            jax.random.key(0), images)[0])
    )  # fmt: skip
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert (found.boxes.dtype, found.logits.dtype) == (jnp.float32, jnp.float32)
    assert stages["memory"].dtype == jnp.bfloat16


@pytest.mark.slow
def test_no_object_is_no_reason_to_propose_a_box_nor_a_class_of_a_copy(images, targets):
    """Of the softmax loss, whose last logit says that there is nothing."""
    model = detector(no_object=True, label_noise=1.0, denoising=20)
    variables = drawn(model, images)
    heads = variables["params"]["proposal_heads_0"]["class"]
    heads["bias"] = jnp.array([0.0, 0.0, 50.0])
    _, stages = model.apply(variables, images)
    heads["bias"] = jnp.zeros(3)
    _, other = model.apply(variables, images)
    np.testing.assert_allclose(stages["queries"], other["queries"], atol=1e-5)
    copies = model.noisy_copies(jax.random.key(0), jax.tree.map(lambda x: x[0], targets))
    assert set(np.unique(copies.labels)) == {0, 1}


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (dict(box_noise=-1.0), "box_noise is -1.0"),
        (dict(num_queries=25), "num_queries is 25 but the feature map has only 24 cells"),
        (dict(width=15), "width 15 is no multiple of its 2 heads"),
        (dict(denoising=-1), "denoising is -1"),
        (dict(query_groups=0), "query_groups 0"),
        (dict(dropout=1.0), "dropout is 1.0"),
        (dict(decoder_layers=0), "decoder_layers is 0"),
    ],
)
def test_bad_settings_are_one_line(images, settings, fault):
    with pytest.raises(InputError, match=fault):
        jax.eval_shape(lambda: detector(**settings).init(jax.random.key(0), images))
