import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, use_abstract_mesh

from vitlab.ops import collectives
from vitlab.ops.keys import row_keys

X = jnp.arange(24.0).reshape(8, 3)


def shared(function):
    """`function(x, axis_name)` over four devices that share the rows of X, and on X as a whole."""
    parts = jax.vmap(lambda x: function(x, "data"), axis_name="data")(X.reshape(4, 2, 3))
    return np.asarray(parts), np.asarray(function(X, None))


def test_rows_roll_over_all_devices():
    parts, whole = shared(collectives.roll_rows)
    np.testing.assert_array_equal(whole, np.roll(X, 1, axis=0))
    np.testing.assert_array_equal(parts.reshape(8, 3), whole)


def test_a_total_is_that_of_the_whole_batch_on_every_device():
    parts, whole = shared(lambda x, axis: collectives.total(x.sum(), axis))
    assert (parts == whole).all()
    assert whole == 276


def test_rows_are_counted_over_all_devices():
    parts, whole = shared(lambda x, axis: collectives.row_indices(len(x), axis))
    np.testing.assert_array_equal(parts.ravel(), np.arange(8))
    np.testing.assert_array_equal(whole, np.arange(8))


def test_parts_of_the_rows_of_all_devices_are_counted_in_their_places():
    def places(x, axis):
        def of_part(part):
            with collectives.part_of_rows(part, 2):
                return collectives.row_indices(len(x) // 2, axis)

        return jax.lax.map(of_part, jnp.arange(2))

    parts, whole = shared(places)
    np.testing.assert_array_equal(parts.swapaxes(1, 2).ravel(), np.arange(8))
    np.testing.assert_array_equal(whole, np.arange(8).reshape(4, 2).T)


def test_row_keys_do_not_depend_on_who_holds_the_row():
    def draw(x, axis):
        keys = row_keys(jax.random.key(3), len(x), axis)
        return jax.vmap(jax.random.uniform)(keys)

    parts, whole = shared(draw)
    np.testing.assert_array_equal(parts.ravel(), whole)
    assert len(set(whole.tolist())) == 8


def mesh_of(**axes):
    return AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def rows_of_each(rows):
    """How many rows the function is traced with, of so many."""
    seen = []

    def function(x):
        seen.append(len(x))
        return 2 * x

    def each(x):
        return collectives.on_each_device(function, x)

    return seen, each, jax.ShapeDtypeStruct((rows, 3), jnp.float32)


@pytest.mark.parametrize(
    ("axes", "rows", "each"),
    [
        (dict(data=2, fsdp=2, tensor=2), 8, 2),
        (dict(data=4), 8, 2),
        (dict(tensor=2, fsdp=2), 8, 4),
        (dict(batch=4), 8, 8),  # an axis that is not known to be that of the rows
        (dict(data=2, fsdp=2), 6, 6),  # which the devices do not divide
    ],
)
def test_each_device_has_its_own_rows_on_meshes_of_any_axes(axes, rows, each):
    seen, function, x = rows_of_each(rows)
    with use_abstract_mesh(mesh_of(**axes)):
        assert jax.eval_shape(function, x) == x
    assert seen == [each]


@pytest.mark.parametrize("axes", [dict(data=2), dict(data=2, fsdp=2), dict(batch=2)])
def test_in_a_shard_map_the_rows_are_one_device_s_already(axes):
    seen, function, x = rows_of_each(8)
    rows = jax.P(tuple(axes))
    mapped = jax.shard_map(function, mesh=mesh_of(**axes), in_specs=rows, out_specs=rows)
    assert jax.eval_shape(mapped, x).shape == x.shape
    assert seen == [8 // np.prod(list(axes.values()))]
