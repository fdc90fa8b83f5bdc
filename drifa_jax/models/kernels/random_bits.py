"""Random bits as JAX draws them, in a form that compiles in a tenth of the time on CPUs.

JAX writes Threefry there as a loop of five passes over whole arrays with rotations that are data,
which LLVM turns into ten thousand lines for each shape of mask.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from drifa_jax.models.kernels.tracing import tracing

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
"""Of Threefry-2x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)."""

PARITY = np.uint32(0x1BD11BDA)
"""What a third word of the key makes with the other two, from the same paper."""

NUM_GROUPS = 5
"""Of four rounds, 20 in all: the number that the paper holds to be safe."""


def random_bits(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.Array:
    """Independent bits, those of `jax.random.bits`.

    Args:
      key: one key, `[]`.
      shape: of the result.
      dtype: uint8, uint16 or uint32.
    """
    ours = (
        jax.random.key_impl(key) == "threefry2x32"
        and jax.config.jax_threefry_partitionable
        and math.prod(shape) < 2**32
    )
    if tracing().plain or not ours:
        return jax.random.bits(key, shape, dtype)
    # Each element has a counter of its own: where it lies in the array read row by row.
    counter = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = np.uint32(math.prod(shape[axis + 1 :]))
        counter += stride * lax.broadcasted_iota(jnp.uint32, shape, axis)
    first, second = _threefry(jax.random.key_data(key), jnp.zeros(shape, jnp.uint32), counter)
    return (first ^ second).astype(dtype)


def _threefry(key: jax.Array, first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 of pairs of words, uint32."""
    words = (key[0], key[1], key[0] ^ key[1] ^ PARITY)
    first, second = first + words[0], second + words[1]
    for group in range(NUM_GROUPS):
        for rotation in ROTATIONS[group % 2]:
            first = first + second
            second = first ^ _rotated(second, rotation)
        first = first + words[(group + 1) % 3]
        second = second + words[(group + 2) % 3] + np.uint32(group + 1)
    return first, second


def _rotated(words: jax.Array, left: int) -> jax.Array:
    return (words << np.uint32(left)) | (words >> np.uint32(32 - left))
