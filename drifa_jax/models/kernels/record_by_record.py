"""Attention over a large map, a few records after another where fast memory is small.

Attention reads a map through several 1x1 convolutions and keeps one vector per channel. On CPU
the gate maps of one record stay in the cache if no other record comes between; those of a whole
batch are written to memory and read back, several times. On a TPU those of a few records stay in
the memory beside its units. GPUs take the batch at once. Everywhere the gate maps are computed
again in the backward pass, instead of being stored.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from drifa_jax.models.kernels.tracing import keep, tracing
from drifa_jax.models.pooling import over_space
from drifa_jax.typing import FeatureMap

Vectors = Callable[[Any, FeatureMap], Any]
"""`(weights, x)` -> a tree of vectors `[b, c]`, where no record depends on another."""

Refine = Callable[[Any, Any, FeatureMap], FeatureMap]
"""`(weights, vectors, x)` -> a map shaped and typed as `x`, each pixel from the same of `x`."""

LARGE_MAP = 2**18
"""Bytes of one record's map from which a loop pays on CPU; below, its operations cost more."""

RECOMPUTED_BATCH, LARGE_BATCH = 2**22, 2**25
"""Bytes of the map of all records on one TPU from which gate maps are computed again, and from
which a loop pays besides; below that the dozen maps of an attention find room beside its units."""

TPU_BLOCK = 2**22
"""Bytes of the map of the records that a TPU takes together in such a loop."""

TPU_TILE = (8, 128)
"""To which a TPU pads the last two axes of a map."""


def pooled_by_record(pools: Vectors, weights: Any, x: FeatureMap) -> Any:
    """`pools(weights, x)`.

    Args:
      pools: a differentiable function.
      weights: a tree of arrays.
      x: the map. On CPU a loop runs if a record of it has at least `LARGE_MAP` bytes.
    """
    return _pooled(pools, weights, x) if is_recomputed(x) else pools(weights, x)


def refined_by_record(
    gates: Vectors, refine: Refine, weights: Any, x: FeatureMap
) -> tuple[FeatureMap, Any]:
    """The map refined by its gates, and these: `refine(weights, gates(weights, x), x)`.

    Args:
      gates: a differentiable function.
      refine: a differentiable function.
      weights: a tree of arrays.
      x: the map. On CPU a loop runs if a record of it has at least `LARGE_MAP` bytes.
    """
    if is_recomputed(x):
        return _refined(gates, refine, weights, x)
    return _at_once(gates, refine, weights, x)


def vectors_by_record(vectors: Vectors, weights: Any, x: FeatureMap) -> Any:
    """`vectors(weights, x)`, by the loop where it pays; `back_by_record` is its gradient."""
    return _looped_or_at_once(x, functools.partial(_loop, vectors), vectors, weights, x)


def back_by_record(
    cotangents_of: Callable[..., Any],
    function: Callable[..., Any],
    weights: Any,
    x: FeatureMap,
    d_vectors: Any,
    d_map: FeatureMap | None = None,
) -> tuple[Any, FeatureMap]:
    """Cotangents of `weights` and `x`, computing again what is between, by the loop where it pays.

    Args:
      cotangents_of: `(d_vectors, x, d_map)`, all of some records -> cotangents of `function`.
      function: `(weights, x)` -> outputs, where no record depends on another.
      weights: its first argument.
      x: its second.
      d_vectors: a tree of `[b, ...]`.
      d_map: shaped as `x`, or None where no output is.
    """

    def loop(weights, x, d_vectors, d_map):
        if d_map is None:
            # Filled with something of the backward pass, lest it be allocated long before.
            first, *_ = jax.tree.leaves(d_vectors)
            d_map = jnp.broadcast_to(over_space(first, x), x.shape)
        return _loop_back(cotangents_of, function, weights, x, d_vectors, d_map)

    def at_once(weights, x, d_vectors, d_map):
        # Without the barrier XLA finds the forward pass's maps and keeps them.
        given = lax.optimization_barrier((weights, x, d_vectors, d_map))
        weights, x, d_vectors, d_map = given
        return jax.vjp(function, weights, x)[1](cotangents_of(d_vectors, x, d_map))

    return _looped_or_at_once(x, loop, at_once, weights, x, d_vectors, d_map)


def is_recomputed(x: FeatureMap) -> bool:
    """Whether what is between the map and its vectors is computed again in the backward pass."""
    # A batch of unknown size, in an export, cannot be looped over.
    if tracing().plain or not isinstance(x.shape[0], int) or x.ndim < 3:
        return False
    if tracing().platform == "tpu":
        return _batch_bytes(x) >= RECOMPUTED_BATCH
    return math.prod(x.shape[1:]) * x.dtype.itemsize >= LARGE_MAP


