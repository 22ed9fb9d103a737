"""The loss of a set of boxes against the reference implementation and against plain loops."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from vitlab.errors import InputError
from vitlab.models.detr import Boxes
from vitlab.models.set_loss import SetLoss, Targets

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
SOFTMAX = SetLoss()
FOCAL = SetLoss("focal", class_weight=2.0, class_cost=2.0)
IOU_AWARE = SetLoss("iou_aware", class_weight=2.0, class_cost=2.0)
# Every number another than its default.
ODD = {"no_object": 0.3, "alpha": 0.4, "gamma": 1.5}
ODD |= {"class_weight": 3.0, "l1_weight": 0.5, "giou_weight": 4.0}
ODD |= {"class_cost": 1.5, "l1_cost": 2.5, "giou_cost": 0.5}
FORMS = {"softmax": SOFTMAX, "focal": FOCAL, "iou_aware": IOU_AWARE}
LOSSES = FORMS | {f"odd {form}": SetLoss(form, **ODD) for form in FORMS}


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


def problem(counts=(3, 0, 5, 1), sets=2, queries=8, classes=4, slots=5, seed=0):
    """Random predictions, and as many objects in each image; what is no object is garbage."""
    rng = np.random.default_rng(seed)
    shape = (len(counts), sets, queries)
    logits = 2 * rng.normal(size=(*shape, classes))
    low, size = rng.uniform(0, 0.6, (*shape, 2)), rng.uniform(0.05, 0.4, (*shape, 2))
    found = Boxes(logits, np.concatenate([low + size / 2, size], axis=-1))
    low = rng.uniform(0, 0.6, (len(counts), slots, 2))
    size = rng.uniform(0.05, 0.4, (len(counts), slots, 2))
    mask = np.arange(slots) < np.array(counts)[:, None]
    boxes = np.concatenate([low + size / 2, size], axis=-1)
    labels = rng.integers(0, classes - 1, mask.shape).astype(np.int32)
    found, boxes = jax.tree.map(lambda x: x.astype(np.float32), (found, boxes))
    return found, Targets(boxes, labels, mask), np.ones((len(counts), 1, 1), bool)


# The same in float64, with loops, from the papers' formulas.


def corners(box):
    x, y, w, h = (float(v) for v in box)
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def overlaps(a, b):
    a, b = corners(a), corners(b)
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    inside = [min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1)]
    outside = [max(a[k + 2], b[k + 2]) - min(a[k], b[k]) for k in (0, 1)]
    shared, hull = max(inside[0], 0) * max(inside[1], 0), outside[0] * outside[1]
    union = sum(area) - shared
    return shared / union, shared / union - (hull - union) / hull


def class_cost(loss, logits, label):
    if loss.classification == "softmax":
        return -np.exp(logits[label]) / np.exp(logits).sum()
    p = 1 / (1 + np.exp(-logits[label]))
    right = -loss.alpha * (1 - p) ** loss.gamma * np.log(p)
    return right + (1 - loss.alpha) * p**loss.gamma * np.log(1 - p)


def class_loss(loss, logits, label, iou):
    """Of one query; label None: it is matched with nothing."""
    if loss.classification == "softmax":
        target = len(logits) - 1 if label is None else label
        weight = loss.no_object if label is None else 1.0
        return -weight * np.log(np.exp(logits[target]) / np.exp(logits).sum()), weight
    value = 0.0
    for c, p in enumerate(1 / (1 + np.exp(-logits))):
        if loss.classification == "focal":
            here = c == label
            alpha, right = (loss.alpha, p) if here else (1 - loss.alpha, 1 - p)
            value -= alpha * (1 - right) ** loss.gamma * np.log(right)
        elif c == label:
            aim = max(p**loss.alpha * iou ** (1 - loss.alpha), 0.01)
            value -= aim * np.log(p) + (1 - aim) * np.log(1 - p)
        else:
            value -= p**loss.gamma * np.log(1 - p)
    return value, 0.0


def by_loops(loss, found, targets):
    """{(image, set): queries of its targets}, and the terms' (sum, count), means over the sets."""
    pairs, terms = {}, {name: [0.0, 0.0] for name in ("class", "l1", "giou")}
    softmax = loss.classification == "softmax"
    for image, s in np.ndindex(found.logits.shape[:2]):
        logits, boxes = (np.float64(x[image, s]) for x in found)
        number = int(targets.mask[image].sum())
        theirs, labels = np.float64(targets.boxes[image]), targets.labels[image]
        cost = np.zeros((number, len(boxes)))
        for t, q in np.ndindex(cost.shape):
            cost[t, q] = loss.class_cost * class_cost(loss, logits[q], labels[t])
            cost[t, q] += loss.l1_cost * sum(abs(theirs[t] - boxes[q]))
            cost[t, q] -= loss.giou_cost * overlaps(theirs[t], boxes[q])[1]
        query = pairs[image, s] = linear_sum_assignment(cost)[1].tolist()
        for t, q in enumerate(query):
            terms["l1"][0] += sum(abs(theirs[t] - boxes[q]))
            terms["giou"][0] += 1 - overlaps(theirs[t], boxes[q])[1]
        for q in range(len(boxes)):
            t = query.index(q) if q in query else None
            label, iou = (None, 0) if t is None else (labels[t], overlaps(theirs[t], boxes[q])[0])
            value, weight = class_loss(loss, logits[q], label, iou)
            terms["class"][0] += value
            terms["class"][1] += weight if softmax else 0
        for name in ("l1", "giou") if softmax else terms:
            terms[name][1] += number
    sets = found.logits.shape[1]
    return pairs, {name: [x / sets for x in term] for name, term in terms.items()}


