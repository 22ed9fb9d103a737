"""The loss of a set of masks against the reference implementation and against plain loops."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from vitlab.errors import InputError
from vitlab.models.eomt import Masks
from vitlab.models.mask_loss import MaskLoss, Segments, matched, segment_targets

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
PUBLISHED = MaskLoss()
# Every number another than its default.
ODD = MaskLoss(no_object=0.3, class_weight=3.0, mask_weight=0.5, dice_weight=1.5)
LOSSES = {"published": PUBLISHED, "odd": ODD}
EVERY = np.ones(3, bool)  # images that count


@functools.partial(jax.jit, static_argnums=0)
def match_and_terms(loss, found, targets, counted):
    query = loss.match(found, targets, counted)
    terms = loss(found, targets, query, counted)
    return query, {name: term[:2] for name, term in terms.items()}


def total(loss, found, targets, counted):
    """What training divides and adds up."""
    query = loss.match(found, targets, counted)
    terms = loss(found, targets, query, counted).values()
    return sum(weight * value / jnp.maximum(count, 1) for value, count, weight in terms)


gradient = jax.jit(jax.grad(total, argnums=1), static_argnums=0)


def problem(counts=(3, 0, 4), sets=2, queries=6, classes=4, slots=4, grid=(3, 5), void=0.2, seed=0):
    """Random predictions, and as many segments in each image, which cover parts of cells; what is
    no segment is garbage."""
    rng = np.random.default_rng(seed)
    shape = (len(counts), sets, queries)
    found = Masks(2 * rng.normal(size=(*shape, classes)), 3 * rng.normal(size=(*shape, *grid)))
    places = rng.integers(0, slots, (len(counts), 4 * grid[0], 4 * grid[1])).astype(np.int16)
    places = np.where(places < np.array(counts)[:, None, None], places, -1)
    places = np.where(rng.uniform(size=places.shape) < void, -1, places)
    labels = rng.integers(0, classes - 1, (len(counts), slots)).astype(np.int32)
    mask = np.arange(slots) < np.array(counts)[:, None]
    targets = jax.tree.map(np.asarray, segment_targets(places, labels, mask, grid, 4))
    masks = np.where(mask[..., None], targets.masks, 0.7).astype(np.float32)
    return jax.tree.map(np.float32, found), targets._replace(masks=masks)


# The same in float64, with loops, from the papers' formulas.


def pair(logits, target, known):
    """Of two masks the binary cross-entropy of a known cell, and dice."""
    entropy, area, both, either = 0.0, 0.0, 1.0, 1.0
    cells = (np.float64(x).ravel() for x in (logits, target, known))
    for x, t, k in zip(*cells, strict=True):
        p = 1 / (1 + np.exp(-x))
        entropy -= t * np.log(p) + (k - t) * np.log(1 - p)
        both, either, area = both + 2 * p * t, either + p * k + t, area + k
    return entropy / max(area, 1), 1 - both / either


def by_loops(loss, found, targets, rows=EVERY):
    """{(image, set): queries of its targets}, and the terms' (sum, count)."""
    pairs, terms = {}, {name: [0.0, 0.0] for name in ("class", "mask", "dice")}
    for image, s in np.ndindex(found.logits.shape[:2]):
        if not rows[image]:
            continue
        p = np.exp(np.float64(found.logits[image, s]))
        p /= p.sum(axis=-1, keepdims=True)
        number, labels = int(targets.mask[image].sum()), targets.labels[image]
        cost, parts = np.zeros((number, len(p))), {}
        for t, q in np.ndindex(cost.shape):
            masks = found.masks[image, s, q], targets.masks[image, t], targets.known[image]
            parts[t, q] = pair(*masks)
            cost[t, q] = -loss.class_weight * p[q, labels[t]]
            cost[t, q] += loss.mask_weight * parts[t, q][0] + loss.dice_weight * parts[t, q][1]
        query = pairs[image, s] = linear_sum_assignment(cost)[1].tolist()
        for t, q in enumerate(query):
            terms["mask"][0] += parts[t, q][0]
            terms["dice"][0] += parts[t, q][1]
        for q in range(len(p)):
            label, weight = (labels[query.index(q)], 1) if q in query else (-1, loss.no_object)
            terms["class"][0] -= weight * np.log(p[q, label])
            terms["class"][1] += weight
        for name in ("mask", "dice"):
            terms[name][1] += number
    return pairs, terms


