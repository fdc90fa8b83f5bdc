"""Global pools over all spatial axes: the only way in which features of modalities meet.

Because modalities meet through pooled vectors alone, they may differ in resolution, in
aspect ratio and in rank: a tabular feature `[b, c]` pools to itself, a volume
`[b, d, h, w, c]` like an image.
"""

from __future__ import annotations

import functools

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


def max_pool(x: FeatureMap) -> Pooled:
    """Largest value over space, in at least float32; equal maxima share the gradient."""
    return _extreme(jnp.max, x).astype(at_least_float32(x))


def min_pool(x: FeatureMap) -> Pooled:
    """Smallest value over space, in at least float32; equal minima share the gradient."""
    return _extreme(jnp.min, x).astype(at_least_float32(x))


def over_space(gate: Gate, x: FeatureMap) -> FeatureMap:
    """A per-channel gate `[b, c]`, shaped and cast to multiply the feature map `x`."""
    return gate.reshape(gate.shape[0], *(1,) * (x.ndim - 2), gate.shape[1]).astype(x.dtype)


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _extreme(reduction, x: FeatureMap) -> jax.Array:
    return reduction(x, axis=spatial_axes(x))


def _extreme_forward(reduction, x):
    extreme = reduction(x, axis=spatial_axes(x))
    return extreme, (x, extreme)


def _extreme_backward(reduction, residuals, cotangent):
    x, extreme = residuals
    return (share_of_extreme(x, extreme, cotangent.astype(at_least_float32(cotangent))),)


_extreme.defvjp(_extreme_forward, _extreme_backward)
