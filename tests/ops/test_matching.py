import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from vitlab.errors import InputError
from vitlab.ops import matching
from vitlab.ops.matching import hungarian

PROBLEMS, TARGETS, QUERIES = 500, 7, 9  # of each kind; one compiled shape
solve = jax.jit(hungarian)


def uniform(rng, shape):
    return rng.uniform(size=shape)


def boxes(rng, shape):
    """What the loss matches by: L1 distances."""
    batch, targets, queries = shape
    ours, theirs = (
        rng.uniform(size=(batch, 1, queries, 4)),
        rng.uniform(size=(batch, targets, 1, 4)),
    )
    return np.abs(ours - theirs).sum(axis=-1)


def with_few_numbers(rng, shape):
    cost = rng.normal(size=shape)
    return np.where(
        rng.uniform(size=shape) < 0.7, rng.choice([np.nan, np.inf, -np.inf], shape), cost
    )


KINDS = {
    "uniform": uniform,
    "negative": lambda rng, shape: -rng.uniform(size=shape),
    "both signs": lambda rng, shape: rng.normal(size=shape),
    "ties": lambda rng, shape: rng.integers(0, 3, shape),
    "many ties": lambda rng, shape: rng.integers(-1, 1, shape),
    "all equal": lambda rng, shape: np.full(shape, rng.normal()),
    "huge": lambda rng, shape: 1e30 * rng.normal(size=shape),
    "tiny": lambda rng, shape: 1e-30 * rng.normal(size=shape),
    "every scale": lambda rng, shape: 10.0 ** rng.uniform(-6, 6, shape),
    "large offset": lambda rng, shape: 1000 + rng.integers(0, 100, shape),
    "an offset of each target": lambda rng, shape: (
        100 * rng.integers(0, 9, (*shape[:2], 1)) + rng.integers(0, 9, shape)
    ),
    "products": lambda rng, shape: np.broadcast_to(
        np.outer(np.arange(1, shape[1] + 1), np.arange(1, shape[2] + 1)), shape
    ),
    "products, backwards": lambda rng, shape: np.broadcast_to(
        np.outer(np.arange(1, shape[1] + 1), -np.arange(1, shape[2] + 1)), shape
    ),
    "same preferences": lambda rng, shape: np.broadcast_to(
        np.sort(rng.uniform(size=(shape[0], 1, shape[2]))), shape
    ),
    "boxes": boxes,
    "one target twice": lambda rng, shape: np.repeat(boxes(rng, shape)[:, :1], shape[1], axis=1),
    "a NaN here and there": lambda rng, shape: np.where(
        rng.uniform(size=shape) < 0.1, np.nan, rng.normal(size=shape)
    ),
    "few numbers": with_few_numbers,
    "no number": lambda rng, shape: np.full(shape, np.nan),
    "infinite": lambda rng, shape: np.where(rng.uniform(size=shape) < 0.3, np.inf, 1),
}


def check(cost, counts, query):
    """That each problem's targets have queries of their own and cost what scipy's do, in float32:
    to 1e-6 of the largest cost for each target."""
    for matrix, count, found in zip(cost, counts, query, strict=True):
        finite = np.isfinite(matrix)
        worst = np.abs(matrix[finite]).max(initial=0)
        matrix = np.where(finite, matrix, 2 * worst + 1).astype(np.float64)[:count]
        found, least = found[:count], matrix[linear_sum_assignment(matrix)].sum()
        assert len(set(found.tolist())) == count
        assert ((found >= 0) & (found < cost.shape[2])).all()
        paid = matrix[np.arange(count), found].sum()
        assert abs(paid - least) <= 1e-6 * count * np.abs(matrix).max(initial=0), (paid, least)


@pytest.mark.parametrize("kind", KINDS)
def test_costs_what_scipy_s_costs(kind):
    """10,000 problems over all kinds, with no target and with all of them among each."""
    rng = np.random.default_rng(0)
    cost = KINDS[kind](rng, (PROBLEMS, TARGETS, QUERIES)).astype(np.float32)
    counts = np.arange(PROBLEMS, dtype=np.int32) % (TARGETS + 1)
    query = np.asarray(solve(cost, counts))
    assert query.shape == (PROBLEMS, TARGETS)
    check(cost, counts, query)
    beyond = np.arange(TARGETS) >= counts[:, None]
    assert not query[beyond].any()


@pytest.mark.parametrize("shape", [(40, 30, 100), (40, 24, 24), (5, 1, 1), (3, 1, 20)])
def test_costs_what_scipy_s_costs_in_other_shapes(shape):
    rng = np.random.default_rng(0)
    kinds = [k for k in KINDS if k not in ("every scale", "few numbers", "no number", "infinite")]
    for kind in kinds:
        cost = KINDS[kind](rng, shape).astype(np.float32)
        counts = rng.integers(0, shape[1] + 1, shape[0]).astype(np.int32)
        counts[0] = shape[1]
        check(cost, counts, np.asarray(solve(cost, counts)))


