"""EoMT against the reference implementation, and what queries held to their masks can see."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from vitlab.errors import InputError
from vitlab.models.eomt import EoMT, Predict, enlargements, mask_logits, masking, own_masks
from vitlab.models.resnet import ResNet
from vitlab.models.vit import ViT

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
HF_NAMES = [
    (r"^embeddings\.cls_token", "backbone/cls"),
    (r"^embeddings\.register_tokens", "backbone/registers"),
    (r"^embeddings\.patch_embeddings\.projection", "backbone/patch_embedding"),
    (r"^embeddings\.position_embeddings\.weight", "backbone/position_embedding/table"),
    (r"^layernorm", "backbone/norm"),
    (r"^layers\.(\d)\.", r"backbone/encoder/block_\1/"),
    (r"\.lambda1", ""),
    (r"([qkv])_proj", lambda m: {"q": "query", "k": "key", "v": "value"}[m[1]]),
    (r"out_proj", "out"),
    (r"^query\.weight", "queries"),
    (r"^class_predictor", "predict/class"),
    (r"^mask_head\.fc(\d)", lambda m: f"predict/mask_{int(m[1]) - 1}"),
    (r"^upscale_block\.block\.(\d)\.", r"predict/up_\1_"),
    (r"up_(\d)_conv1", r"up_\1_enlarge"),
    (r"up_(\d)_conv2", r"up_\1_depthwise"),
    (r"layernorm2d", "norm"),
]


def from_hf(params, grid):
    """Variables from the names of the published files."""
    variables = {}
    for name, value in params.items():
        for pattern, replacement in HF_NAMES:
            name = re.sub(pattern, replacement, name)
        path, value = name.replace(".", "/"), value.astype(np.float32)
        if "enlarge/weight" in path:  # torch's turns the kernel around
            value = value[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
        if path.endswith("/weight"):
            path = path.removesuffix("weight") + ("scale" if value.ndim == 1 else "kernel")
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        elif path.endswith("/table"):
            value = value.reshape(*grid, -1)
        variables[path] = value[None] if path == "queries" else value
    return {"params": unflatten_dict(variables, sep="/")}


def precise(model, **options):
    """Its compiled `apply`, with exact products where the machine has others."""
    run = jax.jit(functools.partial(model.apply, **options))

    def apply(*args, **kwargs):
        with jax.default_matmul_precision("highest"):
            return run(*args, **kwargs)

    return apply


def assert_close(found, expected):
    assert found.shape == expected.shape
    error = np.abs(np.asarray(found, np.float64) - expected).max()
    assert error <= min(1e-4, 1e-5 * np.abs(expected).max()), error


@functools.cache
def reference():
    arrays = np.load(FIXTURES / "segmenters.npz")
    arrays = {k.removeprefix("eomt/"): arrays[k] for k in arrays.files if k.startswith("eomt/")}
    arrays["images"] = arrays["images"].astype(np.float32) / 32
    params = {k.removeprefix("params/"): v for k, v in arrays.items() if k.startswith("params/")}
    sizes = {"width": 24, "depth": 4, "num_heads": 3, "mlp_dim": 48, "patch_size": 16}
    like = {"num_registers": 2, "class_position": False, "layer_scale": 1.0}
    model = EoMT(ViT(**sizes, **like), 4, num_queries=5, num_blocks=2)
    return arrays, from_hf(params, (2, 8)), model


def test_logits_and_masks_are_the_reference_s():
    arrays, variables, model = reference()
    shapes = jax.eval_shape(model.init, jax.random.key(0), arrays["images"])
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)
    found, stages = precise(model)(variables, arrays["images"])
    assert_close(found.logits, arrays["logits"])
    assert_close(found.masks, arrays["masks"])
    assert stages["layers"].masks.shape == (2, 1, 5, 8, 32)


def test_layers_in_training_are_the_reference_s_with_every_query_held_to_its_mask():
    arrays, variables, model = reference()
    run = precise(model, train=True, rngs={"dropout": jax.random.key(0)})
    found, stages = run(variables, arrays["images"], masked=np.ones((2, 2), np.float32))
    assert_close(stages["layers"].logits, arrays["held_logits"])
    assert_close(stages["layers"].masks, arrays["held_masks"])
    np.testing.assert_array_equal(stages["layers"].logits[:, -1], found.logits)


def test_the_parameter_count_of_eomt_l_is_the_published_one():
    """316M, of COCO's 133 classes at 640 pixels, counted from transformers' module."""
    like = {"num_registers": 4, "class_position": False, "layer_scale": 1.0}
    model = EoMT(ViT("L/16", **like), 133, num_queries=200)
    images = jax.ShapeDtypeStruct((1, 640, 640, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 316_695_686
    assert reference()[0]["published"] == 316_695_686


@pytest.mark.parametrize("blocks", [3, 4])
def test_queries_are_let_go_when_the_published_configs_do(blocks):
    """COCO's: 12 epochs of 7,391 steps."""
    starts = {3: [14782, 36955, 59128], 4: [14782, 29564, 44346, 59128]}[blocks]
    ends = {3: [29564, 51737, 73910], 4: [29564, 44346, 59128, 73910]}[blocks]
    steps = np.unique([*np.arange(0, 88_692, 977), *starts, *ends, 88_692])
    found = masking(jnp.asarray(steps / 88_692, jnp.float32), blocks)
    assert found.shape == (len(steps), blocks)
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        done = np.clip((steps - start) / (end - start), 0, 1)
        np.testing.assert_allclose(found[:, i], (1 - done) ** 0.9, atol=3e-6)


