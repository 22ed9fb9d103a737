import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.errors import InputError
from vitlab.ops.keys import batch_key, example_keys

EPOCH = jnp.array([0, 0, 0, 1, 1, 2], jnp.int32)
ID = jnp.array([3, 1, 49_999, 3, 0, 2**31 - 1], jnp.int32)


def data(keys):
    return np.asarray(jax.random.key_data(keys))


@pytest.fixture(scope="module")
def draw():
    def draw(epoch, id):
        keys = example_keys(7, "noise", epoch, id)
        return jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)

    return jax.jit(draw)


def test_a_permuted_batch_gives_permuted_draws(draw):
    order = jnp.array([4, 2, 0, 5, 1, 3])
    np.testing.assert_array_equal(draw(EPOCH[order], ID[order]), draw(EPOCH, ID)[order])


def test_a_part_of_the_batch_gives_the_same_draws_under_jit_and_not(draw):
    keys = example_keys(7, "noise", EPOCH[2:4], ID[2:4])
    alone = jnp.stack([jax.random.normal(key, (4,)) for key in keys])
    np.testing.assert_array_equal(alone, draw(EPOCH, ID)[2:4])


def test_every_part_of_the_identity_changes_the_key():
    keys = [data(example_keys(7, "noise", EPOCH, ID))]
    keys.append(data(example_keys(8, "noise", EPOCH, ID)))
    keys.append(data(example_keys(7, "erasing", EPOCH, ID)))
    keys.append(data(jnp.stack([batch_key(7, "noise", step) for step in (0, 1, 2)])))
    keys.append(data(jnp.stack([batch_key(7, "mixup", step) for step in (0, 1, 2)])))
    keys.append(data(batch_key(8, "mixup", 0))[None])
    rows = {tuple(row) for row in np.concatenate(keys)}
    assert len(rows) == 3 * len(ID) + 3 + 3 + 1


def test_keys_are_the_same_in_every_process_and_for_every_default_generator():
    program = (
        "import jax; from vitlab.ops.keys import batch_key;"
        "print(*jax.random.key_data(batch_key(7, 'mixup', 5)))"
    )
    environment = {"PYTHONHASHSEED": "123", "JAX_DEFAULT_PRNG_IMPL": "rbg", "JAX_PLATFORMS": "cpu"}
    out = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert [int(word) for word in out.split()] == data(batch_key(7, "mixup", 5)).tolist()


def test_a_traced_seed_and_step_give_the_keys_of_plain_numbers():
    key = jax.jit(lambda seed, step: batch_key(seed, "mixup", step))(jnp.int32(7), jnp.int32(5))
    np.testing.assert_array_equal(data(key), data(batch_key(7, "mixup", 5)))


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(InputError, match="seed"):
        batch_key(seed, "mixup", 0)


def test_epoch_and_id_must_be_one_batch():
    with pytest.raises(InputError, match="epoch"):
        example_keys(0, "noise", EPOCH[:2], ID)