def test_a_problem_s_answer_does_not_depend_on_the_others_of_the_batch():
    rng = np.random.default_rng(0)
    cost = rng.integers(0, 4, (6, TARGETS, QUERIES)).astype(np.float32)
    counts = np.array([7, 0, 3, 7, 1, 5], np.int32)
    together, one = solve(cost, counts), jax.jit(hungarian)
    for i in range(6):
        np.testing.assert_array_equal(one(cost[i : i + 1], counts[i : i + 1])[0], together[i])


def test_targets_that_are_not_there_may_cost_anything():
    cost = np.random.default_rng(0).normal(size=(2, TARGETS, QUERIES)).astype(np.float32)
    counts = np.array([3, 0], np.int32)
    expected = solve(cost, counts)
    for garbage in (np.nan, np.inf, -np.inf, -1e9):
        other = cost.copy()
        other[0, 3:], other[1] = garbage, garbage
        np.testing.assert_array_equal(solve(other, counts), expected)


def test_queries_that_cost_no_number_are_left_if_others_suffice():
    cost = np.random.default_rng(0).normal(size=(50, 4, 9)).astype(np.float32)
    cost[:, :, [0, 3, 4, 7, 8]] = np.inf
    query = np.asarray(solve(cost, np.full(50, 4, np.int32)))
    assert set(query.ravel().tolist()) == {1, 2, 5, 6}


def test_more_targets_than_queries_are_refused_in_one_line():
    with pytest.raises(InputError, match="^[^\n]*4 targets cannot each .* one of 3 queries[^\n]*$"):
        hungarian(jnp.zeros((2, 4, 3)), jnp.zeros(2, jnp.int32))


def test_no_targets_have_no_queries():
    found = hungarian(jnp.zeros((2, 0, 5)), jnp.zeros(2, jnp.int32))
    assert (found.shape, found.dtype) == ((2, 0), jnp.int32)


def test_no_gradient_goes_through():
    cost = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 4)), jnp.float32)

    def paid(cost):
        query = hungarian(cost, jnp.array([3]))
        return jnp.take_along_axis(cost, query[..., None], axis=2).sum()

    gradient = jax.grad(paid)(cost)
    np.testing.assert_array_equal(np.sort(gradient.ravel()), [0] * 9 + [1] * 3)


def test_an_exported_program_is_the_same():
    shapes = jax.ShapeDtypeStruct((4, 3, 6), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.int32)
    exported = jax.export.export(jax.jit(hungarian))(*shapes)
    cost = np.random.default_rng(0).normal(size=(4, 3, 6)).astype(np.float32)
    counts = np.array([3, 0, 2, 1], np.int32)
    np.testing.assert_array_equal(jax.jit(exported.call)(cost, counts), solve(cost, counts))


@pytest.mark.parametrize("size", [1e34, 1e37, 3.4e38])
def test_costs_whose_differences_are_no_numbers_end_too(size):
    """As a model that diverges has them. A search that cannot compare would go on for ever."""
    rng = np.random.default_rng(0)
    cost = (size * rng.choice([-1, -0.7, 0.7, 1], (50, TARGETS, QUERIES))).astype(np.float32)
    cost[::2, :, 0] = -size
    cost[::5, 3] = np.nan
    query = np.asarray(solve(cost, np.full(50, TARGETS, np.int32)))
    assert all(len(set(row.tolist())) == TARGETS for row in query)


def test_it_solves_in_float64_as_in_float32():
    cost = np.random.default_rng(0).normal(size=(20, TARGETS, QUERIES))
    counts = np.full(20, TARGETS, np.int32)
    with jax.enable_x64(True):
        query = jax.jit(hungarian)(jnp.asarray(cost), counts)
    assert query.dtype == jnp.int32
    check(cost, counts, np.asarray(query))


def test_it_is_traced_in_shard_map_as_that_is_by_default():
    """Where what a loop begins with has to be one device's own, as what it goes on with is."""
    mesh = jax.sharding.AbstractMesh((2,), ("data",))
    solve = jax.shard_map(hungarian, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data"))
    shapes = jax.ShapeDtypeStruct((4, 3, 6), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.int32)
    assert jax.eval_shape(solve, *shapes).shape == (4, 3)


def test_bids_match_what_prices_can_tell_apart():
    """Then no step of the search is left, each of which costs a GPU a wait for the host."""
    # All want query 0; each has another second best, and loses little by it but the first target.
    cost = np.full((1, 3, 6), 9.0, np.float32)
    cost[0, :, 0] = 0
    cost[0, [0, 1, 2], [1, 2, 3]] = 5, 1, 2
    query_of, owner, v = matching._bid(jnp.asarray(cost), jnp.ones((1, 3), bool))
    np.testing.assert_array_equal(query_of, [[0, 2, 3]])
    np.testing.assert_array_equal(owner, [[0, -1, 1, 2, -1, -1]])
    assert v[0, 0] < 0
    np.testing.assert_array_equal(v[0, np.asarray(owner[0]) < 0], 0)
