"""Minimum and maximum over space, whose gradient is found by comparing again.

JAX's own gradient keeps the map's positions of the extreme, or transposes the comparison; here
the backward pass compares the map with its extreme once more, which is cheaper.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from drifa_jax.models.kernels.tracing import hand_written
from drifa_jax.models.pooling import at_least_float32, over_space, spatial_axes
from drifa_jax.typing import FeatureMap, Pooled


def max_pool(x: FeatureMap) -> Pooled:
    """Largest value over space, in at least float32; equal maxima share the gradient."""
    return _extreme(jnp.max, x).astype(at_least_float32(x))


def min_pool(x: FeatureMap) -> Pooled:
    """Smallest value over space, in at least float32; equal minima share the gradient."""
    return _extreme(jnp.min, x).astype(at_least_float32(x))


def share_of_extreme(x: FeatureMap, extreme: Pooled, cotangent: Pooled) -> FeatureMap:
    """The gradient of a minimum or maximum over space, found by comparing again.

    Args:
      x: the map.
      extreme: `[b, c]`, its minimum or maximum, in the dtype of `x`.
      cotangent: `[b, c]`, in at least float32; positions that hold the extreme share it alike.
    """
    holds = holds_extreme(x, extreme)
    share = cotangent / jnp.sum(holds, spatial_axes(x), dtype=cotangent.dtype)
    return jnp.where(holds, over_space(share, x), jnp.zeros((), x.dtype))


def holds_extreme(x: FeatureMap, extreme: Pooled) -> jax.Array:
    """Where a map holds its minimum or maximum over space, up to rounding.

    XLA may compute the map twice, once to reduce it and once to compare, and contract other
    products and sums into one operation; an exact comparison then finds no position at all and
    loses the gradient.
    """
    info = jnp.finfo(x.dtype)
    slack = info.eps * (8 if info.bits >= 32 else 1)
    extreme = over_space(extreme, x)
    size = jnp.maximum(jnp.abs(extreme), jnp.ones((), x.dtype))
    return jnp.abs(x - extreme) <= jnp.asarray(slack, x.dtype) * size


def _plain_extreme(reduction: Callable[..., jax.Array], x: FeatureMap) -> jax.Array:
    return reduction(x, axis=spatial_axes(x))


def _forward(reduction, x):
    extreme = reduction(x, axis=spatial_axes(x))
    return extreme, (x, extreme)


def _backward(reduction, residuals, cotangent):
    del reduction
    x, extreme = residuals
    return (share_of_extreme(x, extreme, cotangent.astype(at_least_float32(cotangent))),)


_extreme = hand_written(_plain_extreme, _forward, _backward, (0,))
