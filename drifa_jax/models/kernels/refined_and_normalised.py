"""A map refined by its gates and normalised by its batch, in the fewest passes over memory.

With a gate `g` of each record and channel the refined map is `x g`, and batch norm makes of it
`x slope + offset`, where both follow from vectors of single records, which are read while the gates
are: by the law of total variance, with mean `m` and variance `v` of each record's map over space,
and `E` and `Var` over records,

    mean = E[g m],  var = E[g^2 v] + Var[g m],  slope = g scale / sqrt(var + epsilon).

So the refined map never lies in memory, and the backward pass needs no rectified one. TPUs gain by
that (docs/performance.md). Test: tests/models/kernels/test_refined_and_normalised.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from drifa_jax.models.kernels.normalise import row
from drifa_jax.models.kernels.record_by_record import (
    Vectors,
    back_by_record,
    is_recomputed,
    vectors_by_record,
)
from drifa_jax.models.kernels.tracing import keep, tracing
from drifa_jax.models.pooling import at_least_float32, spatial_axes
from drifa_jax.typing import FeatureMap, Gate, Pooled, Present

GateOf = Callable[[Any, Any], Gate]
"""`(weights, vectors)` -> the factor `[b, c]` of each record and channel."""


def is_in_one_go(x: FeatureMap) -> bool:
    """Whether `refined_and_normalised` is the better way on the devices of the program at hand."""
    return tracing().platform == "tpu" and not tracing().plain and x.ndim > 2


def refined_and_normalised(
    vectors: Vectors,
    gate_of: GateOf,
    weights: Any,
    x: FeatureMap,
    scale: Pooled,
    bias: Pooled,
    present: Present | None,
    epsilon: float,
    rectified: bool,
) -> tuple[FeatureMap, Any, tuple[Pooled, Pooled]]:
    """Batch norm of `x gate_of(weights, vectors(weights, x))`.

    Args:
      vectors: of each record, a differentiable function.
      gate_of: a differentiable function.
      weights: a tree of arrays.
      x: `[b, *space, c]`.
      scale, bias: `[c]` of the batch norm.
      present: `[b]` bool; records that enter the statistics, all when None.
      epsilon: added to the variance.
      rectified: whether negative values become zero.

    Returns:
      The map, shaped and typed as `x`; the vectors; and mean and variance `[c]` of the refined map
      over batch and space, which carry no gradient.
    """
    counted = None if present is None else present.astype(at_least_float32(x))
    read = functools.partial(_with_moments, vectors)
    line = functools.partial(_line, gate_of, epsilon)
    y, ((found, _, _), statistics) = _transformed(
        read, line, rectified, weights, x, (scale, bias, counted)
    )
    return y, found, jax.tree.map(lax.stop_gradient, statistics)


def _with_moments(vectors, weights, x):
    """What `vectors` reads, and mean and variance of each record's map, `[b, c]`."""
    wide, axes = x.astype(at_least_float32(x)), spatial_axes(x)
    mean = jnp.mean(wide, axes)
    # Through the mean the variance has no gradient: deviations add up to zero.
    centre = lax.stop_gradient(_over_space(mean, x))
    return vectors(weights, x), mean, jnp.mean(lax.square(wide - centre), axes)


def _line(gate_of, epsilon, weights, read, affine):
    """Slope `[b, c]` and offset `[c]` of the map, and the statistics that they are made of."""
    found, mean, var = read
    scale, bias, counted = affine
    gate = gate_of(weights, found)

    def average(values):
        if counted is None:
            return jnp.mean(values, 0)
        return jnp.sum(counted[:, None] * values, 0) / jnp.maximum(jnp.sum(counted), 1)

    refined_mean = average(gate * mean)
    spread = lax.square(gate) * var + lax.square(gate * mean - refined_mean[None])
    refined_var = average(spread)
    inverse = lax.rsqrt(refined_var + epsilon) * scale
    return gate * inverse[None], bias - refined_mean * inverse, (refined_mean, refined_var)


def _at_once(read, line, rectified, weights, x, affine):
    found = keep(read(weights, x))
    slope, offset, statistics = line(weights, found, affine)
    y = _on_line(x, slope, offset)
    return (jax.nn.relu(y) if rectified else y).astype(x.dtype), (found, statistics)


def _transformed(read, line, rectified, weights, x, affine):
    way = _recomputed if is_recomputed(x) else _at_once
    return way(read, line, rectified, weights, x, affine)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _recomputed(read, line, rectified, weights, x, affine):
    return _forward(read, line, rectified, weights, x, affine)[0]


def _forward(read, line, rectified, weights, x, affine):
    found = keep(vectors_by_record(read, weights, x))
    slope, offset, statistics = line(weights, found, affine)
    y = _on_line(x, slope, offset)
    y = (jax.nn.relu(y) if rectified else y).astype(x.dtype)
    return (y, (found, statistics)), (weights, x, affine, found)


def _backward(read, line, rectified, residuals, cotangents):
    weights, x, affine, found = residuals
    d_y, (d_found, d_statistics) = cotangents
    (slope, offset, _), through_line = jax.vjp(line, weights, found, affine)

    def of_line(x, d_y, slope):
        """The cotangent of `x slope + offset`."""
        d_y = d_y.astype(at_least_float32(x))
        if not rectified:
            return d_y
        return jnp.where(_on_line(x, slope, offset) > 0, d_y, jnp.zeros((), d_y.dtype))

    d_on_line = of_line(x, d_y, slope)
    d_slope = jnp.sum(d_on_line * x.astype(d_on_line.dtype), spatial_axes(x))
    d_offset = jnp.sum(d_on_line, (0, *spatial_axes(x)))
    d_weights, d_through, d_affine = through_line((d_slope, d_offset, d_statistics))
    d_found = jax.tree.map(jnp.add, d_found, d_through)

    def of_map(rows, x, d_y):
        d_found, slope = rows
        return d_found, (of_line(x, d_y, slope) * _over_space(slope, x)).astype(x.dtype)

    def function(weights, x):
        return read(weights, x), x

    d_read, d_x = back_by_record(of_map, function, weights, x, (d_found, slope), d_y)
    return jax.tree.map(jnp.add, d_weights, d_read), d_x, d_affine


_recomputed.defvjp(_forward, _backward)


def _on_line(x: FeatureMap, slope: Pooled, offset: Pooled) -> FeatureMap:
    return x.astype(slope.dtype) * _over_space(slope, x) + row(offset, x)


def _over_space(vector: Pooled, x: FeatureMap) -> FeatureMap:
    """`[b, c]`, shaped to meet the map, in its own dtype."""
    return vector.reshape(vector.shape[0], *(1,) * (x.ndim - 2), vector.shape[1])
