"""The pooled vectors that HIFA and CLIA read from a map, with gradients written out.

Differentiating the plain formulas stores pre-activations, gates and masks of the maxima for each
of five 1x1 convolutions, and transposes maps to multiply them. Here the backward pass keeps the
gates and one byte a pixel for HIFA's deepest maximum, and every product contracts arrays as they
lie. On TPUs HIFA's first convolution and CLIA's, which read the same map, are one product: with 64
channels each would leave half of a register of 128 empty. Test: tests/models/test_mfa.py.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from drifa_jax.models.kernels.extremes import holds_extreme, max_pool, share_of_extreme
from drifa_jax.models.kernels.tracing import hand_written, tracing
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
    gate1 = jax.nn.sigmoid(pointwise(x, convs[0]))
    pools, deeper = _deeper(convs, gate1)
    return (average_pool(gate1), *pools), (convs, x, gate1, *deeper)


def _deeper(convs, gate1):
    """HIFA's other pools, and what the backward pass keeps of them."""
    _, conv2, conv3, conv4 = convs
    gate2 = jax.nn.sigmoid(pointwise(gate1, conv2))
    gate3 = jax.nn.sigmoid(pointwise(gate1 + gate2, conv3))
    fourth = pointwise(gate3, conv4)
    max2, max4 = (jnp.max(m, axis=spatial_axes(gate1)) for m in (gate2, fourth))
    holds4 = holds_extreme(fourth, max4)
    dtype = at_least_float32(gate1)
    pools = max2.astype(dtype), average_pool(gate3), max4.astype(dtype)
    return pools, (gate2, gate3, holds4)


def _backward(residuals, cotangents):
    convs, x, gate1, *deeper = residuals
    average1, *others = cotangents
    num_pixels = math.prod(x.shape[1:-1])
    d_convs, d_gate1 = _deeper_backward(convs, gate1, deeper, others)
    d_gate1 = d_gate1 + over_space(average1 / num_pixels, x)
    d_first = d_gate1 * gate1 * (1 - gate1)
    d_convs = (_weights_cotangent(x, d_first), *d_convs)
    return d_convs, _times_transposed(d_first, convs[0][0])


def _deeper_backward(convs, gate1, deeper, cotangents):
    """Cotangents of the last three convolutions and, through them, of the first gate map."""
    gate2, gate3, holds4 = deeper
    maximum2, average3, maximum4 = cotangents
    kernel2, kernel3, kernel4 = (kernel for kernel, _ in convs[1:])
    num_pixels = math.prod(gate1.shape[1:-1])
    count4 = jnp.sum(holds4, spatial_axes(gate1), dtype=maximum4.dtype)
    zero = jnp.zeros((), gate1.dtype)
    d_fourth = jnp.where(holds4, over_space(maximum4 / count4, gate1), zero)
    d_gate3 = _times_transposed(d_fourth, kernel4) + over_space(average3 / num_pixels, gate1)
    d_third = d_gate3 * gate3 * (1 - gate3)
    d_sum = _times_transposed(d_third, kernel3)
    # Of the map computed here: rounding may have put the forward pass's maximum elsewhere.
    max2 = jnp.max(gate2, axis=spatial_axes(gate1))
    d_gate2 = d_sum + share_of_extreme(gate2, max2, maximum2)
    d_second = d_gate2 * gate2 * (1 - gate2)
    # The shares of a maximum add up to its cotangent.
    d_bias4 = jnp.sum(maximum4, 0).astype(gate1.dtype)
    d_convs = (
        _weights_cotangent(gate1, d_second),
        _weights_cotangent(gate1 + gate2, d_third),
        (_kernel_cotangent(gate3, d_fourth), d_bias4),
    )
    return d_convs, d_sum + _times_transposed(d_second, kernel2)


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


def _attention_pools(
    convs: HIFAConvolutions, conv: Weights, x: FeatureMap
) -> tuple[HIFAPools, Pooled]:
    """The pools of HIFA and of CLIA from one map."""
    return _hifa_pools(convs, x), _clia_pool(conv, x)


def _side_by_side(convs, conv, x):
    width = convs[0][0].shape[1]
    first = tuple(jnp.concatenate(both, -1) for both in zip(convs[0], conv, strict=True))
    gates = jax.nn.sigmoid(pointwise(x, first))
    gate1, averages = gates[..., :width], average_pool(gates)
    pools, deeper = _deeper(convs, gate1)
    pools = (averages[:, :width], *pools), averages[:, width:]
    return pools, (convs, first[0], x, gates, *deeper)


def _side_by_side_backward(residuals, cotangents):
    convs, kernel, x, gates, *deeper = residuals
    (average1, *others), average = cotangents
    width = convs[0][0].shape[1]
    num_pixels = math.prod(x.shape[1:-1])
    d_convs, d_gate1 = _deeper_backward(convs, gates[..., :width], deeper, others)
    d_gates = jnp.pad(d_gate1, [(0, 0)] * (x.ndim - 1) + [(0, gates.shape[-1] - width)])
    averages = jnp.concatenate([average1, average], -1)
    d_gates = d_gates + over_space(averages / num_pixels, x)
    d_first = d_gates * gates * (1 - gates)
    d_kernel, d_bias = _weights_cotangent(x, d_first)
    d_hifa = (d_kernel[:, :width], d_bias[:width])
    d_clia = (d_kernel[:, width:], d_bias[width:])
    return (d_hifa, *d_convs), d_clia, _times_transposed(d_first, kernel)


attention_pools = hand_written(_attention_pools, _side_by_side, _side_by_side_backward)


def are_side_by_side() -> bool:
    """Whether `attention_pools` is the better way on the devices of the program at hand."""
    return tracing().platform == "tpu"


def _times_transposed(cotangent: FeatureMap, kernel: jax.Array) -> FeatureMap:
    """`cotangent @ kernel.T`, the way back through a 1x1 convolution."""
    return lax.dot_general(cotangent, kernel, (((cotangent.ndim - 1,), (1,)), ((), ())))


def _weights_cotangent(x: FeatureMap, cotangent: FeatureMap) -> Weights:
    """Cotangents of kernel and bias of a 1x1 convolution that read `x`."""
    return _kernel_cotangent(x, cotangent), _sum_over_pixels(cotangent)


def _kernel_cotangent(x: FeatureMap, cotangent: FeatureMap) -> jax.Array:
    pixels = tuple(range(x.ndim - 1))
    return lax.dot_general(x, cotangent, ((pixels, pixels), ((), ())))


def _sum_over_pixels(x: FeatureMap) -> jax.Array:
    """`[c]`, summed in at least float32.

    On CPUs as a product with ones: the map is there for other products, and a sum would compute
    it again, in one thread.
    """
    pixels, dtype = tuple(range(x.ndim - 1)), at_least_float32(x)
    if tracing().platform not in ("", "cpu"):
        return jnp.sum(x, pixels, dtype=dtype).astype(x.dtype)
    ones = jnp.ones(x.shape[:-1], x.dtype)
    total = lax.dot_general(
        ones,
        x,
        ((pixels, pixels), ((), ())),
        # As exact as a sum on a device that is not told of, and may round what it multiplies.
        precision=lax.Precision.HIGHEST,
        preferred_element_type=dtype,
    )
    return total.astype(x.dtype)
