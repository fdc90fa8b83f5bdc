"""Batch norm by the batch's own statistics, whose gradient reads the map once more.

The backward pass keeps the map as it came, mean and inverse deviation; JAX would keep the
centred and the normalised map beside it.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from drifa_jax.models.kernels.tracing import hand_written, jit, keep
from drifa_jax.models.pooling import at_least_float32
from drifa_jax.typing import FeatureMap, Present


def counted(x: FeatureMap, present: Present | None) -> tuple[int | jax.Array, Present | None]:
    """Number of pixels in the statistics, and which records' (None for all)."""
    pixels_per_record = math.prod(x.shape[1:-1])
    if present is None:
        return x.shape[0] * pixels_per_record, None
    count = jnp.maximum(jnp.sum(present), 1) * pixels_per_record
    return count.astype(at_least_float32(x)), present.reshape(-1, *(1,) * (x.ndim - 1))


def row(channels: jax.Array, x: FeatureMap) -> jax.Array:
    """A vector per channel, shaped to meet the map `x`."""
    return channels.reshape((1,) * (x.ndim - 1) + (-1,))


def _normalise(x, scale, bias, present, epsilon):
    """The map normalised by its own statistics, and those statistics, which carry no gradient."""
    wide = x.astype(at_least_float32(x))
    count, mask = counted(x, present)
    axes = tuple(range(x.ndim - 1))

    def average(values):
        return jnp.sum(values if mask is None else jnp.where(mask, values, 0.0), axes) / count

    mean = average(wide)
    var = average(lax.square(wide - row(mean, x)))
    y = (wide - row(mean, x)) * row(lax.rsqrt(var + epsilon) * scale, x) + row(bias, x)
    return y.astype(x.dtype), lax.stop_gradient(mean), lax.stop_gradient(var)


def _forward(x, scale, bias, present, epsilon):
    wide = x.astype(at_least_float32(x))
    count, mask = counted(x, present)
    axes = tuple(range(x.ndim - 1))
    zero = jnp.zeros((), wide.dtype)
    kept = wide if mask is None else jnp.where(mask, wide, zero)
    mean = keep(jnp.sum(kept, axes) / count)
    deviation = wide - row(mean, x)
    kept = deviation if mask is None else jnp.where(mask, deviation, zero)
    var = jnp.sum(lax.square(kept), axes) / count
    inverse = keep(lax.rsqrt(var + epsilon))
    y = (deviation * row(inverse * scale, x) + row(bias, x)).astype(x.dtype)
    return (y, mean, var), (x, scale, present, mean, inverse)


def _backward(epsilon, residuals, cotangents):
    x, scale, present, mean, inverse = residuals
    d_y = cotangents[0].astype(at_least_float32(x))
    normal = (x.astype(d_y.dtype) - row(mean, x)) * row(inverse, x)
    axes = tuple(range(x.ndim - 1))
    d_bias = jnp.sum(d_y, axes)
    d_scale = jnp.sum(d_y * normal, axes)
    count, mask = counted(x, present)
    through_statistics = row(d_bias / count, x) + normal * row(d_scale / count, x)
    if mask is not None:
        through_statistics = jnp.where(mask, through_statistics, jnp.zeros((), d_y.dtype))
    d_x = (d_y - through_statistics) * row(inverse * scale, x)
    no_gradient = None if present is None else np.zeros(present.shape, jax.dtypes.float0)
    return d_x.astype(x.dtype), d_scale, d_bias, no_gradient


normalise = jit(hand_written(_normalise, _forward, _backward, (4,)), (4,))
