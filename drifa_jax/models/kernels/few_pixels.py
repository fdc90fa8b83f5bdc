"""Convolution, which for a map of few pixels is one product of all that the window sees.

Where the window has more positions than the map has pixels XLA lets them change places, and on CPUs
nothing but a loop over single products is left for that: a quarter of the training step of
a ResNet-18 at 64 px, for the two by two pixels of its last stage and for the gradient of the
convolution before it. Test: tests/models/kernels/test_few_pixels.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from drifa_jax.models.kernels.tracing import tracing
from drifa_jax.models.pointwise import over_channels
from drifa_jax.typing import FeatureMap

Pads = Sequence[tuple[int, int]]


def convolve(
    x: FeatureMap, kernel: jax.Array, stride: int, padding: str | Pads, groups: int = 1
) -> FeatureMap:
    """`[b, *space, c] -> [b, *(space / stride), o]`.

    Args:
      x: the map, in the dtype of `kernel`.
      kernel: `[*window, c / groups, o]`.
      stride: along every spatial axis.
      padding: "SAME", as TensorFlow pads, or `(low, high)` per spatial axis.
      groups: of channels that do not see each other.
    """
    space, window = x.shape[1:-1], kernel.shape[:-2]
    strides = (stride,) * len(space)
    pads = lax.padtype_to_pads(space, window, strides, padding) if padding == "SAME" else padding
    seen = [
        (low + side + high - width) // stride + 1
        for (low, high), side, width in zip(pads, space, window, strict=True)
    ]
    way = tracing()
    few = math.prod(seen) < math.prod(window) and groups == 1
    if few and not way.plain and way.platform != "tpu":
        return _product(x, kernel, stride, pads, seen)
    axes = "DHW"[-len(space) :]
    numbers = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    return lax.conv_general_dilated(
        x, kernel, strides, pads, dimension_numbers=numbers, feature_group_count=groups
    )


def _product(x, kernel, stride, pads, seen):
    """All that each place of the window sees, side by side, times the kernel as a matrix."""
    batch, channels = x.shape[0], x.shape[-1]
    places, reads = _reads(x.shape[1:-1], kernel.shape[:-2], stride, pads, seen)
    num_pixels, num_places = math.prod(seen), len(places)
    # Ones and zeros pick pixels exactly, and the way back is a product again.
    picked = lax.dot_general(
        jnp.asarray(reads, x.dtype),
        x.reshape(batch, -1, channels),
        (((1,), (1,)), ((), ())),
        precision=lax.Precision.HIGHEST,
    )
    picked = picked.reshape(num_pixels, num_places, batch, channels).transpose(2, 0, 1, 3)
    kernels = kernel.reshape(-1, *kernel.shape[-2:])
    if num_places < len(kernels):
        kernels = jnp.stack([kernels[place] for place in places])
    y = over_channels(
        picked.reshape(batch, num_pixels, num_places * channels),
        kernels.reshape(num_places * channels, -1),
    )
    return y.reshape(batch, *seen, -1)


def _reads(space, window, stride, pads, seen):
    """Places of the window, counted row by row, that see the map from anywhere, and what they see.

    Returns:
      The places; and `[pixels of the result * places, pixels of the map]`, 1 where a place sees a
      pixel, else 0. A row of zeros sees padding.
    """
    number = np.full([low + side + high for (low, high), side in zip(pads, space, strict=True)], -1)
    inside = tuple(slice(low, low + side) for (low, _), side in zip(pads, space, strict=True))
    number[inside] = np.arange(math.prod(space)).reshape(space)
    columns = []
    for place in np.ndindex(*window):
        steps = (
            slice(first, first + stride * (count - 1) + 1, stride)
            for first, count in zip(place, seen, strict=True)
        )
        columns.append(number[tuple(steps)].reshape(-1))
    places = [place for place, column in enumerate(columns) if (column >= 0).any()]
    pixels = np.stack([columns[place] for place in places], 1).reshape(-1, 1)
    return places, pixels == np.arange(math.prod(space))
