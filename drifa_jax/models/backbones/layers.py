"""Layers that several backbones share and the paper's network does not have."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from drifa_jax.errors import UserError
from drifa_jax.models.convolution import Convolution
from drifa_jax.models.initial import glorot_uniform, ones, zeros
from drifa_jax.models.kernels.depthwise import depthwise
from drifa_jax.models.pointwise import over_channels
from drifa_jax.models.pooling import at_least_float32
from drifa_jax.network_options import NetworkOptions
from drifa_jax.typing import FeatureMap


class LayerNorm(nnx.Module):
    """Each position over its channels: `(x - mean) / sqrt(var + epsilon) * scale + bias`.

    Parameters: `scale` and `bias` `[num_channels]`, float32. Statistics are in at least float32.

    Source: Ba, Kiros and Hinton, "Layer normalization", 2016.
    """

    def __init__(self, num_channels: int, *, epsilon: float = 1e-6):
        self.epsilon = epsilon
        self.scale = nnx.Param(ones(num_channels))
        self.bias = nnx.Param(zeros(num_channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., c] -> [..., c]`, in the dtype of `x`."""
        wide = x.astype(at_least_float32(x))
        deviation = wide - jnp.mean(wide, -1, keepdims=True)
        var = jnp.mean(lax.square(deviation), -1, keepdims=True)
        normal = deviation * lax.rsqrt(var + self.epsilon)
        y = normal * per_channel(self.scale, normal) + per_channel(self.bias, normal)
        return y.astype(x.dtype)


class PatchConvolution(nnx.Module):
    """A convolution whose windows touch and do not overlap: patches times a matrix.

    What is left of the map at its far ends, smaller than a window, is not read, as in PyTorch.

    Args:
      num_in: channels of the input.
      num_out: channels of the output.
      window: side of a patch.
      num_axes: spatial axes.
      options: dtype.
      rngs: key of the initial weights.

    Parameters: `kernel` `[*window, num_in, num_out]` and `bias` `[num_out]`, float32.
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        window: int,
        *,
        num_axes: int = 2,
        options: NetworkOptions,
        rngs: nnx.Rngs,
    ):
        shape = (*(window,) * num_axes, num_in, num_out)
        self.kernel = nnx.Param(glorot_uniform(rngs.params(), shape))
        self.bias = nnx.Param(zeros(num_out))
        self.window = window
        self.dtype = options.dtype

    def __call__(self, x: FeatureMap) -> FeatureMap:
        """`[b, *space, num_in] -> [b, *(space // window), num_out]`."""
        flat = patches(x.astype(self.dtype), self.window)
        kernel = self.kernel[...].astype(self.dtype).reshape(flat.shape[-1], -1)
        y = over_channels(flat, kernel)
        return y + per_channel(self.bias, y)


class Dense(nnx.Module):
    """A matrix over the channels, with or without bias: a 1x1 convolution without window axes.

    Parameters: `kernel` `[num_in, num_out]` and `bias` `[num_out]`, float32.
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        bias: bool = True,
        options: NetworkOptions,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(glorot_uniform(rngs.params(), (num_in, num_out)))
        self.bias = nnx.Param(zeros(num_out)) if bias else None
        self.dtype = options.dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., num_in] -> [..., num_out]`, in `dtype`."""
        y = over_channels(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return y if self.bias is None else y + per_channel(self.bias, y)


class DepthwiseConvolution(Convolution):
    """A convolution of every channel by itself; see `depthwise`."""

    def __init__(
        self,
        num_channels: int,
        window: int,
        stride: int = 1,
        *,
        bias: bool = True,
        num_axes: int = 2,
        options: NetworkOptions,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            num_channels,
            num_channels,
            window,
            stride,
            groups=num_channels,
            bias=bias,
            num_axes=num_axes,
            options=options,
            rngs=rngs,
        )

    def __call__(self, x: FeatureMap) -> FeatureMap:
        """The filtered map, in `dtype`."""
        kernel = self.kernel[...].astype(self.dtype)
        y = depthwise(x.astype(self.dtype), kernel, self.stride, self.padding)
        return y if self.bias is None else y + per_channel(self.bias, y)


def per_channel(vector: nnx.Param, x: jax.Array) -> jax.Array:
    """A parameter `[c]`, shaped and cast to meet `x` `[..., c]`."""
    return vector[...].astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def patches(x: FeatureMap, window: int) -> FeatureMap:
    """`[b, *space, c] -> [b, *(space // window), window ** num_axes * c]`, row-major in a patch."""
    batch, *space, num_channels = x.shape
    counts = [size // window for size in space]
    if 0 in counts:
        sides = " x ".join(map(str, space))
        raise UserError(
            f"A map of {sides} is smaller than the windows of {window} that this backbone reads it "
            "by: raise height and width (and depth) in data.modalities, or choose a ResNet as "
            "backbone."
        )
    for axis, count in enumerate(counts, start=1):
        x = lax.slice_in_dim(x, 0, count * window, axis=axis)
    x = x.reshape(batch, *(side for count in counts for side in (count, window)), num_channels)
    num_axes = len(space)
    outer, inner = range(1, 2 * num_axes, 2), range(2, 2 * num_axes + 1, 2)
    x = x.transpose(0, *outer, *inner, 2 * num_axes + 1)
    return x.reshape(batch, *counts, math.prod([window] * num_axes) * num_channels)
