"""Monte Carlo dropout: dropout that is drawn from a key passed in the call, or not at all."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from drifa_jax.models.kernels.random_bits import random_bits
from drifa_jax.typing import DropoutKey, FeatureMap


def monte_carlo_dropout(x: FeatureMap, rate: float, key: DropoutKey | None) -> FeatureMap:
    """Sets each element to zero with probability `rate`, scaling the others by `1 / (1 - rate)`.

    Args:
      x: `[b, *space, c]`.
      rate: in [0, 1).
      key: one key for the batch; or one key per record, `[b]`, which makes a record's mask
        independent of its batch mates and its place among them; or None for no dropout (the
        mean field).

    Source: section 3.4; the authors' implementation drops elements, not channels.
    """
    if key is None or rate == 0.0:
        return x
    if key.ndim == 0:
        kept = _keep(key, rate, x.shape)
    else:
        kept = jax.vmap(lambda record_key: _keep(record_key, rate, x.shape[1:]))(key)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros((), x.dtype))


def _keep(key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """True with probability `1 - rate`, exactly.

    A rate that is a multiple of 1/256, such as the paper's 0.25, needs one random byte an
    element instead of four; any other is that of `jax.random.bernoulli`, to 23 bits.
    """
    if (rate * 256).is_integer():
        return random_bits(key, shape, jnp.uint8) >= jnp.uint8(rate * 256)
    kept_below = math.ceil(float(np.float32(1.0 - rate)) * 2**23)
    return (random_bits(key, shape, jnp.uint32) >> jnp.uint32(9)) < jnp.uint32(kept_below)
