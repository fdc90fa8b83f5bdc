"""Random keys by name: a key is its root, the names of what it is for, and counters.

`stream(root, "dropout", step)` depends on nothing but its arguments, so a resumed run draws
what an uninterrupted one would have drawn, and adding a consumer moves nobody else's numbers.
"""

from __future__ import annotations

import zlib

import jax
import numpy as np


def root_key(seed: int) -> jax.Array:
    """The one key that everything random descends from."""
    return jax.random.key(seed)


def stream(key: jax.Array, *path: str | int | jax.Array) -> jax.Array:
    """The key of a named stream.

    Args:
      key: a key, or keys `[b]`, of which each gets its own stream.
      path: names, folded in by a stable hash, and counters (integers, traced or not).
    """
    if key.ndim == 1:
        return jax.vmap(lambda single: stream(single, *path))(key)
    for part in path:
        if isinstance(part, str):
            part = np.uint32(zlib.crc32(part.encode()))
        key = jax.random.fold_in(key, part)
    return key