def assert_terms(terms, expected):
    assert terms.keys() == expected.keys()
    for name, term in expected.items():
        np.testing.assert_allclose(terms[name], term, rtol=1e-5, atol=1e-5, err_msg=name)


def assert_equal(ours, theirs, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), ours, theirs)


@functools.cache
def reference():
    arrays = np.load(FIXTURES / "segmenters.npz")
    return {k.removeprefix("loss/"): arrays[k] for k in arrays.files if k.startswith("loss/")}


@pytest.mark.parametrize("case", [0, 1, 2])
def test_costs_matches_and_terms_are_the_reference_s(case):
    """Mask2Former's of transformers, of the cells that are not void, for each layer."""
    arrays = reference()
    found = Masks(arrays["logits"], arrays["masks"])
    counts, labels = arrays["counts"][case], arrays["labels"][case]
    mask = np.arange(4) < counts[:, None]
    targets = segment_targets(arrays["segments"][case], labels, mask, (5, 7), 1)
    there = np.broadcast_to(mask[:, None], (2, 3, 4))
    cost = np.asarray(jax.jit(PUBLISHED._cost)(found, targets))
    np.testing.assert_allclose(cost[there], arrays["costs"][case][there], rtol=1e-5, atol=1e-5)
    for layer, expected in enumerate(arrays["terms"][case]):
        one = jax.tree.map(lambda x, layer=layer: x[:, layer : layer + 1], found)
        query, terms = match_and_terms(PUBLISHED, one, targets, EVERY[:2])
        np.testing.assert_array_equal(query[:, 0][mask], arrays["query"][case][:, layer][mask])
        means = [terms[x][0] / max(terms[x][1], 1) for x in ("class", "mask", "dice")]
        np.testing.assert_allclose(means, expected, rtol=1e-5, atol=1e-6)
        assert terms["mask"][1] == terms["dice"][1] == counts.sum()


@pytest.mark.parametrize("name", LOSSES)
def test_matches_and_terms_are_those_of_plain_loops(name):
    """With cells that several segments and void share."""
    for seed in range(3):
        found, targets = problem(seed=seed)
        query, terms = match_and_terms(LOSSES[name], found, targets, EVERY)
        pairs, expected = by_loops(LOSSES[name], found, targets)
        for (image, s), queries in pairs.items():
            assert query[image, s, : len(queries)].tolist() == queries
        assert_terms(terms, expected)


def test_weights_are_the_config_s():
    found, targets = problem()
    terms = ODD(found, targets, np.zeros((3, 2, 4), np.int32), EVERY)
    weights = {name: weight for name, (_, _, weight) in terms.items()}
    assert weights == {"class": 3.0, "mask": 0.5, "dice": 1.5}


def test_void_cells_count_nowhere():
    found, targets = problem(void=0.0, counts=(4, 4, 4))
    known = targets.known.copy()
    known[:, [0, 4, 7, 8]] = 0
    targets = targets._replace(known=known, masks=targets.masks * (known[:, None] > 0))
    query, terms = match_and_terms(PUBLISHED, found, targets, EVERY)
    other = np.where(known.reshape(3, 1, 1, 3, 5) > 0, found.masks, 100 - 50 * found.masks)
    other_query, other_terms = match_and_terms(
        PUBLISHED, found._replace(masks=other), targets, EVERY
    )
    np.testing.assert_array_equal(other_query, query)
    assert_equal(other_terms, terms, rtol=1e-6)
    slope = gradient(PUBLISHED, found, targets, EVERY)
    moved = np.abs(slope.masks).max(axis=(1, 2)).reshape(3, -1) > 0
    np.testing.assert_array_equal(moved, known > 0)


@pytest.mark.parametrize("void", [True, False])
def test_a_batch_without_segments_teaches_the_classes_alone(void):
    """Where everything is void, or something known that no segment is."""
    found, targets = problem(counts=(0, 0, 0))
    targets = targets._replace(known=np.full_like(targets.known, not void))
    _, terms = match_and_terms(PUBLISHED, found, targets, EVERY)
    assert terms["mask"] == terms["dice"] == (0, 0)
    assert_terms(terms, by_loops(PUBLISHED, found, targets)[1])
    slope = gradient(PUBLISHED, found, targets, EVERY)
    assert np.isfinite(slope.logits).all()
    assert slope.logits.any()
    assert not slope.masks.any()


