import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifa_jax.models import kernels
from drifa_jax.models.kernels.random_bits import random_bits

KEY = jax.random.key(7)


@pytest.mark.parametrize("shape", [(), (5,), (0, 3), (3, 4, 5), (2, 16, 16, 3), (2, 3, 4, 5, 6)])
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.uint16, jnp.uint32])
def test_they_are_those_of_jax(shape, dtype):
    bits = random_bits(KEY, shape, dtype)
    assert bits.dtype == dtype
    np.testing.assert_array_equal(bits, jax.random.bits(KEY, shape, dtype))


def test_of_many_keys_each_draws_its_own():
    keys = jax.random.split(KEY, 4)
    bits = jax.vmap(lambda key: random_bits(key, (3, 5), jnp.uint8))(keys)
    for row, key in zip(bits, keys, strict=True):
        np.testing.assert_array_equal(row, jax.random.bits(key, (3, 5), jnp.uint8))


def test_a_key_of_another_kind_draws_as_jax_does_with_it():
    key = jax.random.key(7, impl="rbg")
    np.testing.assert_array_equal(
        random_bits(key, (4, 6), jnp.uint8), jax.random.bits(key, (4, 6), jnp.uint8)
    )


def test_they_are_written_without_the_loop_that_takes_long_to_compile():
    def draw(key):
        return random_bits(key, (8, 16, 16, 4), jnp.uint8)

    assert "while" not in jax.jit(draw).lower(KEY).as_text()
    with kernels.plain():
        assert "while" in jax.jit(lambda key: draw(key)).lower(KEY).as_text()
