"""Initial parameters, drawn from a key without compiling a kernel per shape.

XLA compiles a random draw once per shape, and a network has hundreds of kernels in dozens of
shapes. Here every kernel is cut from blocks of one fixed size, so that outside `jax.jit` a
single draw is compiled, and the rest is done by NumPy. Inside `jax.jit` or `jax.vmap` the same
blocks give the same numbers.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

BLOCK = 1 << 16


def glorot_uniform(
    key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, groups: int = 1
) -> jax.Array:
    """Uniform on `+-sqrt(6 / (fan_in + fan_out))`.

    Args:
      key: every key gives other numbers.
      shape: `(*window, num_in, num_out)`; fans count the window.
      dtype: of the result; the draw itself is float32.
      groups: of a grouped convolution, each of which sees `num_out / groups` outputs alone.

    Source: Glorot and Bengio 2010, equation 16; the authors' kernels start so (Keras' default).
    """
    window = math.prod(shape[:-2])
    limit = np.float32(math.sqrt(6.0 / (window * (shape[-2] + shape[-1] // groups))))
    size = math.prod(shape)
    if isinstance(key, jax.core.Tracer):
        return (_traced_uniform(key, size) * limit).reshape(shape).astype(dtype)
    blocks = [np.asarray(_block(key, number)) for number in range(-(-size // BLOCK))]
    flat = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    return jnp.asarray((flat[:size] * limit).reshape(shape), dtype)


def zeros(num_channels: int) -> jax.Array:
    """Float32 zeros."""
    return jnp.asarray(np.zeros((num_channels,), np.float32))


def ones(*shape: int) -> jax.Array:
    """Float32 ones."""
    return jnp.asarray(np.ones(shape, np.float32))


class KeySequence(nnx.RngStream):
    """Keys in a row, counted in Python.

    `nnx.RngStream` counts in a variable. Under a trace each step of that counter searches all
    that was traced before it, which makes the time to build a network quadratic in its depth.
    The keys are the same.
    """

    def __init__(self, key: jax.Array):
        self.root = key
        self.number = 0

    def __call__(self) -> jax.Array:
        """The next key."""
        key = jax.random.fold_in(self.root, self.number)
        self.number += 1
        return key


def initial_rngs(key: jax.Array) -> nnx.Rngs:
    """What modules expect as `rngs`, with one stream, `params`, counted in Python."""
    rngs = nnx.Rngs()
    rngs.params = KeySequence(key)
    return rngs


@jax.jit
def _block(key: jax.Array, number: int) -> jax.Array:
    """Block `number` of a key's numbers, uniform on [-1, 1), float32."""
    return jax.random.uniform(
        jax.random.fold_in(key, number), (BLOCK,), jnp.float32, minval=-1.0, maxval=1.0
    )


@functools.partial(jax.jit, static_argnums=1)
def _traced_uniform(key: jax.Array, size: int) -> jax.Array:
    numbers = jnp.arange(-(-size // BLOCK), dtype=jnp.uint32)
    blocks = jax.vmap(_block, in_axes=(None, 0))(key, numbers)
    return lax.slice(blocks.reshape(-1), (0,), (size,))
