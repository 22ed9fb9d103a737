"""The masked autoencoder against the reference implementation, and what its masks promise."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights import reference as ref
from vitlab.errors import InputError
from vitlab.models.mae import (
    MAE,
    patchify,
    random_mask,
    reconstruct,
    reconstruction_loss,
    unpatchify,
)
from vitlab.models.vit import ViT

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
BACKBONE = {"width": 24, "depth": 2, "num_heads": 3, "pos_embed": "sincos2d_mae"}
DECODER = {"decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2}


@functools.cache
def reference():
    arrays = dict(np.load(FIXTURES / "mae.npz"))
    params = {k.removeprefix("params/"): v for k, v in arrays.items() if k.startswith("params/")}
    model = MAE(ViT(**BACKBONE, patch_size=4), mask_ratio=0.7, **DECODER)
    with jax.default_matmul_precision("highest"):
        apply = jax.jit(lambda p, x, noise: model.apply({"params": p}, x, noise))
        variables = ref.variables("mae", num_heads=3, decoder_heads=2)
        prediction, stages = apply(variables["params"], arrays["images"], arrays["noise"])
    return arrays, params, prediction, stages


def test_predictions_and_losses_are_the_reference_s():
    arrays, _, prediction, stages = reference()
    np.testing.assert_array_equal(stages["mask"], arrays["mask"])
    np.testing.assert_allclose(prediction, arrays["prediction"], atol=1e-5)
    for norm_pix in (False, True):
        loss = reconstruction_loss(
            prediction, jnp.asarray(arrays["images"]), stages["mask"], 4, norm_pix
        )
        np.testing.assert_allclose(loss.mean(), arrays[f"loss_{int(norm_pix)}"], rtol=1e-5)


def test_the_fixed_positions_are_the_reference_s():
    """The tables that ViTMAE's file holds: the class token's row is zero."""
    from vitlab.ops.positions import sincos_2d

    _, params, _, _ = reference()
    for name, width in (
        ("vit.embeddings.position_embeddings", 24),
        ("decoder.decoder_pos_embed", 16),
    ):
        table = params[name][0]
        assert not table[0].any()
        ours = sincos_2d((5, 5), width, endpoint=False).reshape(25, width)
        np.testing.assert_allclose(ours, table[1:], atol=1e-6)


# facebookresearch/mae's own count, which includes its fixed positions, less those.
@pytest.mark.parametrize(
    ("variant", "published", "positions"),
    [("B/16", 111_907_840, 197 * (768 + 512)), ("L/16", 329_541_888, 197 * (1024 + 512))],
)
def test_parameter_counts_are_the_published_ones(variant, published, positions):
    model = MAE(ViT(variant, pos_embed="sincos2d_mae", weight_init="mae"))
    images, noise = jnp.zeros((1, 224, 224, 3)), jnp.zeros((1, 196))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, noise))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == published - positions


def test_masks_hide_the_loudest_patches_of_each_image():
    noise = jax.random.uniform(jax.random.key(0), (4, 10))
    kept, restore, mask = random_mask(noise, 0.75)
    assert kept.shape == (4, 2)
    np.testing.assert_array_equal(mask.sum(1), 8)
    for row in range(4):
        order = np.argsort(np.asarray(noise[row]))
        assert set(np.flatnonzero(~mask[row])) == set(order[:2].tolist())
        # "visible, then hidden" put back in order
        np.testing.assert_array_equal(order[np.asarray(restore[row])], np.arange(10))


@pytest.fixture(scope="module")
def modern():
    """Rotary positions, registers, no class token, images that are not square."""
    backbone = {**BACKBONE, "pos_embed": "rope", "num_registers": 2, "pool": "gap"}
    model = MAE(ViT(**backbone, patch_size=4), **DECODER)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 8, 16, 3)).astype(np.float32)
    noise = rng.uniform(size=(2, 8)).astype(np.float32)
    return model, jax.jit(model.init)(jax.random.key(0), images, noise), images, noise


def test_the_decoder_starts_as_the_authors_does(modern):
    params = modern[1]["params"]
    attention = params["decoder"]["block_0"]["attention"]
    # Xavier's uniform, with query, key and value as one matrix.
    for name, fan_out in (("query", 3 * 16), ("value", 3 * 16), ("out", 16)):
        limit = (6 / (16 + fan_out)) ** 0.5
        assert 0.95 * limit < np.abs(attention[name]["kernel"]).max() <= limit
    assert abs(params["mask_token"].std() / 0.02 - 1) < 0.5


def test_hidden_pixels_do_not_reach_the_prediction(modern):
    model, variables, images, noise = modern
    apply = jax.jit(model.apply)
    prediction, stages = apply(variables, images, noise)
    assert stages["encoder"].shape == (2, 2 + 2, 24)  # registers, and a quarter of the patches
    hidden = unpatchify(
        np.broadcast_to(np.asarray(stages["mask"])[..., None], (2, 8, 48)), images.shape, 4
    )
    other = np.where(hidden, 7.0, images).astype(np.float32)
    np.testing.assert_array_equal(apply(variables, other, noise)[0], prediction)
    visible = np.where(hidden, images, 7.0).astype(np.float32)
    assert np.abs(apply(variables, visible, noise)[0] - prediction).max() > 1e-3


def test_the_order_of_what_is_seen_does_not_matter(modern):
    """The same patches with other noise: positions travel with their patches."""
    model, variables, images, noise = modern
    apply = jax.jit(model.apply)
    order = np.argsort(noise, axis=1)
    swapped = noise.copy()
    for row in range(2):
        a, b = order[row, :2]
        swapped[row, [a, b]] = noise[row, [b, a]]
    np.testing.assert_allclose(
        apply(variables, images, swapped)[0], apply(variables, images, noise)[0], atol=1e-5
    )


def test_a_perfect_prediction_costs_nothing_and_is_the_image():
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    mask = jnp.arange(4)[None] < jnp.array([[2], [2]])
    patches = patchify(images, 4)
    np.testing.assert_array_equal(unpatchify(patches, images.shape, 4), images)
    np.testing.assert_array_equal(patches[0, 1, :12].reshape(4, 3), images[0, 0, 4:8])
    mean, var = patches.mean(-1, keepdims=True), patches.var(-1, keepdims=True, ddof=1)
    normalized = (patches - mean) / jnp.sqrt(var + 1e-6)
    for prediction, norm_pix in ((patches, False), (normalized, True)):
        loss = reconstruction_loss(prediction, images, mask, 4, norm_pix)
        np.testing.assert_allclose(loss, 0, atol=1e-10)
        np.testing.assert_allclose(
            reconstruct(prediction, images, mask, 4, norm_pix), images, atol=1e-5
        )
    # visible patches are the image's whatever was predicted for them
    made = reconstruct(jnp.zeros_like(patches), images, mask, 4, norm_pix=False)
    np.testing.assert_array_equal(made[:, 4:], images[:, 4:])
    assert not made[:, :4].any()


def test_bad_input_is_one_line():
    vit = functools.partial(ViT, **BACKBONE, patch_size=4)
    for make, said in [
        (lambda: MAE(vit(), mask_ratio=0.0), "mask_ratio is 0.0: it must be between 0 and 1"),
        (lambda: MAE(vit(), mask_ratio=1.0), "mask_ratio is 1.0: it must be between 0 and 1"),
        (lambda: MAE(vit(num_classes=3)), "MAE's backbone has no num_classes"),
        (lambda: MAE(vit(norm_after_pool=True)), "MAE's backbone has no norm_after_pool"),
        (lambda: MAE(vit(pool="map")), "with pool 'cls' or 'gap'"),
        (lambda: MAE(vit(), decoder_width=10, decoder_heads=5), "no multiple of its 5 heads and"),
        (lambda: MAE(vit(), decoder_depth=0), "decoder_depth is 0"),
        (lambda: random_mask(jnp.zeros((1, 3)), 0.75), "leaves 0 of 3 patches visible"),
    ]:
        with pytest.raises(InputError, match="^[^\n]*$") as error:
            make()
        assert said in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "bound"), [("B/16", 0.62), ("L/16", 0.40)])
def test_a_step_costs_a_part_of_the_full_one(variant, bound):
    """Forward and backward, by XLA's count of the program as it is written."""
    fields = {"pos_embed": "sincos2d_mae", "scan": False}
    mae, full = MAE(ViT(variant, **fields)), ViT(variant, num_classes=1000, **fields)
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    noise = jax.ShapeDtypeStruct((2, 196), jnp.float32)

    def mae_loss(variables, images, noise):
        prediction, stages = mae.apply(variables, images, noise)
        return reconstruction_loss(prediction, images, stages["mask"], 16).mean()

    def full_loss(variables, images):
        return full.apply(variables, images)[0].sum()

    def flops(model, loss, *inputs):
        variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
        return jax.jit(jax.grad(loss)).lower(variables, *inputs).cost_analysis()["flops"]

    ratio = flops(mae, mae_loss, images, noise) / flops(full, full_loss, images)
    assert 0.3 < ratio < bound