def test_a_batch_without_a_place_for_segments_teaches_the_classes_alone():
    """As one whose places are all free."""
    found, free = problem(counts=(0, 0, 0))
    none = Segments(free.masks[:, :0], free.known, free.labels[:, :0], free.mask[:, :0])
    query, terms = match_and_terms(PUBLISHED, found, none, EVERY)
    assert query.shape == (3, 2, 0)
    assert PUBLISHED.overlap(found, none, query, EVERY) == (0, 0)
    expected = match_and_terms(PUBLISHED, found, free, EVERY)[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), terms, expected)
    slope, other = (gradient(PUBLISHED, found, targets, EVERY) for targets in (none, free))
    assert not slope.masks.any()
    np.testing.assert_allclose(slope.logits, other.logits, atol=1e-6)


def test_segments_of_void_alone_have_finite_terms():
    """As where a crop leaves nothing of them."""
    found, targets = problem(counts=(4, 4, 4), void=1.0)
    assert not targets.known.any()
    assert_terms(
        match_and_terms(PUBLISHED, found, targets, EVERY)[1],
        by_loops(PUBLISHED, found, targets)[1],
    )
    slope = gradient(PUBLISHED, found, targets, EVERY)
    assert np.isfinite(slope.logits).all()
    assert not slope.masks.any()


def test_segments_that_are_not_there_may_be_anything():
    found, targets = problem()
    other = targets._replace(
        masks=np.where(targets.mask[..., None], targets.masks, np.float32(-1e9)),
        labels=np.where(targets.mask, targets.labels, -1),
    )
    ours, theirs = (match_and_terms(PUBLISHED, found, t, EVERY) for t in (other, targets))
    np.testing.assert_array_equal(ours[0], theirs[0])
    assert_equal(ours[1], theirs[1], rtol=1e-6)
    slopes = [gradient(PUBLISHED, found, t, EVERY) for t in (other, targets)]
    assert_equal(*slopes, atol=1e-6)


def test_rows_that_fill_up_the_batch_count_nothing():
    found, targets = problem()
    rows = np.array([True, True, False])
    query, terms = match_and_terms(PUBLISHED, found, targets, rows)
    pairs, expected = by_loops(PUBLISHED, found, targets, rows)
    assert_terms(terms, expected)
    for (image, s), queries in pairs.items():
        assert query[image, s, : len(queries)].tolist() == queries
    assert not any(x[2].any() for x in gradient(PUBLISHED, found, targets, rows))


def test_permuting_queries_permutes_the_matching_and_changes_no_term():
    found, targets = problem()
    query, terms = match_and_terms(PUBLISHED, found, targets, EVERY)
    order = np.random.default_rng(1).permutation(6)
    permuted = jax.tree.map(lambda x: x[:, :, order], found)
    other, other_terms = match_and_terms(PUBLISHED, permuted, targets, EVERY)
    there = np.broadcast_to(targets.mask[:, None], query.shape)
    np.testing.assert_array_equal(order[other][there], np.asarray(query)[there])
    assert_equal(other_terms, terms, rtol=1e-5)


def test_gradients_are_finite_at_masks_that_are_certain():
    found, targets = problem()
    masks = np.where(found.masks > 0, 300.0, -300.0).astype(np.float32)
    certain = Masks(np.where(found.logits > 0, 200.0, -200.0).astype(np.float32), masks)
    terms = match_and_terms(PUBLISHED, certain, targets, EVERY)[1]
    assert np.isfinite(jax.tree.leaves(terms)).all()
    assert all(np.isfinite(x).all() for x in gradient(PUBLISHED, certain, targets, EVERY))


@pytest.mark.slow
def test_gradients_are_the_slopes_of_the_loss():
    found, targets = problem()
    slope, weights = gradient(ODD, found, targets, EVERY), {"class": 3, "mask": 0.5, "dice": 1.5}
    for part in ("logits", "masks"):
        before = np.float64(getattr(found, part))
        way, values = np.random.default_rng(1).normal(size=before.shape), []
        for step in (1e-6, -1e-6):
            moved = found._replace(**{part: before + step * way})
            terms = by_loops(ODD, moved, targets)[1]
            values.append(sum(w * terms[t][0] / terms[t][1] for t, w in weights.items()))
        measured = (values[0] - values[1]) / 2e-6
        np.testing.assert_allclose((getattr(slope, part) * way).sum(), measured, rtol=1e-3)