def test_a_single_block_s_queries_are_let_go_as_the_first_s():
    found = masking(jnp.array([0.0, 1 / 6 - 1e-3, 1 / 4, 1 / 3, 1.0]), 1)[:, 0]
    np.testing.assert_allclose(found, [1, 1, 0.5**0.9, 0, 0], atol=1e-5)


VIT = {"width": 16, "depth": 2, "num_heads": 2, "patch_size": 4, "mlp_dim": 24}
VIT |= {"pos_embed": "none", "num_registers": 1}
IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)


def drawn(model, images):
    """Variables without a zero or a one that would hide something, and no program to draw them."""
    rng = np.random.default_rng(0)

    def draw(path, x):
        if path[-1].key == "scale":
            return np.exp(0.3 * rng.normal(size=x.shape)).astype(np.float32)
        gain = 0.3 if x.ndim < 2 else 1.4 / np.sqrt(np.prod(x.shape[:-1]))
        return (gain * rng.normal(size=x.shape)).astype(np.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(draw, shapes)


def build(vit=None, **fields):
    fields = {"num_queries": 5, "num_blocks": 1} | fields
    return EoMT(ViT(**VIT | (vit or {})), 3, **fields)


@functools.cache
def eomt():
    model = build()
    rngs = {"dropout": jax.random.key(1)}
    return precise(model), precise(model, train=True, rngs=rngs), drawn(model, IMAGES)


def segment(content, canvas, padding=0.0, held=False):
    """Logits and the cells of the masks of one image of that content in the corner of a canvas."""
    images = np.full((1, *canvas, 3), padding, np.float32)
    images[0, : content[0], : content[1]] = IMAGES[0, : content[0], : content[1]]
    run, train, variables = eomt()
    content = np.array([content])
    if held:
        found = train(variables, images, content, np.ones((1, 1), np.float32))[1]["layers"]
    else:
        found, _ = run(variables, images, content)
    rows, columns = (-(-side // 2) for side in content[0])  # cells of two pixels
    return np.asarray(found.logits), np.asarray(found.masks)[..., :rows, :columns]


def assert_same(found, expected):
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, atol=5e-5)


@pytest.mark.parametrize("held", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_more_padding_changes_no_mask(held):
    """Nor what is in it, where it fills whole patches; nor whether an image that fills its canvas
    is said to do so."""
    expected = segment((24, 20), (24, 24), held=held)
    assert_same(segment((24, 20), (32, 32), 9.0, held=held), expected)
    full = segment((24, 24), (32, 32), held=held)
    run, train, variables = eomt()
    if held:
        unsaid = train(variables, IMAGES[:1, :24, :24], None, np.ones((1, 1), np.float32))[1]
        assert_same(unsaid["layers"], full)
    else:
        assert_same(run(variables, IMAGES[:1, :24, :24])[0], full)
    assert np.abs(full[0] - expected[0]).max() > 1e-3


def test_any_size_is_the_same_as_on_a_canvas_of_whole_patches():
    run, _, variables = eomt()
    found, _ = run(variables, IMAGES[:1, :22, :21])
    logits, masks = segment((22, 21), (24, 24))
    assert_same((found.logits, found.masks[..., :11, :11]), (logits, masks))


@pytest.mark.slow
@pytest.mark.parametrize("side", [2, 4, 8])
def test_own_masks_are_bilinear_without_antialiasing(side):
    masks = np.random.default_rng(0).normal(size=(2, 4, 3 * side, 5 * side)).astype(np.float32)
    small = jax.image.resize(masks, (2, 4, 3, 5), "bilinear", antialias=False)
    found = own_masks(masks, (3, 5), 1)
    np.testing.assert_array_equal(found[:, :4, 5:], small.reshape(2, 4, 15) > 0)
    assert found[:, 4:].all()  # the class token and the patches attend to everything
    assert found[:, :, :5].all()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_gradients_of_mask_logits_are_those_of_the_product(dtype, tolerance):
    rng = np.random.default_rng(0)
    exact = [rng.normal(size=shape).astype(np.float32) for shape in ((2, 3, 8), (2, 5, 8))]
    back = rng.normal(size=(2, 3, 5)).astype(np.float32)
    logits, pull = jax.vjp(mask_logits, *(jnp.asarray(x, dtype) for x in exact))
    expected, exact_pull = jax.vjp(lambda q, c: q @ c.swapaxes(1, 2), *exact)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, atol=tolerance * np.abs(expected).max())
    for ours, theirs in zip(pull(back), exact_pull(back), strict=True):
        assert ours.dtype == dtype
        ours = ours.astype(np.float32)
        np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max())


def test_queries_that_are_held_to_nothing_train_as_they_predict():
    run, train, variables = eomt()
    expected, _ = run(variables, IMAGES)
    free, stages = train(variables, IMAGES, None, np.zeros((2, 1), np.float32))
    assert stages["layers"].logits.shape[:2] == (2, 2)
    assert_same(free, expected)
    held, _ = train(variables, IMAGES, None, np.ones((2, 1), np.float32))
    assert np.abs(held.logits - expected.logits).max() > 1e-2
    # Each image has its own probability.
    one, _ = train(variables, IMAGES, None, np.array([[1], [0]], np.float32))
    assert_same([x[0] for x in one], [x[0] for x in held])
    assert_same([x[1] for x in one], [x[1] for x in expected])


def test_without_masked_attention_only_the_last_layer_is_learned_from():
    _, train, variables = eomt()
    plain = precise(build(masked_attention=False), train=True)
    found, stages = plain(variables, IMAGES, None, np.ones((2, 1), np.float32))
    assert stages["layers"].logits.shape[:2] == (2, 1)
    expected, _ = train(variables, IMAGES, None, np.zeros((2, 1), np.float32))
    assert_same(found, expected)


ONE_BLOCK = {"vit": {"depth": 1}}  # in which no patch has seen another


@pytest.mark.slow
def test_a_held_query_is_moved_by_the_patches_of_its_mask_alone():
    model = build(**ONE_BLOCK)
    variables, image = drawn(model, IMAGES), jnp.asarray(IMAGES[:1, :16, :24])
    rngs = {"dropout": jax.random.key(0)}
    ways = jnp.asarray(np.random.default_rng(1).normal(size=16), jnp.float32)

    @jax.jit
    def slopes(masked):
        def project(image):
            stages = model.apply(variables, image, None, masked, train=True, rngs=rngs)[1]
            patches = stages["feature_map"].reshape(-1, 16)
            each = jnp.concatenate([stages["queries"][0], patches]) @ ways
            return each, stages["layers"].masks[0, 0]

        slope, masks = jax.jacrev(project, has_aux=True)(image)
        slope = jnp.abs(slope).reshape(-1, 4, 4, 6, 4, 3)
        return slope.max(axis=(2, 4, 5)), masks

    slope, masks = slopes(jnp.ones((1, 1)))
    inside = masks.reshape(5, 4, 2, 6, 2).mean(axis=(2, 4)) > 0
    assert 0.2 < inside.mean() < 0.8
    np.testing.assert_array_equal(slope[:5] > 0, inside)
    assert (slope[5:] > 0).all()  # patches see each other
    assert (slopes(jnp.zeros((1, 1)))[0] > 0).all()


def test_so_many_queries_are_held_as_is_probable_and_each_image_draws_its_own():
    model = build(**ONE_BLOCK, num_queries=400)
    images = np.repeat(IMAGES[:1], 2, axis=0)
    variables = drawn(model, images)
    run = precise(model, train=True)

    def train(probability, key=0):
        masked = np.full((2, 1), probability, np.float32)
        rngs = {"dropout": jax.random.key(key)}
        return np.asarray(run(variables, images, None, masked, rngs=rngs)[0].logits)

    held, free, some = train(1.0), train(0.0), train(0.3)
    differ = np.abs(held - free).max(axis=-1) > 1e-3
    assert differ.mean() > 0.9
    is_held, is_free = (np.abs(some - x).max(axis=-1) < 1e-4 for x in (held, free))
    assert (is_held ^ is_free)[differ].all()
    assert abs(is_held[differ].mean() - 0.3) < 0.07  # 4 standard deviations
    assert (is_held[0] != is_held[1]).mean() > 0.3
    assert np.abs(train(0.3, key=1) - some).max() > 1e-3


@pytest.mark.slow
def test_a_scanned_backbone_gives_the_same():
    """With its random draws, which are each image's own."""
    options = {"train": True, "rngs": {"dropout": jax.random.key(1)}}
    images, masked = np.repeat(IMAGES[:1], 2, axis=0), np.full((2, 1), 0.5, np.float32)
    vit = {"depth": 3, "drop_path": 0.3, "dropout": 0.1, "pos_embed": "rope", "layer_scale": 1.0}
    variables = drawn(build(vit), images)
    runs = (precise(build(vit | {"scan": scan}), **options) for scan in (False, True))
    plain, scanned = (run(variables, images, None, masked)[0] for run in runs)
    assert_same(scanned, plain)
    assert np.abs(plain.logits[0] - plain.logits[1]).max() > 0.1


def test_all_blocks_may_be_joint_ones():
    model = build(num_blocks=2)
    run, _, variables = eomt()
    found, stages = precise(model, train=True)(variables, IMAGES)
    assert stages["layers"].logits.shape == (2, 3, 5, 4)
    # One more in which queries and patches see each other.
    assert np.abs(found.logits - run(variables, IMAGES)[0].logits).max() > 1e-2


def test_bfloat16_computes_in_it_and_predicts_in_float32():
    vit = ViT(**VIT, dtype=jnp.bfloat16)
    model = EoMT(vit, 3, num_queries=5, num_blocks=1, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    train = functools.partial(model.apply, train=True, rngs={"dropout": jax.random.key(0)})
    masked = np.ones((2, 1), np.float32)
    found, stages = jax.eval_shape(train, shapes, IMAGES, np.array([[32, 20], [9, 32]]), masked)
    assert {x.dtype for x in (*found, *stages["layers"])} == {jnp.dtype(jnp.float32)}
    assert {stages[name].dtype for name in ("feature_map", "queries")} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(("patch", "stride"), [(4, 2), (8, 4), (14, 7), (16, 4), (32, 4)])
def test_masks_have_cells_of_four_pixels_but_for_small_and_odd_patches(patch, stride):
    """As the published code enlarges them: once at least, else to a quarter of the power of two."""
    assert build({"patch_size": patch}).stride == stride
    assert enlargements(patch) == max(1, int(np.log2(patch)) - 2)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"backbone": ResNet("18")}, "EoMT backbone is a ResNet: .* a plain ViT .*"),
        ({"num_queries": 0}, "EoMT num_queries is 0: it must be at least 1"),
        ({"backbone": ViT(**VIT | {"patch_dropout": 0.5})}, "EoMT has no patch_dropout: .*"),
        ({"num_blocks": 0}, "EoMT num_blocks is 0: it must be from 1 to the ViT's depth, 2"),
        ({"num_blocks": 3}, "EoMT num_blocks is 3: it must be from 1 to the ViT's depth, 2"),
        ({"backbone": ViT(**VIT | {"patch_size": 7})}, "patch_size 7, .* no multiple of 2, .*"),
        ({"backbone": ViT(**VIT | {"patch_size": 18})}, "patch_size 18, .* no multiple of 4, .*"),
    ],
)
def test_wrong_fields_are_named_in_one_line(fields, said):
    with pytest.raises(InputError, match=f"^[^\n]*{said}$"):
        EoMT(**{"backbone": ViT(**VIT), "num_classes": 3, "num_blocks": 2} | fields)


def test_the_head_starts_as_the_authors_does():
    """PyTorch's draw for linear layers and convolutions: uniform within 1 / sqrt(fan-in)."""
    params = Predict(9, 16, jnp.float32).init(
        jax.random.key(0), jnp.zeros((1, 2, 64)), jnp.zeros((1, 2, 2, 64)), None
    )["params"]
    kernels = {
        name: np.asarray(each["kernel"]) for name, each in params.items() if "kernel" in each
    }
    fans = {"class": 64, "up_0_enlarge": 4 * 64, "up_0_depthwise": 9, "up_1_depthwise": 9}
    fans |= {"up_1_enlarge": 4 * 64} | {f"mask_{i}": 64 for i in range(3)}
    for name, fan in fans.items():
        kernel, bound = kernels[name], fan**-0.5
        assert 0.98 * bound < np.abs(kernel).max() <= bound, name
        np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.06, err_msg=name)
