"""Pooled vectors of a large map, computed one record after another where caches are small.

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
from jax.sharding import AxisType

from drifa_jax.typing import FeatureMap

Pools = Callable[[Any, FeatureMap], Any]

LARGE_MAP = 2**18
"""Bytes of one record's map from which a loop pays; below, its operations cost more."""

BATCH_AXIS = "data"
"""Mesh axis that a batch is spread over, if the step is traced under a mesh."""


def pooled_by_record(pools: Pools, weights: Any, x: FeatureMap) -> Any:
    """`pools(weights, x)`, where no record of the pools depends on another.

    Args:
      pools: vectors `[b, c]` of a map `[b, ..., c]`; a differentiable function of both.
      weights: a tree of arrays.
      x: the map. A loop runs on CPU if a record of it has at least `LARGE_MAP` bytes.
    """
    return _by_record(pools, weights, x) if _is_large(x) else pools(weights, x)


def _is_large(x: FeatureMap) -> bool:
    # A batch of unknown size, in an export, cannot be looped over.
    known = isinstance(x.shape[0], int)
    return known and math.prod(x.shape[1:]) * x.dtype.itemsize >= LARGE_MAP


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_record(pools: Pools, weights: Any, x: FeatureMap) -> Any:
    return lax.platform_dependent(weights, x, cpu=functools.partial(_loop, pools), default=pools)


def _forward(pools, weights, x):
    return _by_record(pools, weights, x), (weights, x)


def _backward(pools, residuals, cotangents):
    return lax.platform_dependent(
        *residuals,
        cotangents,
        cpu=functools.partial(_loop_back, pools),
        default=functools.partial(_whole_back, pools),
    )


_by_record.defvjp(_forward, _backward)


def _loop(pools, weights, x):
    stacked = lax.map(lambda rows: pools(weights, rows), _split(x))
    return jax.tree.map(_join, stacked)


def _loop_back(pools, weights, x, cotangents):
    def add(sums, rows):
        x, cotangents = rows
        d_weights, d_x = jax.vjp(pools, weights, x)[1](cotangents)
        return jax.tree.map(jnp.add, sums, d_weights), d_x

    start = jax.tree.map(jnp.zeros_like, weights)
    d_weights, d_x = lax.scan(add, start, (_split(x), jax.tree.map(_split, cotangents)))
    return d_weights, _join(d_x)


def _whole_back(pools, weights, x, cotangents):
    # Without the barrier XLA finds the forward pass's maps and keeps them.
    weights, x, cotangents = lax.optimization_barrier((weights, x, cotangents))
    return jax.vjp(pools, weights, x)[1](cotangents)


def _split(rows: jax.Array) -> jax.Array:
    """`[b, ...] -> [b / d, d, ...]`: one record of each of `d` devices at a time."""
    num_devices = _num_devices(rows.shape[0])
    by_device = rows.reshape(num_devices, -1, *rows.shape[1:])
    return jnp.swapaxes(by_device, 0, 1)


def _join(rows: jax.Array) -> jax.Array:
    """The way back from `_split`."""
    return jnp.swapaxes(rows, 0, 1).reshape(-1, *rows.shape[2:])


def _num_devices(num_records: int) -> int:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or BATCH_AXIS not in mesh.axis_names:
        return 1
    if dict(zip(mesh.axis_names, mesh.axis_types, strict=True))[BATCH_AXIS] == AxisType.Manual:
        return 1
    size = mesh.shape[BATCH_AXIS]
    return size if num_records % size == 0 else 1
