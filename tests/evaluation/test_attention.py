import jax.numpy as jnp
import numpy as np

from vitlab.evaluation.attention import attention_rollout, on_patches


def random_weights(*shape):
    weights = np.random.default_rng(0).exponential(size=shape)
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


def test_rollout_of_tokens_that_see_themselves_is_the_identity():
    weights = np.broadcast_to(np.eye(5, dtype=np.float32), (2, 3, 4, 5, 5))
    np.testing.assert_array_equal(attention_rollout(weights), np.eye(5)[None].repeat(2, 0))


def test_rollout_of_uniform_attention_keeps_half_of_itself_in_each_block():
    """(I / 2 + J / 2)^n = I / 2^n + (1 - 1 / 2^n) J, where J is the mean: J J = J."""
    blocks, tokens = 3, 4
    weights = np.full((1, blocks, 2, tokens, tokens), 1 / tokens, np.float32)
    expected = np.eye(tokens) / 8 + (1 - 1 / 8) / tokens
    np.testing.assert_allclose(attention_rollout(weights)[0], expected, rtol=1e-12)


def test_rollout_multiplies_from_the_last_block_to_the_first():
    weights = random_weights(3, 2, 6, 6)
    a, b, c = ((w.astype(np.float64).mean(axis=0) + np.eye(6)) / 2 for w in weights)
    np.testing.assert_allclose(attention_rollout(weights), c @ b @ a, rtol=1e-6)
    np.testing.assert_allclose(attention_rollout(weights).sum(axis=-1), 1, rtol=1e-12)
    as_one_head = weights.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(attention_rollout(as_one_head), c @ b @ a, rtol=1e-6)


def test_a_token_that_none_attends_to_stays_out():
    weights = random_weights(2, 2, 5, 5)
    weights[..., 3] = 0
    rollout = attention_rollout(weights)
    assert (np.delete(rollout[:, 3], 3) == 0).all()


def test_on_patches_leaves_the_tokens_before_them_out():
    weights = random_weights(2, 7, 7)
    seen = on_patches(weights, slice(0, 1), (2, 3))
    np.testing.assert_array_equal(seen.reshape(2, 6), weights[:, 0, 1:])
    by_patches = on_patches(jnp.asarray(weights), slice(1, None), (3, 2))
    np.testing.assert_allclose(by_patches.reshape(2, 6), weights[:, 1:, 1:].mean(axis=1), rtol=1e-6)
