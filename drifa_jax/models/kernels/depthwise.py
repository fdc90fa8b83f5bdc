"""Depthwise convolution, each channel by its own window, with a gradient that suits XLA on CPU.

XLA on CPU computes grouped convolutions by a loop that no vector unit helps with. As a sum of
shifted products, one for each position of the window, the channels lie side by side and one fused
pass does all: 15 times faster forwards on `[8, 56, 56, 96]` with windows of 7. The gradient of
the map is such a sum again; that of the kernel goes over the map row by row, so that what it sums
stays in the cache. Elsewhere, and for windows of many positions, XLA's own convolution is used.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from drifa_jax.models.kernels.tracing import hand_written
from drifa_jax.models.pooling import at_least_float32
from drifa_jax.typing import FeatureMap

MOST_POSITIONS = 64
"""Positions of a window up to which the sum is written out."""

Pads = tuple[tuple[int, int], ...]


def depthwise(
    x: FeatureMap, kernel: jax.Array, stride: int, padding: str | Sequence[tuple[int, int]]
) -> FeatureMap:
    """Filters every channel by itself.

    Args:
      x: `[b, *space, c]`.
      kernel: `[*window, 1, c]`, in the dtype of `x`.
      stride: along every spatial axis.
      padding: "SAME", as TensorFlow pads, or `(low, high)` per spatial axis.
    """
    space, window = x.shape[1:-1], kernel.shape[:-2]
    if padding == "SAME":
        pads = tuple(lax.padtype_to_pads(space, window, (stride,) * len(space), "SAME"))
    else:
        pads = tuple(tuple(pair) for pair in padding)
    if kernel.size // kernel.shape[-1] > MOST_POSITIONS:
        return plain_depthwise(x, kernel, stride, pads)
    return _depthwise(x, kernel, stride, pads)


def plain_depthwise(x: FeatureMap, kernel: jax.Array, stride: int, pads: Pads) -> FeatureMap:
    """The same by XLA's grouped convolution."""
    space = "DHW"[-len(pads) :]
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride,) * len(pads),
        pads,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        feature_group_count=x.shape[-1],
    )


def _value(x, kernel, stride, pads):
    plain = functools.partial(plain_depthwise, stride=stride, pads=pads)
    shifted = functools.partial(_shifted_products, stride=stride, pads=pads)
    return lax.platform_dependent(x, kernel, cpu=shifted, default=plain)


def _forward(x, kernel, stride, pads):
    return _value(x, kernel, stride, pads), (x, kernel)


def _backward(stride, pads, residuals, cotangent):
    def by_xla(x, kernel, cotangent):
        plain = functools.partial(plain_depthwise, stride=stride, pads=pads)
        return jax.vjp(plain, x, kernel)[1](cotangent)

    def by_shifts(x, kernel, cotangent):
        flipped = lax.rev(kernel, tuple(range(len(pads))))
        return (
            _shifted_products(*_spread(cotangent, x, kernel, stride, pads, flipped)),
            _kernel_gradient(x, kernel, cotangent, stride, pads),
        )

    return lax.platform_dependent(*residuals, cotangent, cpu=by_shifts, default=by_xla)


_depthwise = hand_written(plain_depthwise, _forward, _backward, (2, 3))


def _shifted_products(x, kernel, stride, pads):
    """One product of a shifted view of the padded map per position, summed in float32."""
    padded, window = _padded(x, pads), kernel.shape[:-2]
    counts = _num_windows(padded, window, stride)
    wide = at_least_float32(x)
    total = None
    for offset in itertools.product(*map(range, window)):
        weight = kernel[offset].astype(wide).reshape((1,) * (x.ndim - 1) + (-1,))
        product = _view(padded, offset, counts, (stride,) * len(pads)).astype(wide) * weight
        total = product if total is None else total + product
    return total.astype(x.dtype)


def _spread(cotangent, x, kernel, stride, pads, flipped):
    """Arguments of `_shifted_products` whose result is the gradient of the map."""
    spread = [(0, 0, 0)]
    for size, side, count, (low, high) in zip(
        x.shape[1:-1], kernel.shape, cotangent.shape[1:-1], pads, strict=False
    ):
        unread = size + low + high - (stride * (count - 1) + side)
        spread.append((side - 1 - low, side - 1 + unread - high, stride - 1))
    dilated = lax.pad(cotangent, jnp.zeros((), cotangent.dtype), [*spread, (0, 0, 0)])
    return dilated, flipped, 1, ((0, 0),) * len(pads)


def _kernel_gradient(x, kernel, cotangent, stride, pads):
    """For each position, the sum of shifted map times cotangent, one row of windows at a time."""
    padded, window = _padded(x, pads), kernel.shape[:-2]
    wide = at_least_float32(x)
    counts = (window[0], *cotangent.shape[2:-1])
    strides = (1, *(stride,) * (len(pads) - 1))
    others = tuple(axis for axis in range(x.ndim - 1) if axis != 1)

    def add_row(row, total):
        seen = lax.dynamic_slice_in_dim(padded, row * stride, window[0], 1).astype(wide)
        given = lax.dynamic_slice_in_dim(cotangent, row, 1, 1).astype(wide)
        given = jnp.broadcast_to(given, (given.shape[0], *counts, given.shape[-1]))
        sums = [
            jnp.sum(_view(seen, (0, *offset), counts, strides) * given, others)
            for offset in itertools.product(*map(range, window[1:]))
        ]
        return total + jnp.stack(sums, 1)

    num_positions = kernel.size // (window[0] * kernel.shape[-1])
    zero = jnp.zeros((window[0], num_positions, kernel.shape[-1]), wide)
    total = lax.fori_loop(0, cotangent.shape[1], add_row, zero)
    return total.reshape(kernel.shape).astype(kernel.dtype)


def _padded(x, pads):
    return lax.pad(
        x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*pair, 0) for pair in pads), (0, 0, 0)]
    )


def _num_windows(padded, window, stride):
    return tuple(
        (size - side) // stride + 1 for size, side in zip(padded.shape[1:-1], window, strict=True)
    )


def _view(x, starts, counts, strides):
    """Along every spatial axis, `count` elements from `start` on in steps of `stride`."""
    limits = [
        start + stride * (count - 1) + 1
        for start, count, stride in zip(starts, counts, strides, strict=True)
    ]
    return lax.slice(x, (0, *starts, 0), (x.shape[0], *limits, x.shape[-1]), (1, *strides, 1))
