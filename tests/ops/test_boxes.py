import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.ops.boxes import iou_and_giou, to_centres, to_corners

A = (0.0, 0.0, 2.0, 2.0)


def test_corners_and_centres_are_each_other_s_inverse():
    boxes = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (3, 5, 4)), jnp.float32)
    np.testing.assert_allclose(to_centres(to_corners(boxes)), boxes, atol=1e-6)
    np.testing.assert_allclose(to_corners(to_centres(boxes)), boxes, atol=1e-6)
    np.testing.assert_array_equal(to_corners(jnp.array([3.0, 5, 2, 4])), [2, 3, 4, 7])
    np.testing.assert_array_equal(to_centres(jnp.array([2.0, 3, 4, 7])), [3, 5, 2, 4])


@pytest.mark.parametrize(
    ("b", "iou", "giou"),
    [
        (A, 1, 1),
        ((1, 1, 3, 3), 1 / 7, 1 / 7 - 2 / 9),  # union 7 in a hull of 9
        ((0, 0, 1, 2), 1 / 2, 1 / 2),  # within: the hull is the union
        ((2, 0, 4, 2), 0, 0),  # side by side: the hull is the union
        ((3, 0, 4, 2), 0, -2 / 8),  # a gap of 2 in a hull of 8
        ((3, 3, 4, 4), 0, -11 / 16),
        ((98, 98, 100, 100), 0, 8 / 10_000 - 1),
        ((1, 1, 1, 1), 0, 0),  # a point within, whose hull with A is A
        ((3, 0, 3, 2), 0, -2 / 6),  # a line outside
    ],
)
def test_overlaps_worked_by_hand(b, iou, giou):
    for pair in itertools.permutations((A, b)):
        got = iou_and_giou(*jnp.asarray(pair, jnp.float32))
        np.testing.assert_allclose(got, (iou, giou), atol=1e-6)


def test_overlaps_do_not_depend_on_scale_and_place():
    a, b = np.random.default_rng(0).uniform(0, 1, (2, 50, 4)).astype(np.float32)
    a, b = to_corners(a), to_corners(b)
    moved = iou_and_giou(7 * a + 3, 7 * b + 3)
    np.testing.assert_allclose(iou_and_giou(a, b), moved, atol=2e-5)


def test_random_overlaps_are_those_of_a_loop_over_all_pairs():
    rng = np.random.default_rng(0)
    low, size = rng.uniform(0, 1, (2, 12, 2)), rng.uniform(0, 0.8, (2, 12, 2))
    a, b = np.concatenate([low, low + size], axis=-1)
    iou, giou = iou_and_giou(
        jnp.asarray(a[:, None], jnp.float32), jnp.asarray(b[None], jnp.float32)
    )
    assert iou.shape == giou.shape == (12, 12)
    for i, j in np.ndindex(12, 12):
        sides = [min(a[i, k + 2], b[j, k + 2]) - max(a[i, k], b[j, k]) for k in (0, 1)]
        hull = [max(a[i, k + 2], b[j, k + 2]) - min(a[i, k], b[j, k]) for k in (0, 1)]
        shared = max(sides[0], 0) * max(sides[1], 0)
        areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a[i], b[j])]
        union = sum(areas) - shared
        np.testing.assert_allclose(iou[i, j], shared / union, atol=1e-6)
        expected = shared / union - (hull[0] * hull[1] - union) / (hull[0] * hull[1])
        np.testing.assert_allclose(giou[i, j], expected, atol=1e-5)


DEGENERATE = [
    ((1, 1, 1, 1), (1, 1, 1, 1)),  # two points at one place
    ((1, 1, 1, 1), (2, 3, 2, 3)),
    ((1, 1, 1, 1), A),
    ((0, 0, 0, 2), (0, 0, 0, 2)),  # one line twice
    ((0, 0, 0, 2), (3, 0, 3, 2)),
    ((1, 1, 0, 0), A),  # corners the wrong way round
    (A, A),
]


@pytest.mark.parametrize("pair", DEGENERATE)
def test_boxes_without_area_give_numbers_in_range_and_finite_gradients(pair):
    a, b = jnp.asarray(pair, jnp.float32)
    iou, giou = iou_and_giou(a, b)
    assert 0 <= iou <= 1
    assert -1 <= giou <= 1
    for which in (0, 1):
        gradient = jax.grad(lambda a, b, w=which: iou_and_giou(a, b)[w], argnums=(0, 1))(a, b)
        assert np.isfinite(gradient).all()


def test_two_boxes_without_area_at_one_place_have_no_overlap():
    np.testing.assert_array_equal(iou_and_giou(*jnp.ones((2, 4))), (0, 0))


def test_giou_moves_disjoint_boxes_together_where_iou_does_not():
    a, b = jnp.array(A), jnp.array((4.0, 0, 6, 2))
    slope = [jax.grad(lambda a, w=w: iou_and_giou(a, b)[w])(a) for w in (0, 1)]
    assert not slope[0].any()
    assert slope[1][2] > 0