def assert_loops_agree(loss, found, targets, counted):
    query, terms = match_and_terms(loss, found, targets, counted)
    pairs, expected = by_loops(loss, found, targets)
    for (image, s), queries in pairs.items():
        assert query[image, s, : len(queries)].tolist() == queries
    assert_terms(terms, expected)


def assert_terms(terms, expected):
    assert terms.keys() == expected.keys()
    for name, term in expected.items():
        np.testing.assert_allclose(terms[name], term, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_matches_and_terms_are_the_reference_s(form):
    """DETR's, Deformable DETR's and LW-DETR's of transformers, for each layer of the decoder."""
    arrays = np.load(FIXTURES / "detr.npz")
    found = Boxes(arrays["found_logits"], arrays["found_boxes"])
    counted, column = np.ones((2, 1, 1), bool), list(FORMS).index(form)
    names = ("target_boxes", "target_labels", "target_mask")
    for case, expected in enumerate(arrays["losses"][:, column]):
        targets = Targets(*(arrays[name][case] for name in names))
        number = max(targets.mask.sum(), 1)
        for layer in range(3):
            one = Boxes(*(x[:, layer : layer + 1] for x in found))
            _, terms = match_and_terms(FORMS[form], one, targets, counted)
            value, count = terms["class"]
            ours = [value / (count if form == "softmax" else number)]
            ours += [terms[name][0] / number for name in ("l1", "giou")]
            np.testing.assert_allclose(ours, expected[layer], rtol=1e-5, atol=1e-6)
        _, terms = match_and_terms(FORMS[form], found, targets, counted)
        for place, name in enumerate(("class", "l1", "giou")):  # all layers at once
            value, count = terms[name]
            if place or form != "softmax":
                assert count == targets.mask.sum()
                count = number
            mean = expected[:, place].mean()
            np.testing.assert_allclose(value / count, mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_matches_and_terms_are_those_of_plain_loops(name):
    """With an image that has no object and one that has as many as there are slots."""
    for seed in range(4):
        assert_loops_agree(LOSSES[name], *problem(seed=seed))


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_weights_are_the_config_s(name):
    found, targets, counted = problem()
    loss = LOSSES[name]
    terms = loss(found, targets, loss.match(found, targets, counted), counted)
    expected = {"class": loss.class_weight, "l1": loss.l1_weight, "giou": loss.giou_weight}
    assert {term: weight for term, (_, _, weight) in terms.items()} == expected


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_without_objects_has_no_boxes_to_count_and_still_teaches_the_classes(form):
    found, targets, counted = problem(counts=(0, 0, 0, 0))
    _, terms = match_and_terms(FORMS[form], found, targets, counted)
    assert terms["l1"] == terms["giou"] == (0, 0)
    assert np.isfinite(terms["class"]).all()
    assert terms["class"][0] > 0
    weight = 0.1 * 4 * 8 if form == "softmax" else 0
    np.testing.assert_allclose(terms["class"][1], weight, rtol=1e-6)
    slope = gradient(FORMS[form], found, targets, counted)
    assert np.isfinite(slope.logits).all()
    assert slope.logits.any()
    assert not slope.boxes.any()


def test_a_batch_without_a_place_for_objects_teaches_the_classes_alone():
    """As one whose places are all free."""
    found, free, counted = problem(counts=(0, 0, 0, 0))
    none = jax.tree.map(lambda x: x[:, :0], free)
    query, terms = match_and_terms(SOFTMAX, found, none, counted)
    assert query.shape == (4, 2, 0)
    assert SOFTMAX.overlap(found, none, query) == (0, 0)
    expected = match_and_terms(SOFTMAX, found, free, counted)[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), terms, expected)
    slope, other = (gradient(SOFTMAX, found, targets, counted) for targets in (none, free))
    assert not slope.boxes.any()
    np.testing.assert_allclose(slope.logits, other.logits, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("garbage", [-1e9, np.nan])
def test_targets_that_are_not_there_may_be_anything(form, garbage):
    found, targets, counted = problem()
    boxes = np.where(targets.mask[..., None], targets.boxes, np.float32(garbage))
    labels = np.where(targets.mask, targets.labels, -1)
    other = Targets(boxes, labels, targets.mask)
    query, terms = match_and_terms(FORMS[form], found, targets, counted)
    other_query, other_terms = match_and_terms(FORMS[form], found, other, counted)
    np.testing.assert_array_equal(query, other_query)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), other_terms, terms)
    slope, other_slope = (gradient(FORMS[form], found, t, counted) for t in (targets, other))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), other_slope, slope)
    overlap = [FORMS[form].overlap(found, t, query) for t in (targets, other)]
    np.testing.assert_allclose(*overlap, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_finite_at_boxes_without_size_and_at_certain_classes(form):
    found, targets, counted = problem(counts=(5, 5, 5, 5))
    boxes, logits = found.boxes.copy(), found.logits.copy()
    boxes[0, 0, :, 2:] = 0  # all of them points
    boxes[0, 1] = 0  # at the corner
    boxes[1, 0, :5] = targets.boxes[1]  # exactly right
    logits[1, 1] = np.where(logits[1, 1] > 0, 200.0, -200.0)
    found, flat = Boxes(logits, boxes), targets._replace(boxes=targets.boxes * [1, 1, 0, 1])
    for theirs in (targets, flat):
        value = total(FORMS[form], found, theirs, counted)
        slope = gradient(FORMS[form], found, theirs, counted)
        assert all(np.isfinite(x).all() for x in (value, *slope))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["softmax", "focal"])
