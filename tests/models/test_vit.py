import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from vitlab.errors import InputError
from vitlab.models import transformer
from vitlab.models.transformer import Attention, Block, Encoder, Mlp
from vitlab.models.vit import ViT
from vitlab.ops.positions import resize_position_embedding

GRID = (2, 3)  # of the images below


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 24, 3)), jnp.float32)


def drawn(model, images, seed=0):
    """Variables without a zero or a one in them, so that no parameter is idle."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    rng = np.random.default_rng(seed)
    leaves, tree = jax.tree.flatten(shapes)
    return tree.unflatten(jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype) for x in leaves)


RANDOM = {"dropout": 0.1, "drop_path": 0.5, "patch_dropout": 0.3}
SMALL = {"patch_size": 8, "width": 16, "depth": 2, "mlp_dim": 16, "num_heads": 2, "num_classes": 3}


@pytest.fixture(scope="module")
def unrolled(images):
    return values_and_gradients(images)


def values_and_gradients(images, **settings):
    sizes = {**SMALL, "layer_scale": 1.0, "pos_embed": "rope"}
    model = ViT(**sizes, **RANDOM, **settings)
    variables = drawn(ViT(**sizes), images)

    @jax.jit
    def run(variables, key):
        def loss(variables):
            output, stages = model.apply(variables, images, train=True, rngs={"dropout": key})
            return (output**2).sum(), stages

        (_, stages), gradients = jax.value_and_grad(loss, has_aux=True)(variables)
        return stages, gradients

    return run(variables, jax.random.key(3))


@pytest.mark.parametrize(
    "settings",
    [
        {"scan": True},
        pytest.param({"remat": "full"}, marks=pytest.mark.slow),
        {"scan": True, "remat": "dots_with_no_batch_dims_saveable"},
    ],
)
def test_scan_and_remat_change_no_output_gradient_or_random_draw(images, unrolled, settings):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        values_and_gradients(images, **settings),
        unrolled,
    )


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"pos_embed": "rope", "scan": True}, {"remat": "full"}])
def test_padding_to_an_even_number_of_tokens_changes_nothing(images, monkeypatch, settings):
    model = ViT(**SMALL, **settings, drop_path=0.5)
    variables = drawn(model, images)
    content = jnp.array([[16, 24], [16, 13]])  # the last patches of the second are padding

    def run():
        def loss(variables):
            key = {"dropout": jax.random.key(3)}
            logits, stages = model.apply(variables, images, train=True, rngs=key)
            maps = model.apply(variables, images, content=content, method="feature_maps")
            return (logits**2).sum() + (maps[8][:, :, 0] ** 2).sum(), (stages, maps)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)

    plain, lengths = run(), []
    monkeypatch.setattr(transformer, "evened", lambda x: lengths.append(x.shape[1]) or 8)
    padded = run()
    assert set(lengths) == {7}  # class token and six patches
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), padded, plain)


def test_scan_stores_parameters_per_block(images):
    plain, scanned = (
        jax.eval_shape(ViT(**SMALL, scan=scan).init, jax.random.key(0), images)
        for scan in (False, True)
    )
    assert plain == scanned
    assert set(scanned["params"]["encoder"]) == {"block_0", "block_1"}


@pytest.mark.parametrize("scan", [False, True])
def test_blocks_in_parts_are_all_blocks(scan):
    """With their random draws, stages and rates."""
    attend, mlp = functools.partial(Attention, 2), functools.partial(Mlp, 16)
    block = functools.partial(Block, attend, mlp, nn.LayerNorm)
    encoder = Encoder(3, block, drop_path=0.5, scan=scan)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 8)), jnp.float32)
    variables, keys = drawn(encoder, x), jax.random.split(jax.random.key(0), 3)
    mask = jnp.arange(5) < jnp.array([[5], [3], [1]])

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def run(x, start=0, stop=None):
        return encoder.apply(variables, x, None, mask, keys, start, stop)

    whole, expected = run(x)
    first, early = run(x, 0, 1)
    last, late = run(first, 1, 3)
    np.testing.assert_array_equal(encoder.apply(variables, first, start=1, stop=1)[0], first)
    np.testing.assert_allclose(last, whole, atol=1e-5)
    assert set(early) == {"block_0", "block_0/attention", "block_0/mlp"}
    assert_close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(assert_close, early | late, expected)


@pytest.mark.slow
def test_padding_to_an_even_number_of_tokens_keeps_a_mask_of_each_query(monkeypatch):
    attend, mlp = functools.partial(Attention, 2), functools.partial(Mlp, 16)
    block = functools.partial(Block, attend, mlp, nn.LayerNorm)
    encoder = Encoder(1, block)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 5, 8)), jnp.float32)
    variables = drawn(encoder, x)
    full = jnp.asarray(rng.random((2, 1, 5, 5)) < 0.6).at[..., 0].set(True)

    def run(mask):
        def loss(variables):
            y = encoder.apply(variables, x, mask=mask)[0]
            return (y**2).sum(), y

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)

    for mask in (full, full[:, :, :1]):
        with monkeypatch.context() as patch:
            plain = run(mask)
            patch.setattr(transformer, "evened", lambda x: 6)
            jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5), run(mask), plain)


@pytest.mark.slow
def test_a_uniform_drop_path_is_that_of_every_block():
    """github.com/facebookresearch/deit, models_v2.py."""
    model = ViT(**{**SMALL, "depth": 2}, drop_path=0.5, drop_path_uniform=True)
    images = jnp.ones((500, 8, 8, 3))
    variables = drawn(model, images[:1])
    _, stages = model.apply(variables, images, train=True, rngs={"dropout": jax.random.key(0)})
    for i in range(2):
        dropped = (np.asarray(stages[f"block_{i}/mlp"]) == 0).all(axis=(1, 2))
        assert abs(dropped.mean() - 0.5) < 0.09  # 4 standard deviations


def test_drop_path_drops_whole_examples_at_rates_linear_in_depth():
    model = ViT(**{**SMALL, "depth": 3}, drop_path=0.6)
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
    variables = drawn(model, image)
    images = jnp.broadcast_to(image, (1000, 8, 8, 3))
    apply = jax.jit(model.apply, static_argnames="train")
    _, stages = apply(variables, images, train=True, rngs={"dropout": jax.random.key(0)})
    _, evaluated = apply(variables, images[:1])
    first = np.asarray(evaluated["block_0/attention"][0])
    np.testing.assert_allclose(stages["block_0/attention"][7], first, atol=1e-5)
    for i, rate in enumerate((0.0, 0.3, 0.6)):
        for branch in ("attention", "mlp"):
            added = np.asarray(stages[f"block_{i}/{branch}"])
            dropped = (added == 0).all(axis=(1, 2))
            assert ((added == 0).any(axis=(1, 2)) == dropped).all()
            assert abs(dropped.mean() - rate) < 0.06  # 4 standard deviations
    # Block 1's attention sees the same input in every example: kept ones are scaled by 1 / 0.7,
    # so that the mean over all is what evaluation computes.
    same = (np.asarray(stages["block_0"]) == np.asarray(stages["block_0"][:1])).all(axis=(1, 2))
    added = np.asarray(stages["block_1/attention"])[same]
    kept = added[(added != 0).any(axis=(1, 2))]
    wanted = np.asarray(evaluated["block_1/attention"][0]) / 0.7
    np.testing.assert_allclose(kept, np.broadcast_to(wanted, kept.shape), rtol=1e-3, atol=1e-4)


def test_dropout_keeps_the_expectation_and_evaluation_is_exact(images):
    image = images[:1, :8, :8]
    variables = drawn(ViT(**SMALL), image)
    still, _ = ViT(**SMALL).apply(variables, image)
    random = ViT(**SMALL, **RANDOM)
    np.testing.assert_array_equal(random.apply(variables, image)[0], still)
    model = ViT(**SMALL, dropout=0.2)
    many = jnp.broadcast_to(image, (2000, 8, 8, 3))
    _, stages = jax.jit(functools.partial(model.apply, train=True))(
        variables, many, rngs={"dropout": jax.random.key(0)}
    )
    added = np.asarray(stages["block_0/attention"])
    assert abs((added == 0).mean() - 0.2) < 0.01


def test_training_without_dropout_needs_no_rng(images):
    model = ViT(**SMALL)
    variables = drawn(model, images)
    output, _ = jax.jit(functools.partial(model.apply, train=True))(variables, images)
    np.testing.assert_array_equal(output, jax.jit(model.apply)(variables, images)[0])


@pytest.mark.parametrize("pos_embed", ["learned", "rope"])
def test_patch_dropout_keeps_the_class_token_and_the_right_number_of_patches(pos_embed):
    model = ViT(**SMALL, patch_dropout=0.3, pos_embed=pos_embed, num_registers=2)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 24, 32, 3)), jnp.float32)
    variables = drawn(model, images)
    _, stages = jax.jit(functools.partial(model.apply, train=True))(
        variables, images, rngs={"dropout": jax.random.key(0)}
    )
    assert stages["encoder"].shape == (4, 3 + int(12 * 0.7), 16)
    _, stages = model.apply(variables, images)
    assert stages["encoder"].shape == (4, 3 + 12, 16)


@pytest.mark.parametrize("pos_embed", ["learned", "sincos2d", "rope"])
def test_encoding_a_subset_of_patches_does_not_depend_on_their_order(images, pos_embed):
    model = ViT(**SMALL, pos_embed=pos_embed, num_registers=1)
    variables = drawn(model, images)
    kept = np.array([[4, 1, 3], [0, 5, 2]])

    def encode(kept):
        tokens, rope, _ = model.apply(variables, images, method="embed")
        rope = None if rope is None else rope[kept]
        tokens = jnp.take_along_axis(tokens, kept[..., None], axis=1)
        return model.apply(variables, tokens, rope, method="encode")[0]

    forward, backward = encode(kept), encode(kept[:, ::-1])
    np.testing.assert_allclose(forward[:, :2], backward[:, :2], atol=1e-4)
    np.testing.assert_allclose(forward[:, 2:], backward[:, :1:-1], atol=1e-4)
    everything = encode(np.tile(np.arange(6), (2, 1)))
    np.testing.assert_allclose(everything, model.apply(variables, images)[1]["encoder"], atol=1e-4)
    # The position is in the tokens: the same contents elsewhere give other features.
    tokens, rope, _ = model.apply(variables, images, method="embed")
    moved = model.apply(variables, tokens[:, ::-1], rope, method="encode")[0]
    assert np.abs(moved[:, :1] - everything[:, :1]).max() > (1e-3 if pos_embed == "rope" else -1)


def test_feature_maps_are_the_patches_without_class_token_and_registers(images):
    model = ViT(**SMALL, num_registers=3)
    variables = drawn(model, images)
    maps = model.apply(variables, images, method="feature_maps")
    _, stages = model.apply(variables, images)
    assert list(maps) == [8]
    assert maps[8].shape == (2, *GRID, 16)
    for row, column in np.ndindex(*GRID):
        token = stages["encoder"][:, 1 + 3 + row * GRID[1] + column]
        np.testing.assert_array_equal(maps[8][:, row, column], token)
    # Where the norm of a classifier is after its pool, the maps have one nonetheless.
    same = ViT(**SMALL, num_registers=3, norm_after_pool=True)
    maps_too = same.apply(variables, images, method="feature_maps")
    np.testing.assert_array_equal(maps_too[8], maps[8])


def test_a_stem_of_convolutions_makes_patches_of_which_padding_is_no_part():
    sizes = {**SMALL, "patch_size": 4, "pool": "gap", "pos_embed": "none"}
    model = ViT(**sizes, stem="conv")
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(1, 12, 16, 3)), jnp.float32)
    variables = drawn(model, images)
    maps = jax.jit(lambda x, content: model.apply(variables, x, content=content,
                                                  method="feature_maps")[4])  # fmt: skip
    whole = maps(images, None)
    assert whole.shape == (1, 3, 4, 16)
    padded = jnp.pad(images, [(0, 0), (0, 8), (0, 4), (0, 0)])
    np.testing.assert_allclose(maps(padded, jnp.array([[12, 16]]))[:, :3, :4], whole, atol=2e-5)
    # Two 3x3 convolutions of stride 2 and a 1x1: 3 -> 8 -> 8 -> 16 channels, without biases within.
    stem = variables["params"]["patch_embedding"]
    count = sum(x.size for x in jax.tree.leaves(stem))
    assert count == 27 * 8 + 16 + 72 * 8 + 16 + 8 * 16 + 16


def test_a_learned_table_is_resized_to_the_images_of_apply(images):
    model = ViT(**SMALL)
    variables = drawn(model, images)
    larger = jnp.asarray(np.random.default_rng(1).normal(size=(1, 40, 32, 3)), jnp.float32)
    output, stages = jax.jit(model.apply)(variables, larger)
    assert stages["with_position"].shape == (1, 5, 4, 16)
    params = dict(variables["params"])
    table = params["position_embedding"]["table"]
    table = resize_position_embedding(table.reshape(1, 6, 16), (5, 4), old_grid=GRID)
    params["position_embedding"] = {"table": table.reshape(5, 4, 16)}
    np.testing.assert_allclose(output, model.apply({"params": params}, larger)[0], atol=1e-5)


def test_pools_and_features(images):
    model = ViT(**SMALL, pool="gap", class_token=True, num_registers=1)
    _, stages = model.apply(drawn(model, images), images)
    assert stages["encoder"].shape[1] == 2 + 6
    np.testing.assert_allclose(stages["pooled"], stages["encoder"][:, 2:].mean(axis=1), atol=1e-6)

    headless = ViT(**{**SMALL, "num_classes": None}, rep_size=True)
    output, stages = headless.apply(drawn(headless, images), images)
    np.testing.assert_array_equal(output, stages["pre_logits"])
    assert output.shape == (2, 16)
    assert np.abs(output).max() < 1
    assert "logits" not in stages

    every = ViT(**SMALL, pool="none")
    assert every.apply(drawn(every, images), images)[0].shape == (2, 6, 3)


def test_every_stage_is_named(images):
    model = ViT(**SMALL, pre_norm=True)
    stages = jax.eval_shape(lambda: model.apply(drawn(model, images), images)[1])
    blocks = [f"block_{i}{part}" for i in range(2) for part in ("", "/attention", "/mlp")]
    ends = ["patch_embedding", "with_position", "norm_pre", "encoder"]
    assert set(stages) == {*blocks, *ends, "pooled", "pre_logits", "logits"}


def test_bfloat16_computes_all_products_but_the_head_s_with_float32_parameters(images):
    settings = {**SMALL, "num_registers": 2, "layer_scale": 1.0, "qk_norm": True, "rep_size": 8}
    settings |= {"pool": "map", "pos_embed": "rope"}
    model = ViT(**settings, dtype=jnp.bfloat16)
    variables = drawn(model, images)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    output, stages = jax.jit(model.apply)(variables, images)
    assert output.dtype == stages.pop("logits").dtype == jnp.float32
    assert {x.dtype for x in stages.values()} == {jnp.dtype("bfloat16")}
    precise, _ = jax.jit(ViT(**settings).apply)(variables, images)
    np.testing.assert_allclose(np.asarray(output, np.float32), precise, atol=0.1)

    def products(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("dot_general", "conv_general_dilated"):
                yield {str(operand.aval.dtype) for operand in equation.invars}
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from products(inner)

    found = list(products(jax.make_jaxpr(lambda: model.apply(variables, images)[0])().jaxpr))
    assert len(found) == 1 + 8 * (model.depth + 1) + 2  # patches; blocks and map head; head
    assert all(types == {"bfloat16"} for types in found[:-1])
    assert found[-1] == {"float32"}


@pytest.mark.parametrize("pool", ["cls", "map"])
def test_layers_for_learning_rates_cover_every_parameter(images, pool):
    settings = {"pre_norm": True, "num_registers": 1, "class_token": True, "rep_size": 8}
    model = ViT(**SMALL, **settings, pool=pool)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), images)["params"])
    layers = {}
    for path in flatten_dict(params, sep="/"):
        layers.setdefault(model.layer_of(path), set()).add(path.split("/")[0])
    first = {"cls", "cls_position", "registers", "patch_embedding", "position_embedding"}
    last = {"norm", "pre_logits", "head"} | ({"map_head"} if pool == "map" else set())
    blocks = {i + 1: {"encoder"} for i in range(2)}
    assert layers == {0: first | {"norm_pre"}, **blocks, model.num_layers + 1: last}
    assert model.layer_of("encoder/block_1/mlp/fc1/kernel") == 2


def test_initialisation_is_the_recipe(images):
    sizes = {**SMALL, "width": 64, "mlp_dim": 256, "depth": 1, "num_registers": 2}
    init = jax.jit(lambda m: m.init(jax.random.key(0), images)["params"], static_argnums=0)

    def uniform(kernel, fan_in, fan_out):
        limit = (6 / (fan_in + fan_out)) ** 0.5
        return 0.98 * limit < np.abs(kernel).max() <= limit

    params = init(ViT(**sizes))
    block = params["encoder"]["block_0"]
    assert not params["head"]["kernel"].any()
    assert uniform(block["attention"]["query"]["kernel"], 64, 64)
    assert uniform(block["attention"]["out"]["kernel"], 64, 64)
    assert uniform(block["mlp"]["fc1"]["kernel"], 64, 256)
    assert 0 < np.abs(block["mlp"]["fc1"]["bias"]).max() < 5e-6
    assert abs(params["patch_embedding"]["kernel"].std() * 192**0.5 - 1) < 0.05  # LeCun
    assert abs(params["position_embedding"]["table"].std() * 64**0.5 - 1) < 0.2
    assert np.abs(params["registers"][0, 0] - params["registers"][0, 1]).max() > 1e-3

    params = init(ViT(**sizes, weight_init="mae", head_init_std=2e-5, pos_embed="sincos2d_mae"))
    block = params["encoder"]["block_0"]
    assert uniform(params["patch_embedding"]["kernel"], 192, 64)
    assert uniform(block["attention"]["query"]["kernel"], 64, 3 * 64)
    assert uniform(block["attention"]["out"]["kernel"], 64, 64)
    assert abs(params["cls"].std() / 0.02 - 1) < 0.3
    assert abs(params["head"]["kernel"].std() / 2e-5 - 1) < 0.2


@pytest.mark.slow
def test_kernels_start_as_in_deit3_jax(images):
    model = ViT(**SMALL, weight_init="deit")
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    kernels = {"/".join(k): x for k, x in flatten_dict(params).items() if k[-1] == "kernel"}
    for path, kernel in kernels.items():  # 0.02, cut off at two of it
        assert "head" in path or abs(kernel.std() / 0.0176 - 1) < 0.1, path
        assert np.abs(kernel).max() < 0.04, path
    assert abs(params["cls"].std() / 0.02 - 1) < 0.3
    assert abs(params["position_embedding"]["table"].std() / 0.02 - 1) < 0.2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variant": "XL/16"}, "'XL/16'.*mu, Ti, S, M, B, L, So400m, H, g, G.*'S/16'"),
        ({"variant": "S/x"}, "'S/x'"),
        ({"variant": "S/"}, "'S/'"),
        ({"variant": "S"}, "patch_size"),
        ({"variant": "S/0"}, "patch_size"),
        ({"patch_size": 8, "width": 24, "num_heads": 3}, "depth"),
        ({"variant": "S/14", "stem": "conv"}, "patch_size is 14: with stem='conv' .* power of 2"),
        ({"variant": "S/16", "num_heads": 5}, "width 384.*num_heads=5"),
        ({"variant": "S/16", "width": 36, "pos_embed": "rope"}, "multiple of 24.*rope"),
        ({"variant": "S/16", "pool": "mean"}, "pool is 'mean': one of cls, gap, map, none"),
        ({"variant": "S/16", "remat": "some"}, "remat is 'some'"),
        ({"variant": "S/16", "drop_path": 1.0}, r"drop_path is 1.0.*\[0, 1\)"),
        ({"variant": "S/16", "class_token": False}, "class_token is False"),
    ],
)
def test_wrong_fields_are_refused_in_one_line(fields, message):
    with pytest.raises(InputError, match=message) as error:
        ViT(**fields)
    assert "\n" not in str(error.value)


def test_sizes_come_from_the_variant_and_explicit_ones_win():
    model = ViT("So400m/14", depth=2)
    assert (model.width, model.depth, model.mlp_dim, model.num_heads) == (1152, 2, 4304, 16)
    assert (model.patch_size, ViT("S", patch_size=8).patch_size) == (14, 8)
    assert ViT(width=32, depth=1, num_heads=2, patch_size=4).mlp_dim == 128


@pytest.mark.parametrize("shape", [(1, 20, 24, 3), (1, 4, 24, 3), (16, 24, 3)])
def test_images_that_the_patch_does_not_divide_are_refused(shape):
    model = ViT(**SMALL)
    with pytest.raises(InputError, match="whole patches of 8: ") as error:
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(shape)))
    assert str(shape) in str(error.value)
