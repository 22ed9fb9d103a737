"""Features in colours: their first three principal components as red, green and blue, as in the
pictures of DINO and DINOv2 (2104.14294, 2304.07193)."""

import numpy as np

# What lies beyond these percentiles of a component has the least and the most of its colour, so
# that one odd patch does not leave all others alike.
_RANGE = (1.0, 99.0)


def principal_components(features: np.ndarray, count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates along the directions in which features differ most.

    Args:
        features: f[n, width].
        count: how many directions.

    Returns:
        The coordinates f64[n, count], with the mean 0, and the share f64[count] of the variance
        along each. Both are 0 where there are fewer directions. The greatest coordinate of a
        direction, by its absolute value, is positive: as scikit-learn's `PCA` but for the sign,
        which does not change if the features are rotated.
    """
    x = np.asarray(features, np.float64)
    x = x - x.mean(axis=0)
    variances, directions = np.linalg.eigh(x.T @ x)  # in ascending order
    total = max(variances.sum(), np.finfo(np.float64).tiny)
    shares = np.clip(variances[::-1][:count] / total, 0, 1)
    found = x @ directions[:, ::-1][:, :count]
    # Directions in which nothing differs but by rounding have none.
    found = np.where(shares > 1e-12, found, 0)
    greatest = np.take_along_axis(found, np.abs(found).argmax(axis=0)[None], axis=0)
    found = found * np.where(greatest < 0, -1, 1)
    lacking = count - len(shares)
    return np.pad(found, [(0, 0), (0, lacking)]), np.pad(shares, (0, lacking))


def component_colours(
    maps: np.ndarray, mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Colours of the places of feature maps: alike where the features are, over all of the maps.

    Args:
        maps: f[images, rows, columns, width].
        mask: bool[images, rows, columns], the places that count; None: all.

    Returns:
        uint8[images, rows, columns, 3], 0 where the mask is false; and the share f64[3] of the
        variance that each colour is.
    """
    mask = np.ones(maps.shape[:3], bool) if mask is None else mask
    colours = np.zeros((*maps.shape[:3], 3), np.uint8)
    if not mask.any():
        return colours, np.zeros(3)
    found, shares = principal_components(maps[mask])
    low, high = np.percentile(found, _RANGE, axis=0)
    spread = high - low
    scaled = np.where(spread > 0, (found - low) / np.where(spread > 0, spread, 1), 0.5)
    colours[mask] = np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8)
    return colours, shares
