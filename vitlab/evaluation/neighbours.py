"""Which examples are most alike to a model."""

import numpy as np


def nearest_neighbours(
    queries: np.ndarray, keys: np.ndarray, count: int, excluded: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """For each query the keys of the greatest cosine similarity, best first; of equal ones the
    first.

    Args:
        queries: f[n, width], of any type; compared in float32.
        keys: f[m, width], as well.
        count: how many; fewer where there are fewer keys.
        excluded: bool[n, m], pairs that do not count, such as an image and itself.

    Returns:
        The indices i64[n, count or m] and their similarities f32[n, count or m], -inf where a query
        has fewer keys that are not excluded.
    """
    # In float16 the squares of a ViT's features are infinite, and 1e-12 is 0.
    queries, keys = (np.asarray(x, np.float32) for x in (queries, keys))
    queries, keys = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (queries, keys)
    )
    similarities = queries @ keys.T
    if excluded is not None:
        similarities = np.where(excluded, -np.inf, similarities)
    nearest = np.argsort(-similarities, axis=1, kind="stable")[:, :count]
    return nearest, np.take_along_axis(similarities, nearest, axis=1)
