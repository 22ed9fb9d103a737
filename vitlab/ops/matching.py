"""Exact bipartite matching on the accelerator, many problems at once."""

import jax
import jax.numpy as jnp
from jax import Array

from vitlab.errors import InputError


def hungarian(cost: Array, num_targets: Array) -> Array:
    """Gives each target a query of its own so that the sum of the costs is the least.

    Shortest augmenting paths, as scipy's `linear_sum_assignment` (Crouse 2016, "On implementing
    2D rectangular assignment algorithms"). One loop advances all problems, each by one step of its
    own search, so that it ends after the steps of the longest; targets beyond `num_targets` cost
    nothing. Nothing leaves the device, and no gradient goes through.

    Args:
        cost: f32[batch, targets, queries]. What is not finite counts as worse than all the rest.
        num_targets: i32[batch], how many of the targets, the first ones, there really are.

    Returns:
        i32[batch, targets], the query of each target; of a target that is not there, 0.

    Raises:
        InputError: there are more targets than queries.
    """
    batch, targets, queries = cost.shape
    if targets > queries:
        raise InputError(
            f"{targets} targets cannot each be matched with one of {queries} queries: "
            "the model needs more queries, or the data fewer boxes"
        )
    cost = jax.lax.stop_gradient(cost)
    worst = jnp.max(jnp.abs(jnp.where(jnp.isfinite(cost), cost, 0)), axis=(1, 2), keepdims=True)
    cost = jnp.where(jnp.isfinite(cost), cost, 2 * worst + 1)
    each = jnp.arange(batch)
    free = jnp.full((batch, queries), -1)  # the target of each query, or -1
    unreached = jnp.full((batch, queries), jnp.inf, cost.dtype)

    def searching(state):
        return (state["root"] < num_targets).any()

    def step(state):
        """From the target last reached, one step of Dijkstra's search for a query that is free."""
        root, owner, distance = state["root"], state["owner"], state["distance"]
        here = state["here"]
        row = jnp.take_along_axis(cost, here[:, None, None], axis=1)[:, 0]
        reduced = row - jnp.take_along_axis(state["u"], here[:, None], axis=1) - state["v"]
        reduced = reduced + state["reached"][:, None]
        closer = ~state["done"] & (reduced < distance)
        distance = jnp.where(closer, reduced, distance)
        came_from = jnp.where(closer, here[:, None], state["came_from"])
        # Of the nearest queries one that is free, if there is one: ties would cost much else.
        open_distance = jnp.where(state["done"], jnp.inf, distance)
        reached = open_distance.min(axis=1)
        nearest = open_distance == reached[:, None]
        query = jnp.argmax(nearest * (1 + (owner < 0)), axis=1)
        active = root < num_targets
        done = state["done"].at[each, query].set(True)
        found = active & (owner[each, query] < 0)

        # The search has ended: new potentials, and the path's matches change over.
        slack = jnp.where(done & found[:, None], reached[:, None] - distance, 0)
        v = state["v"] - slack
        mine = jnp.maximum(state["query_of"], 0)
        matched = (state["query_of"] >= 0) & jnp.take_along_axis(done, mine, axis=1)
        raised = jnp.where(matched, jnp.take_along_axis(slack, mine, axis=1), 0)
        at_root = jnp.arange(targets) == root[:, None]
        u = state["u"] + raised + jnp.where(at_root & found[:, None], reached[:, None], 0)

        def walking(path):
            return path["walks"].any()

        def walk(path):
            walks, q = path["walks"], path["query"]
            t = came_from[each, q]
            before = path["query_of"][each, t]
            return {
                "owner": path["owner"].at[each, q].set(jnp.where(walks, t, path["owner"][each, q])),
                "query_of": path["query_of"].at[each, t].set(jnp.where(walks, q, before)),
                "query": jnp.where(walks & (t != root), before, q),
                "walks": walks & (t != root),
            }

        path = {"owner": owner, "query_of": state["query_of"], "query": query, "walks": found}
        path = jax.lax.while_loop(walking, walk, path)
        root = root + found
        begin = found[:, None]
        return {
            "root": root,
            "here": jnp.where(found, jnp.minimum(root, targets - 1), owner[each, query]) * active,
            "reached": jnp.where(found, 0, reached),
            "distance": jnp.where(begin, jnp.inf, distance),
            "came_from": came_from,
            "done": done & ~begin,
            "u": u,
            "v": v,
            "owner": path["owner"],
            "query_of": path["query_of"],
        }

    zeros = jnp.zeros(batch, jnp.int32)
    state = {
        "root": zeros,  # the target that is being matched
        "here": zeros,  # the target that the search stands at
        "reached": jnp.zeros(batch, cost.dtype),  # its distance from the root
        "distance": unreached,
        "came_from": jnp.zeros((batch, queries), jnp.int32),
        "done": jnp.zeros((batch, queries), bool),
        "u": jnp.zeros((batch, targets), cost.dtype),
        "v": jnp.zeros((batch, queries), cost.dtype),
        "owner": free,
        "query_of": jnp.full((batch, targets), -1),
    }
    return jnp.maximum(jax.lax.while_loop(searching, step, state)["query_of"], 0)
