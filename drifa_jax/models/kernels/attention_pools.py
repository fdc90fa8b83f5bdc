"""The pooled vectors that HIFA and CLIA read from a map, with gradients written out.

Differentiating the plain formulas stores pre-activations, gates and masks of the maxima for each
of five 1x1 convolutions, and transposes maps to multiply them. Here the backward pass keeps the
gates and one byte a pixel for HIFA's deepest maximum, and every product contracts arrays as they
lie. Test: tests/models/test_mfa.py.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from drifa_jax.models.kernels.extremes import holds_extreme, max_pool, share_of_extreme
from drifa_jax.models.kernels.tracing import hand_written
from drifa_jax.models.pointwise import Weights, pointwise
from drifa_jax.models.pooling import at_least_float32, average_pool, over_space, spatial_axes
from drifa_jax.typing import FeatureMap, Pooled

HIFAPools = tuple[Pooled, Pooled, Pooled, Pooled]
HIFAConvolutions = tuple[Weights, Weights, Weights, Weights]


def _hifa_pools(convs: HIFAConvolutions, x: FeatureMap) -> HIFAPools:
    """Average of the first gate map, maximum of the second, average of the third, and maximum
    of the fourth before its sigmoid; each `[b, c]` in at least float32.

    Weights and `x` share one dtype.
    """
    conv1, conv2, conv3, conv4 = convs
    gate1 = jax.nn.sigmoid(pointwise(x, conv1))
    gate2 = jax.nn.sigmoid(pointwise(gate1, conv2))
    gate3 = jax.nn.sigmoid(pointwise(gate1 + gate2, conv3))
    fourth = pointwise(gate3, conv4)
    return average_pool(gate1), max_pool(gate2), average_pool(gate3), max_pool(fourth)


def _forward(convs, x):
    conv1, conv2, conv3, conv4 = convs
    gate1 = jax.nn.sigmoid(pointwise(x, conv1))
    gate2 = jax.nn.sigmoid(pointwise(gate1, conv2))
    gate3 = jax.nn.sigmoid(pointwise(gate1 + gate2, conv3))
    fourth = pointwise(gate3, conv4)
    max2, max4 = (jnp.max(m, axis=spatial_axes(x)) for m in (gate2, fourth))
    holds4 = holds_extreme(fourth, max4)
    dtype = at_least_float32(x)
    pools = average_pool(gate1), max2.astype(dtype), average_pool(gate3), max4.astype(dtype)
    return pools, (convs, x, gate1, gate2, gate3, holds4)


def _backward(residuals, cotangents):
    convs, x, gate1, gate2, gate3, holds4 = residuals
    kernel1, kernel2, kernel3, kernel4 = (kernel for kernel, _ in convs)
    average1, maximum2, average3, maximum4 = cotangents
    num_pixels = math.prod(x.shape[1:-1])
    count4 = jnp.sum(holds4, spatial_axes(x), dtype=maximum4.dtype)
    d_fourth = jnp.where(holds4, over_space(maximum4 / count4, x), jnp.zeros((), x.dtype))
    d_gate3 = _times_transposed(d_fourth, kernel4) + over_space(average3 / num_pixels, x)
    d_third = d_gate3 * gate3 * (1 - gate3)
    d_sum = _times_transposed(d_third, kernel3)
    # Of the map computed here: rounding may have put the forward pass's maximum elsewhere.
    max2 = jnp.max(gate2, axis=spatial_axes(x))
    d_gate2 = d_sum + share_of_extreme(gate2, max2, maximum2)
    d_second = d_gate2 * gate2 * (1 - gate2)
    d_gate1 = d_sum + _times_transposed(d_second, kernel2) + over_space(average1 / num_pixels, x)
    d_first = d_gate1 * gate1 * (1 - gate1)
    d_convs = (
        _weights_cotangent(x, d_first),
        _weights_cotangent(gate1, d_second),
        _weights_cotangent(gate1 + gate2, d_third),
        _weights_cotangent(gate3, d_fourth),
    )
    return d_convs, _times_transposed(d_first, kernel1)


hifa_pools = hand_written(_hifa_pools, _forward, _backward)


def _clia_pool(conv: Weights, x: FeatureMap) -> Pooled:
    """Average over space of `sigmoid(conv x)`, `[b, c]` in at least float32.

    Weights and `x` share one dtype.
    """
    return average_pool(jax.nn.sigmoid(pointwise(x, conv)))


def _clia_forward(conv, x):
    gate = jax.nn.sigmoid(pointwise(x, conv))
    return average_pool(gate), (conv[0], x, gate)


def _clia_backward(residuals, average):
    kernel, x, gate = residuals
    d_map = over_space(average / math.prod(x.shape[1:-1]), x) * gate * (1 - gate)
    return _weights_cotangent(x, d_map), _times_transposed(d_map, kernel)


clia_pool = hand_written(_clia_pool, _clia_forward, _clia_backward)


def _times_transposed(cotangent: FeatureMap, kernel: jax.Array) -> FeatureMap:
    """`cotangent @ kernel.T`, the way back through a 1x1 convolution."""
    return lax.dot_general(cotangent, kernel, (((cotangent.ndim - 1,), (1,)), ((), ())))


def _weights_cotangent(x: FeatureMap, cotangent: FeatureMap) -> Weights:
    """Cotangents of kernel and bias of a 1x1 convolution that read `x`."""
    pixels = tuple(range(x.ndim - 1))
    kernel = lax.dot_general(x, cotangent, ((pixels, pixels), ((), ())))
    bias = jnp.sum(cotangent, pixels, dtype=at_least_float32(x)).astype(x.dtype)
    return kernel, bias
