"""The colour of each class, the same in all pictures of boxes and segments."""

import numpy as np

# Those of Okabe and Ito but for vermilion, which marks what is wrong; then what is furthest from
# all before, also to eyes without green receptors, of all that is neither grey nor glaring nor near
# black or white.
_COLORS = (
    *("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#78005A", "#87FFB4", "#5A4B00", "#F0C3FF", "#3C2D96", "#875A78", "#FFE14B", "#87C387"),
    *("#A52D00", "#8778E1", "#87783C", "#E1C3A5", "#00695A", "#B49678", "#00E1E1", "#E196FF"),
    *("#B4F0F0", "#96A500", "#2D96B4"),
)
# Of more classes the same again, lighter (towards 1) and darker (towards -1).
_SHADES = (0, 0.45, -0.4, 0.7, 0.2, -0.2, -0.6)


def class_colors(labels: np.ndarray) -> np.ndarray:
    """The colour of each class as uint8[..., 3]: a function of its label alone, others for each of
    the first 168.

    Args:
        labels: i[...], not negative.
    """
    base = np.array([list(bytes.fromhex(color[1:])) for color in _COLORS], np.float64)
    shade = np.array(_SHADES)[:, None, None]
    shades = base + np.where(shade > 0, (255 - base) * shade, base * shade)
    return shades.reshape(-1, 3).round().astype(np.uint8)[np.asarray(labels) % shades[..., 0].size]
