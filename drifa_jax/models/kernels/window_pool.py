"""The stem's 3x3 max pool with stride 2, with a gradient about as fast as its forward pass.

XLA's own gradient of a windowed maximum scans every window again (`select_and_scatter`) and
costs many times the forward pass on CPU. Here the forward pass remembers which window position
won, one byte an output pixel, and the backward pass adds one masked, dilated copy of the
cotangent per position. Measured by `benchmarks/train_step.py --parts`. On TPUs these copies would
go through memory one by one, and XLA's own gradient is the better one (docs/performance.md).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from drifa_jax.models.kernels.tracing import hand_written
from drifa_jax.typing import FeatureMap

WINDOW = 3
STRIDE = 2
_Pads = tuple[tuple[int, int], ...]


def max_pool_3x3(x: FeatureMap, padding: str | Sequence[tuple[int, int]] = "SAME") -> FeatureMap:
    """Maximum over windows of 3 with stride 2 along every spatial axis.

    Where several positions of a window hold the maximum, the gradient goes to the first in
    row-major order, as in TensorFlow and PyTorch.

    Args:
      x: `[b, *space, c]`.
      padding: "SAME" (the extra pixel at the end, as TensorFlow) or explicit `(low, high)`
        pads per spatial axis (`(1, 1)` is PyTorch's). Padding never wins.
    """
    space = x.shape[1:-1]
    pads = tuple(_same_pads(n) for n in space) if padding == "SAME" else tuple(padding)
    return _max_pool(x, pads)


def _same_pads(size: int) -> tuple[int, int]:
    total = max((-(-size // STRIDE) - 1) * STRIDE + WINDOW - size, 0)
    return total // 2, total - total // 2


def _plain_max_pool(x: FeatureMap, pads: _Pads) -> FeatureMap:
    window, strides = ((1, *(n,) * len(pads), 1) for n in (WINDOW, STRIDE))
    lowest = np.array(-np.inf, x.dtype)  # a constant, by which JAX knows how to differentiate
    return lax.reduce_window(x, lowest, lax.max, window, strides, ((0, 0), *pads, (0, 0)))


def _forward(x: FeatureMap, pads: _Pads):
    positions = _window_positions(x, pads)
    best, winner = positions[0], jnp.zeros(positions[0].shape, jnp.uint8)
    for number, candidate in enumerate(positions[1:], start=1):
        winner = jnp.where(candidate > best, jnp.uint8(number), winner)
        best = jnp.maximum(best, candidate)
    return best, (winner, x.shape)


def _backward(pads: _Pads, residuals, cotangent: FeatureMap):
    winner, shape = residuals
    zero = jnp.zeros((), cotangent.dtype)
    num_windows = winner.shape[1:-1]
    total = None
    for number, offset in enumerate(itertools.product(range(WINDOW), repeat=len(pads))):
        placement = [
            (o - low, size - (o - low) - (STRIDE * (n - 1) + 1), STRIDE - 1)
            for o, (low, _), size, n in zip(offset, pads, shape[1:-1], num_windows, strict=True)
        ]
        masked = jnp.where(winner == number, cotangent, zero)
        placed = lax.pad(masked, zero, [(0, 0, 0), *placement, (0, 0, 0)])
        total = placed if total is None else total + placed
    return (total,)


_max_pool = hand_written(_plain_max_pool, _forward, _backward, (1,), plain_on=("tpu",))


def _window_positions(x: FeatureMap, pads: _Pads) -> list[FeatureMap]:
    """One strided view of the padded map per window position, in row-major order."""
    lowest = jnp.array(-jnp.inf, x.dtype)
    padded = lax.pad(x, lowest, [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)])
    starts = itertools.product(range(WINDOW), repeat=len(pads))
    sizes = [(n - WINDOW) // STRIDE + 1 for n in padded.shape[1:-1]]
    return [
        lax.slice(
            padded,
            (0, *start, 0),
            (
                x.shape[0],
                *(s + STRIDE * (n - 1) + 1 for s, n in zip(start, sizes, strict=True)),
                x.shape[-1],
            ),
            (1, *(STRIDE,) * len(pads), 1),
        )
        for start in starts
    ]
