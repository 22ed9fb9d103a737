"""Attention weights, made into something that can be looked at."""

import numpy as np


def attention_rollout(weights: np.ndarray) -> np.ndarray:
    """How much of each input token has come to each output token through all blocks (Abnar and
    Zuidema, "Quantifying Attention Flow in Transformers", 2005.00928).

    In a block a token is half what it was (the residual branch) and half what it attends to, the
    mean over the heads; the blocks' matrices, each row with the sum 1, are multiplied.

    Args:
        weights: f[..., blocks, heads, tokens, tokens] of the blocks in order; queries are in the
            last axis but one, keys in the last. A mean over the heads, as one head, will do.

    Returns:
        f64[..., tokens, tokens], of output tokens in the last axis but one and of input tokens in
        the last; each row has the sum 1.
    """
    mixed = weights.astype(np.float64).mean(axis=-3) + np.eye(weights.shape[-1])
    mixed /= mixed.sum(axis=-1, keepdims=True)
    rollout = mixed[..., 0, :, :]
    for block in range(1, mixed.shape[-3]):
        rollout = mixed[..., block, :, :] @ rollout
    return rollout


def on_patches(weights: np.ndarray, tokens: slice, grid: tuple[int, int]) -> np.ndarray:
    """What some tokens see of each patch, the mean over them.

    Args:
        weights: f[..., tokens, tokens], an array of numpy or of JAX, such as attention or a
            rollout; the patches are the last tokens.
        tokens: which see, such as the class token.
        grid: rows and columns of patches.

    Returns:
        f[..., rows, columns]. Its sum is less than 1 by what the tokens see of others.
    """
    rows, columns = grid
    seen = weights[..., tokens, :].mean(axis=-2)[..., -rows * columns :]
    return seen.reshape(*seen.shape[:-1], rows, columns)