def test_what_comes_back_to_the_matched_is_scattered():
    """Where two have the same query, one of them is no segment, and nothing comes back from it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 5, 7)).astype(np.float32)
    query = np.stack([rng.permuted(np.arange(5)) for _ in range(6)])[:, :4].reshape(2, 3, 4)
    there = rng.uniform(size=query.shape) < 0.6
    query[:, :, 3], there[:, :, 3] = query[:, :, 0], False
    back = np.where(there[..., None], rng.normal(size=(2, 3, 4, 7)), 0).astype(np.float32)
    taken, pull = jax.vjp(lambda x: matched(x, query, there), x)
    plain, scatter = jax.vjp(lambda x: jnp.take_along_axis(x, query[..., None], axis=2), x)
    np.testing.assert_array_equal(taken, plain)
    np.testing.assert_array_equal(*pull(back), *scatter(back))


def test_overlap_is_the_iou_of_what_is_matched():
    """Of 4 cells: one matched pair that shares one whole cell of three, one of which a half is
    void, and one that shares a half of a cell; one image does not count."""
    masks = np.array([[[1, 1, -1, 1], [-1, -1, 1, 1]]] * 2, np.float32).reshape(2, 1, 2, 2, 2)
    theirs = np.array([[[1, 0, 0, 0], [0, 0, 0, 0.5], [9, 9, 9, 9]]] * 2, np.float32)
    known = np.array([[1, 0.5, 1, 1]] * 2, np.float32)
    mask = np.array([[True, True, False]] * 2)
    targets = Segments(theirs, known, np.zeros((2, 3), np.int32), mask)
    query = np.array([[[0, 1, 0]]] * 2)
    found = Masks(np.zeros((2, 1, 2, 2), np.float32), masks)
    value, count = PUBLISHED.overlap(found, targets, query, np.array([True, False]))
    np.testing.assert_allclose((value, count), (1 / 2.5 + 0.5 / 2, 2), rtol=1e-6)
    value, count = PUBLISHED.overlap(found, targets, query, np.array([True, True]))
    np.testing.assert_allclose((value, count), (2 * (1 / 2.5 + 0.5 / 2), 4), rtol=1e-6)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_cells_are_the_parts_of_their_pixels(stride):
    """Also of those that reach beyond the image, which is void."""
    rng, size = np.random.default_rng(0), (9, 14)
    segments = rng.integers(-1, 5, (2, *size)).astype(np.int16)  # 3 and 4: of no slot
    labels, mask = np.array([[4, 0, 2], [1, 0, 0]]), np.array([[True] * 3, [True, False, False]])
    grid = (-(-size[0] // stride) + 1, -(-size[1] // stride) + 2)
    found = segment_targets(segments, labels, mask, grid, stride)
    masks, known = np.zeros((2, 3, *grid)), np.zeros((2, *grid))
    for image, y, x in np.ndindex(segments.shape):
        place, part = segments[image, y, x], 1 / stride**2
        if place >= 0:
            known[image, y // stride, x // stride] += part
        if 0 <= place < 3:
            masks[image, place, y // stride, x // stride] += part
    np.testing.assert_allclose(found.masks, masks.reshape(2, 3, -1), atol=1e-6)
    np.testing.assert_allclose(found.known, known.reshape(2, -1), atol=1e-6)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.mask, mask)


def test_more_segments_than_queries_are_refused_in_one_line():
    with pytest.raises(InputError, match="^[^\n]*4 targets cannot each .* 3 queries[^\n]*$"):
        PUBLISHED.match(*problem(queries=3), EVERY)


@pytest.mark.parametrize("field", ["no_object", "class_weight", "mask_weight", "dice_weight"])
def test_negative_numbers_are_named_in_one_line(field):
    with pytest.raises(InputError, match=f"^{field} is -0.5: it cannot be negative$"):
        MaskLoss(**{field: -0.5})
