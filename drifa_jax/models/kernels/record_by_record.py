"""Attention over a large map, one record after another where caches are small.

Attention reads a map through several 1x1 convolutions and keeps one vector per channel. On CPU
the gate maps of one record stay in the cache if no other record comes between; those of a whole
batch are written to memory and read back, several times. Accelerators take the batch at once.
Either way the gate maps are computed again in the backward pass, instead of being stored.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from drifa_jax.models.kernels.tracing import tracing
from drifa_jax.models.pooling import over_space
from drifa_jax.typing import FeatureMap

Vectors = Callable[[Any, FeatureMap], Any]
"""`(weights, x)` -> a tree of vectors `[b, c]`, where no record depends on another."""

Refine = Callable[[Any, Any, FeatureMap], FeatureMap]
"""`(weights, vectors, x)` -> a map shaped and typed as `x`, each pixel from the same of `x`."""

LARGE_MAP = 2**18
"""Bytes of one record's map from which a loop pays; below, its operations cost more."""


def pooled_by_record(pools: Vectors, weights: Any, x: FeatureMap) -> Any:
    """`pools(weights, x)`.

    Args:
      pools: a differentiable function.
      weights: a tree of arrays.
      x: the map. A loop runs on CPU if a record of it has at least `LARGE_MAP` bytes.
    """
    return _pooled(pools, weights, x) if _loops(x) else pools(weights, x)


def refined_by_record(
    gates: Vectors, refine: Refine, weights: Any, x: FeatureMap
) -> tuple[FeatureMap, Any]:
    """The map refined by its gates, and these: `refine(weights, gates(weights, x), x)`.

    Args:
      gates: a differentiable function.
      refine: a differentiable function.
      weights: a tree of arrays.
      x: the map. A loop runs on CPU if a record of it has at least `LARGE_MAP` bytes.
    """
    if _loops(x):
        return _refined(gates, refine, weights, x)
    return _at_once(gates, refine, weights, x)


def _loops(x: FeatureMap) -> bool:
    # A batch of unknown size, in an export, cannot be looped over.
    known = isinstance(x.shape[0], int)
    large = known and math.prod(x.shape[1:]) * x.dtype.itemsize >= LARGE_MAP
    return large and not tracing().plain


def _at_once(gates, refine, weights, x):
    found = gates(weights, x)
    return refine(weights, found, x), found


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pooled(pools: Vectors, weights: Any, x: FeatureMap) -> Any:
    return lax.platform_dependent(weights, x, cpu=functools.partial(_loop, pools), default=pools)


def _pooled_forward(pools, weights, x):
    return _pooled(pools, weights, x), (weights, x)


def _pooled_backward(pools, residuals, cotangents):
    def loop(weights, x, cotangents):
        # Filled with something of the backward pass, lest it be allocated long before.
        first, *_ = jax.tree.leaves(cotangents)
        space = jnp.broadcast_to(over_space(first, x), x.shape)
        return _loop_back(lambda row, _: row, pools, weights, x, cotangents, space)

    return lax.platform_dependent(
        *residuals, cotangents, cpu=loop, default=functools.partial(_back_at_once, pools)
    )


_pooled.defvjp(_pooled_forward, _pooled_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _refined(gates: Vectors, refine: Refine, weights: Any, x: FeatureMap):
    found = lax.platform_dependent(weights, x, cpu=functools.partial(_loop, gates), default=gates)
    return refine(weights, found, x), found


def _refined_forward(gates, refine, weights, x):
    return _refined(gates, refine, weights, x), (weights, x)


def _refined_backward(gates, refine, residuals, cotangents):
    function = functools.partial(_at_once, gates, refine)

    def loop(weights, x, cotangents):
        d_refined, d_gates = cotangents
        return _loop_back(lambda row, d: (d, row), function, weights, x, d_gates, d_refined)

    return lax.platform_dependent(
        *residuals, cotangents, cpu=loop, default=functools.partial(_back_at_once, function)
    )


_refined.defvjp(_refined_forward, _refined_backward)


def _loop(vectors, weights, x):
    stacked = lax.map(lambda rows: vectors(weights, rows), _split(x))
    return jax.tree.map(_join, stacked)


def _loop_back(cotangents_of, function, weights, x, d_vectors, place):
    """Cotangents of `weights` and `x`, the latter written into `place` row by row.

    Args:
      cotangents_of: `(row of d_vectors, row of place)` -> cotangents of `function` for a record.
      function: `(weights, x)` -> outputs.
      weights: its first argument.
      x: its second.
      d_vectors: a tree of `[b, ...]`.
      place: shaped as `x`; read before it is overwritten.
    """

    def body(carry, row):
        sums, place = carry
        number, x, d_vectors = row
        d_map = lax.dynamic_index_in_dim(place, number, 0, keepdims=False)
        d_weights, d_x = jax.vjp(function, weights, x)[1](cotangents_of(d_vectors, d_map))
        place = lax.dynamic_update_index_in_dim(place, d_x, number, 0)
        return (jax.tree.map(jnp.add, sums, d_weights), place), None

    start = jax.tree.map(jnp.zeros_like, weights)
    x, d_vectors, place = jax.tree.map(_split, (x, d_vectors, place))
    numbers = jnp.arange(x.shape[0], dtype=jnp.int32)
    (d_weights, d_x), _ = lax.scan(body, (start, place), (numbers, x, d_vectors))
    return d_weights, _join(d_x)


def _back_at_once(function, weights, x, cotangents):
    # Without the barrier XLA finds the forward pass's maps and keeps them.
    weights, x, cotangents = lax.optimization_barrier((weights, x, cotangents))
    return jax.vjp(function, weights, x)[1](cotangents)


def _split(rows: jax.Array) -> jax.Array:
    """`[b, ...] -> [b / d, d, ...]`: one record of each of `d` devices at a time."""
    num_devices = tracing().num_devices
    if rows.shape[0] % num_devices:
        num_devices = 1
    by_device = rows.reshape(num_devices, -1, *rows.shape[1:])
    return jnp.swapaxes(by_device, 0, 1)


def _join(rows: jax.Array) -> jax.Array:
    """The way back from `_split`."""
    return jnp.swapaxes(rows, 0, 1).reshape(-1, *rows.shape[2:])
