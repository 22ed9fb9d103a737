"""Exact bipartite matching on the accelerator, many problems at once."""

import jax
import jax.numpy as jnp
from jax import Array

from vitlab.errors import InputError

# Of bids, before the search: 4 halve its steps once a model has begun to learn, and more save as
# much time as they take (experiments/speed/notes.md).
ROUNDS = 4
_LARGEST = 1e34


def hungarian(cost: Array, num_targets: Array) -> Array:
    """Gives each target a query of its own so that the sum of the costs is the least.

    A few rounds in which all targets bid for queries at once (Bertsekas 1988, "The auction
    algorithm") leave a matching that is optimal for the targets that have a query, and prices;
    shortest augmenting paths match the others, as in scipy's `linear_sum_assignment` (Crouse 2016,
    "On implementing 2D rectangular assignment algorithms"). One loop advances all problems, each by
    one step of its own, so that it ends after the steps of the longest; targets beyond
    `num_targets` cost nothing. Nothing leaves the device, and no gradient goes through. Under `jit`
    on several devices `collectives.on_each_device` gives each of them a loop of its own.

    Args:
        cost: f32[batch, targets, queries], of which 1e34 and more is all the same. What is not
            finite counts as worse than all the rest.
        num_targets: i32[batch], how many of the targets, the first ones, there really are.

    Returns:
        i32[batch, targets], the query of each target; of a target that is not there, 0.

    Raises:
        InputError: there are more targets than queries.
    """
    batch, targets, queries = cost.shape
    if targets == 0:
        return jnp.zeros((batch, 0), jnp.int32)
    if targets > queries:
        raise InputError(
            f"{targets} targets cannot each be matched with one of {queries} queries: "
            "the model needs more queries, or the data fewer boxes"
        )
    # Sums of a few hundred of the largest still are numbers.
    cost = jax.lax.stop_gradient(cost)
    cost = jnp.where(jnp.isfinite(cost), jnp.clip(cost, -_LARGEST, _LARGEST), jnp.nan)
    worst = jnp.max(jnp.abs(jnp.where(jnp.isfinite(cost), cost, 0)), axis=(1, 2), keepdims=True)
    cost = jnp.where(jnp.isfinite(cost), cost, 2 * worst + 1)
    there = _count(targets) < num_targets[:, None]
    query_of, owner, v = _bid(cost, there)
    return jnp.maximum(_augment(cost, there & (query_of < 0), query_of, owner, v), 0)


def _bid(cost: Array, there: Array) -> tuple[Array, Array, Array]:
    """`ROUNDS` in which each target without a query bids for its best one, as much as that is
    better than its second best. The highest bid wins the query, which its owner loses.

    Returns:
        i32[batch, targets], the query of each target, or -1; i32[batch, queries], the owner of each
        query, or -1; f32[batch, queries], less than 0 by the query's price. Owners have a query
        that is the best for them at these prices, and queries without an owner are free of charge.
    """
    batch, targets, queries = cost.shape
    target, query = _count(targets)[:, None], _count(queries)

    def bid(_, state):
        query_of, owner, v = state
        reduced = cost - v[:, None]
        best = reduced.min(axis=2, keepdims=True)
        wanted = _nearest(reduced, best, owner[:, None])
        at_wanted = query == wanted[..., None]
        second = jnp.where(at_wanted, jnp.inf, reduced).min(axis=2, keepdims=True)
        bids = there & (query_of < 0)
        offers = jnp.where(at_wanted & bids[..., None], second - best, -1)
        highest = offers.max(axis=1, keepdims=True)
        winner = jnp.where(offers == highest, target, targets).min(axis=1)
        sold = highest[:, 0] >= 0
        owner = jnp.where(sold, winner, owner)
        v = v - jnp.where(sold & jnp.isfinite(highest[:, 0]), highest[:, 0], 0)
        query_of = jnp.where(bids, wanted, query_of)
        keeps = jnp.take_along_axis(owner, jnp.maximum(query_of, 0), axis=1) == target[:, 0]
        return jnp.where(keeps, query_of, -1), owner, v

    state = (
        _filled(cost, (batch, targets), -1, jnp.int32),
        _filled(cost, (batch, queries), -1, jnp.int32),
        _filled(cost, (batch, queries), 0, cost.dtype),
    )
    return jax.lax.fori_loop(0, ROUNDS, bid, state)