def test_gradients_are_the_slopes_of_the_loss(form):
    found, targets, counted = problem()
    slope = gradient(FORMS[form], found, targets, counted)
    weights = {"class": FORMS[form].class_weight, "l1": 5, "giou": 2}
    for part in ("logits", "boxes"):
        before = np.float64(getattr(found, part))
        way, values = np.random.default_rng(1).normal(size=before.shape), []
        for step in (1e-6, -1e-6):
            moved = found._replace(**{part: before + step * way})
            terms = by_loops(FORMS[form], moved, targets)[1]
            values.append(sum(w * terms[t][0] / terms[t][1] for t, w in weights.items()))
        measured = (values[0] - values[1]) / 2e-6
        np.testing.assert_allclose((getattr(slope, part) * way).sum(), measured, rtol=1e-3)


def test_the_iou_aware_aim_moves_no_box():
    """The boxes' gradient is that of the same matching with the focal loss."""
    found, targets, counted = problem()
    slopes = [gradient(loss, found, targets, counted) for loss in (FOCAL, IOU_AWARE)]
    np.testing.assert_allclose(slopes[0].boxes, slopes[1].boxes, rtol=1e-5, atol=1e-7)
    assert np.abs(slopes[0].logits - slopes[1].logits).max() > 1e-3


