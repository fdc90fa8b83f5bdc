"""Global pools over all spatial axes: the only way in which features of modalities meet.

Because modalities meet through pooled vectors alone, they may differ in resolution, in
aspect ratio and in rank: a tabular feature `[b, c]` pools to itself, a volume
`[b, d, h, w, c]` like an image.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from drifa_jax.typing import FeatureMap, Gate, Pooled


def spatial_axes(x: FeatureMap) -> tuple[int, ...]:
    """All axes between batch and channels."""
    return tuple(range(1, x.ndim - 1))


def at_least_float32(x: jax.Array) -> jnp.dtype:
    """The dtype of pooled vectors, gates and statistics: float32, or float64 in float64 runs."""
    return jnp.dtype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def average_pool(x: FeatureMap) -> Pooled:
    """Mean over space, in at least float32."""
    return jnp.mean(x, axis=spatial_axes(x), dtype=at_least_float32(x))


def over_space(gate: Gate, x: FeatureMap) -> FeatureMap:
    """A per-channel gate `[b, c]`, shaped and cast to multiply the feature map `x`."""
    return gate.reshape(gate.shape[0], *(1,) * (x.ndim - 2), gate.shape[1]).astype(x.dtype)