def _tpu_bytes(x: FeatureMap) -> int:
    """Of one record's map on a TPU."""
    last = (-(-n // tile) * tile for n, tile in zip(x.shape[-2:], TPU_TILE, strict=True))
    return math.prod((*x.shape[1:-2], *last)) * x.dtype.itemsize


def _batch_bytes(x: FeatureMap) -> int:
    """Of the maps of all records on one TPU."""
    return x.shape[0] // _num_devices(x) * _tpu_bytes(x)


def _together(x: FeatureMap) -> int:
    """Records of each device in one turn of the loop."""
    if tracing().platform != "tpu":
        return 1
    own, most = x.shape[0] // _num_devices(x), max(TPU_BLOCK // _tpu_bytes(x), 1)
    return max(n for n in range(1, min(own, most) + 1) if own % n == 0)


def _looped_or_at_once(x: FeatureMap, loop: Callable, at_once: Callable, *arguments: Any) -> Any:
    if tracing().platform == "tpu":
        return (loop if _batch_bytes(x) >= LARGE_BATCH else at_once)(*arguments)
    return lax.platform_dependent(*arguments, cpu=loop, default=at_once)


def _at_once(gates, refine, weights, x):
    found = keep(gates(weights, x))
    return refine(weights, found, x), found


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pooled(pools: Vectors, weights: Any, x: FeatureMap) -> Any:
    return vectors_by_record(pools, weights, x)


def _pooled_forward(pools, weights, x):
    return keep(_pooled(pools, weights, x)), (weights, x)


def _pooled_backward(pools, residuals, cotangents):
    return back_by_record(lambda row, *_: row, pools, *residuals, cotangents)


_pooled.defvjp(_pooled_forward, _pooled_backward)


def _recomputed(gates: Vectors, refine: Refine, weights: Any, x: FeatureMap):
    found = keep(vectors_by_record(gates, weights, x))
    return refine(weights, found, x), found


_refined = jax.custom_vjp(_recomputed, nondiff_argnums=(0, 1))


def _refined_forward(gates, refine, weights, x):
    return _recomputed(gates, refine, weights, x), (weights, x)


def _refined_backward(gates, refine, residuals, cotangents):
    d_refined, d_gates = cotangents
    function = functools.partial(_at_once, gates, refine)
    return back_by_record(lambda row, _, d: (d, row), function, *residuals, d_gates, d_refined)


_refined.defvjp(_refined_forward, _refined_backward)


def _loop(vectors, weights, x):
    split = functools.partial(_split, together=_together(x), num_devices=_num_devices(x))
    stacked = lax.map(lambda rows: vectors(weights, _at_hand(rows)), split(x))
    return jax.tree.map(functools.partial(_join, num_devices=_num_devices(x)), stacked)


def _loop_back(cotangents_of, function, weights, x, d_vectors, place):
    """Cotangents of `weights` and `x`, the latter written into `place` turn by turn.

    Args:
      cotangents_of: `(d_vectors, x, place)`, rows of them -> cotangents of `function`.
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
        x, d_map = _at_hand((x, d_map))
        d_weights, d_x = jax.vjp(function, weights, x)[1](cotangents_of(d_vectors, x, d_map))
        place = lax.dynamic_update_index_in_dim(place, d_x, number, 0)
        return (jax.tree.map(jnp.add, sums, d_weights), place), None

    num_devices = _num_devices(x)
    split = functools.partial(_split, together=_together(x), num_devices=num_devices)
    start = jax.tree.map(jnp.zeros_like, weights)
    x, d_vectors, place = jax.tree.map(split, (x, d_vectors, place))
    numbers = jnp.arange(x.shape[0], dtype=jnp.int32)
    (d_weights, d_x), _ = lax.scan(body, (start, place), (numbers, x, d_vectors))
    return d_weights, _join(d_x, num_devices)


def _at_hand(rows: Any) -> Any:
    """The same rows of maps, on a TPU read once into the memory beside its units.

    Without the barrier each operation on them reads them from HBM.
    """
    return lax.optimization_barrier(rows) if tracing().platform == "tpu" else rows


def _num_devices(x: FeatureMap) -> int:
    """That share the records of a map."""
    num_devices = tracing().num_devices
    return num_devices if x.shape[0] % num_devices == 0 else 1


def _split(rows: jax.Array, together: int, num_devices: int) -> jax.Array:
    """`[b, ...] -> [b / (d n), d n, ...]`: n records of each of `d` devices at a time."""
    by_device = rows.reshape(num_devices, -1, together, *rows.shape[1:])
    turns = jnp.swapaxes(by_device, 0, 1)
    return turns.reshape(turns.shape[0], -1, *rows.shape[1:])


def _join(rows: jax.Array, num_devices: int) -> jax.Array:
    """The way back from `_split`."""
    by_device = rows.reshape(rows.shape[0], num_devices, -1, *rows.shape[2:])
    return jnp.swapaxes(by_device, 0, 1).reshape(-1, *rows.shape[2:])