def test_focal_is_the_formula_of_its_paper():
    """-alpha_t (1 - p_t)^gamma log p_t (1708.02002), for one query and two classes."""
    logits = np.array([[[[0.4, -1.2]]]], np.float32)
    box = np.array([0.5, 0.5, 0.2, 0.2], np.float32)
    found = Boxes(logits, box[None, None, None])
    targets = Targets(box[None, None], np.array([[0]]), np.array([[True]]))
    _, terms = match_and_terms(FOCAL, found, targets, np.ones((1, 1, 1), bool))
    p, q = 1 / (1 + np.exp(-0.4)), 1 / (1 + np.exp(1.2))
    expected = -0.25 * (1 - p) ** 2 * np.log(p) - 0.75 * q**2 * np.log(1 - q)
    np.testing.assert_allclose(terms["class"], (expected, 1), rtol=1e-6)
    np.testing.assert_allclose(terms["l1"], (0, 1), atol=1e-6)
    np.testing.assert_allclose(terms["giou"], (0, 1), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_permuting_queries_permutes_the_matching_and_changes_no_term(form):
    found, targets, counted = problem()
    query, terms = match_and_terms(FORMS[form], found, targets, counted)
    order = np.random.default_rng(1).permutation(8)
    permuted = Boxes(*(x[:, :, order] for x in found))
    other, other_terms = match_and_terms(FORMS[form], permuted, targets, counted)
    there = np.broadcast_to(targets.mask[:, None], query.shape)
    np.testing.assert_array_equal(order[other][there], np.asarray(query)[there])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), other_terms, terms)


@pytest.mark.parametrize("form", FORMS)
def test_rows_that_fill_up_the_batch_count_nothing(form):
    found, targets, _ = problem()
    rows = np.array([True, True, False, True])
    targets = targets._replace(mask=targets.mask & rows[:, None])
    counted = rows[:, None, None]
    query, terms = match_and_terms(FORMS[form], found, targets, counted)
    pairs, expected = by_loops(FORMS[form], *jax.tree.map(lambda x: x[rows], (found, targets)))
    assert_terms(terms, expected)
    for (image, s), queries in pairs.items():
        assert query[np.flatnonzero(rows)[image], s, : len(queries)].tolist() == queries
    assert not any(x[2].any() for x in gradient(FORMS[form], found, targets, counted))


@pytest.mark.parametrize("form", FORMS)
def test_queries_that_do_not_count_are_never_matched_and_teach_nothing(form):
    """As the proposals in the padding: the rest is as if they were not there."""
    found, targets, _ = problem(counts=(3, 0, 5, 1))
    counted = np.ones((4, 1, 8), bool)
    counted[:, :, [0, 5, 6]] = False
    found.boxes[:, :, 5] = targets.boxes[:, None, 0]  # one that would be the best
    query, terms = match_and_terms(FORMS[form], found, targets, counted)
    kept = np.flatnonzero(counted[0, 0])
    pairs, expected = by_loops(FORMS[form], Boxes(*(x[:, :, kept] for x in found)), targets)
    assert_terms(terms, expected)
    for (image, s), queries in pairs.items():
        assert query[image, s, : len(queries)].tolist() == kept[queries].tolist()
    slope = gradient(FORMS[form], found, targets, counted)
    assert not any(x[:, :, [0, 5, 6]].any() for x in slope)


def test_a_prediction_that_is_no_number_is_matched_last():
    found, targets, counted = problem(counts=(5, 5, 5, 5))
    found.boxes[:, :, :3] = np.nan
    query, _ = match_and_terms(SOFTMAX, found, targets, counted)
    for image, s in np.ndindex(4, 2):
        assert sorted(query[image, s].tolist()) == [3, 4, 5, 6, 7]


def test_overlap_is_the_sum_of_what_is_matched():
    found, targets, counted = problem()
    query, _ = match_and_terms(SOFTMAX, found, targets, counted)
    value, count = SOFTMAX.overlap(found, targets, query)
    pairs, _ = by_loops(SOFTMAX, found, targets)
    expected = [
        overlaps(targets.boxes[image, t], found.boxes[image, s, q])[0]
        for (image, s), queries in pairs.items()
        for t, q in enumerate(queries)
    ]
    np.testing.assert_allclose((value, count), (sum(expected), len(expected)), rtol=1e-5)


def test_more_objects_than_queries_are_refused_in_one_line():
    with pytest.raises(InputError, match="^[^\n]*5 targets cannot each .* 4 queries[^\n]*$"):
        SOFTMAX.match(*problem(queries=4))


@pytest.mark.parametrize("field", ["no_object", "gamma", "l1_weight", "giou_cost"])
def test_negative_numbers_are_named_in_one_line(field):
    with pytest.raises(InputError, match=f"^{field} is -0.5: it cannot be negative$"):
        SetLoss(**{field: -0.5})