def _nearest(distance: Array, least: Array, owner: Array) -> Array:
    """The first query, i32[...], at the `least` of f32[..., queries]; of several one that is free,
    if there is one: ties would cost much else."""
    queries = distance.shape[-1]
    place = _count(queries) + jnp.where(owner < 0, 0, queries)
    return jnp.where(distance == least, place, 2 * queries).min(axis=-1) % queries


def _augment(cost: Array, left: Array, query_of: Array, owner: Array, v: Array) -> Array:
    """Matches the targets that are `left`, bool[batch, targets], one after the other: Dijkstra's
    search for the free query that is the nearest by reduced costs, then the walk back along its
    path, on which each target changes over to the next query.

    Returns:
        i32[batch, targets], the query of each target, or -1.
    """
    batch, targets, queries = cost.shape
    target, query = _count(targets), _count(queries)
    order = jnp.argsort(~left, axis=1, stable=True).astype(jnp.int32)
    number = left.sum(axis=1)

    def at(x, index):
        return jnp.take_along_axis(x, index[:, None], axis=1)[:, 0]

    def each(x):
        return x[:, None]

    def root(turn):
        return at(order, jnp.minimum(turn, targets - 1))

    def step(state):
        v, distance, came_from = state["v"], state["distance"], state["came_from"]
        query_of, owner, here = state["query_of"], state["owner"], state["here"]
        walks = state["walks"]
        searches = (state["turn"] < number) & ~walks
        start = root(state["turn"])

        # The search goes on from the target that it reached last.
        row = jnp.take_along_axis(cost, here[:, None, None], axis=1)[:, 0]
        reduced = row - each(at(state["u"], here)) - v + each(state["reached"])
        closer = each(searches) & ~state["done"] & (reduced < distance)
        distance = jnp.where(closer, reduced, distance)
        came_from = jnp.where(closer, each(here), came_from)
        open_distance = jnp.where(state["done"], jnp.inf, distance)
        reached = jnp.where(searches, open_distance.min(axis=1), state["reached"])
        now = jnp.where(walks, state["now"], _nearest(open_distance, each(reached), owner))
        at_now = query == each(now)
        done = state["done"] | (at_now & each(searches))
        of_now = at(owner, now)
        found = searches & (of_now < 0)

        # It has found one: new potentials.
        slack = jnp.where(done & each(found), each(reached) - distance, 0)
        mine = jnp.maximum(query_of, 0)
        passed = (query_of >= 0) & jnp.take_along_axis(done, mine, axis=1)
        u = state["u"] + jnp.where(passed, jnp.take_along_axis(slack, mine, axis=1), 0)
        u = u + jnp.where((target == each(start)) & each(found), each(reached), 0)

        # A step of the walk.
        walks = walks | found
        changes = at(came_from, now)
        at_changes = target == each(changes)
        ends = walks & (changes == start)
        turn = state["turn"] + ends
        here = jnp.where(ends, root(turn), jnp.where(searches & ~found, of_now, here))
        return {
            "turn": turn,
            "here": here,
            "reached": jnp.where(ends, 0, reached),
            "distance": jnp.where(each(ends), jnp.inf, distance),
            "came_from": came_from,
            "done": done & ~each(ends),
            "u": u,
            "v": v - slack,
            "owner": jnp.where(at_now & each(walks), each(changes), owner),
            "query_of": jnp.where(at_changes & each(walks), each(now), query_of),
            "walks": walks & ~ends,
            "now": at(query_of, changes),
        }

    zeros = _filled(cost, (batch,), 0, jnp.int32)
    state = {
        "turn": zeros,  # the place in `order` of the target that is being matched
        "here": root(zeros),  # the target that the search stands at
        "reached": _filled(cost, (batch,), 0, cost.dtype),  # its distance from the first
        "distance": _filled(cost, (batch, queries), jnp.inf, cost.dtype),
        "came_from": _filled(cost, (batch, queries), 0, jnp.int32),
        "done": _filled(cost, (batch, queries), False, bool),
        "u": (cost - v[:, None]).min(axis=2),
        "v": v,
        "owner": owner,
        "query_of": query_of,
        "walks": _filled(cost, (batch,), False, bool),
        "now": zeros,  # the query that the walk stands at
    }
    return jax.lax.while_loop(lambda state: (state["turn"] < number).any(), step, state)["query_of"]


def _count(number: int) -> Array:
    return jnp.arange(number, dtype=jnp.int32)


def _filled(cost: Array, shape: tuple[int, ...], value, dtype) -> Array:
    """What a loop begins with, which in a `jax.shard_map` is to be as much one device's as what it
    goes on with: as `cost` is."""
    return jnp.full_like(cost, value, dtype, shape)
