"""Convolution of volumes, with a forward and a backward pass that suit XLA on CPU.

XLA on CPU has fast convolutions of two spatial axes; for the gradient of the kernel of three it
loops over single products. A convolution of a volume is a sum of convolutions of its planes, one
for each place of the window along the depth, whose gradients are of two axes as well. Elsewhere
XLA's own convolution is used. Test: tests/models/kernels/test_volumes.py.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from drifa_jax.models.kernels.few_pixels import convolve
from drifa_jax.models.kernels.tracing import hand_written
from drifa_jax.typing import FeatureMap

Pads = tuple[tuple[int, int], ...]


def convolve_volumes(
    x: FeatureMap, kernel: jax.Array, stride: int, padding: str | Pads
) -> FeatureMap:
    """`[b, d, h, w, c] -> [b, d / stride, h / stride, w / stride, o]`.

    Args:
      x: the map, in the dtype of `kernel`.
      kernel: `[*window, c, o]`.
      stride: along every spatial axis.
      padding: "SAME", as TensorFlow pads, or `(low, high)` per spatial axis.
    """
    if padding == "SAME":
        padding = lax.padtype_to_pads(x.shape[1:-1], kernel.shape[:3], (stride,) * 3, "SAME")
    return _convolve(x, kernel, stride, tuple(tuple(pair) for pair in padding))


def plain_convolution(x: FeatureMap, kernel: jax.Array, stride: int, pads: Pads) -> FeatureMap:
    """The same by XLA's convolution of three axes."""
    numbers = ("NDHWC", "DHWIO", "NDHWC")
    return lax.conv_general_dilated(x, kernel, (stride,) * 3, pads, dimension_numbers=numbers)


def _by_planes(x, kernel, stride, pads):
    """One convolution of all planes for each place of the window along the depth."""
    batch, _, height, width, channels = x.shape
    nothing = (0, 0, 0)
    padded = lax.pad(x, jnp.zeros((), x.dtype), [nothing, (*pads[0], 0), nothing, nothing, nothing])
    depth = (padded.shape[1] - kernel.shape[0]) // stride + 1
    total = None
    for place in range(kernel.shape[0]):
        end = place + stride * (depth - 1) + 1
        planes = lax.slice_in_dim(padded, place, end, stride, axis=1)
        planes = planes.reshape(batch * depth, height, width, channels)
        y = convolve(planes, kernel[place], stride, pads[1:])
        total = y if total is None else total + y
    return total.reshape(batch, depth, *total.shape[1:])


def _value(x, kernel, stride, pads):
    ways = (functools.partial(way, stride=stride, pads=pads) for way in _WAYS)
    return lax.platform_dependent(x, kernel, **dict(zip(("cpu", "default"), ways, strict=True)))


def _forward(x, kernel, stride, pads):
    return _value(x, kernel, stride, pads), (x, kernel)


def _backward(stride, pads, residuals, cotangent):
    def back(way, x, kernel, cotangent):
        return jax.vjp(functools.partial(way, stride=stride, pads=pads), x, kernel)[1](cotangent)

    ways = (functools.partial(back, way) for way in _WAYS)
    return lax.platform_dependent(
        *residuals, cotangent, **dict(zip(("cpu", "default"), ways, strict=True))
    )


_WAYS = (_by_planes, plain_convolution)
"""On CPUs, and elsewhere."""

_convolve = hand_written(plain_convolution, _forward, _backward, (2, 3))
