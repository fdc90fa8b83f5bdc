"""Spatial convolution with the authors' defaults: bias, Glorot uniform kernel, SAME padding."""

from __future__ import annotations

import jax
from flax import nnx

from drifa_jax.models.initial import glorot_uniform, zeros
from drifa_jax.models.kernels.few_pixels import convolve
from drifa_jax.models.kernels.tracing import tracing
from drifa_jax.models.kernels.volumes import convolve_volumes
from drifa_jax.models.pointwise import over_channels
from drifa_jax.network_options import NetworkOptions
from drifa_jax.typing import FeatureMap


class Convolution(nnx.Module):
    """A convolution with equal sides, `[b, *space, num_in] -> [b, *(space / stride), num_out]`.

    Args:
      num_in: channels of the input.
      num_out: channels of the output.
      window: side of the kernel.
      stride: step of the window along every axis.
      groups: of channels that do not see each other; `num_in` of them is depthwise.
      bias: whether a bias is added.
      num_axes: spatial axes.
      options: dtype and padding.
      rngs: key of the initial weights.

    Parameters: `kernel` `[*window, num_in / groups, num_out]` and `bias` `[num_out]`, float32.
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        window: int,
        stride: int,
        *,
        groups: int = 1,
        bias: bool = True,
        num_axes: int = 2,
        options: NetworkOptions,
        rngs: nnx.Rngs,
    ):
        shape = (*(window,) * num_axes, num_in // groups, num_out)
        self.kernel = nnx.Param(glorot_uniform(rngs.params(), shape, groups=groups))
        self.bias = nnx.Param(zeros(num_out)) if bias else None
        self.stride = stride
        self.groups = groups
        self.dtype = options.dtype
        self.padding = options.window_padding(window, num_axes)

    def __call__(self, x: FeatureMap) -> FeatureMap:
        """The filtered map, in `dtype`."""
        y = self._filtered(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        if self.bias is None:
            return y
        return y + self.bias[...].astype(self.dtype).reshape((1,) * (x.ndim - 1) + (-1,))

    def _filtered(self, x: FeatureMap, kernel: jax.Array) -> FeatureMap:
        num_axes = x.ndim - 2
        one_pixel = kernel.size == kernel.shape[-2] * kernel.shape[-1]
        if one_pixel and self.groups == 1 and tracing().platform != "tpu":
            # XLA's gradient of such a convolution takes up to four times as long on CPU as that
            # of the matrix product.
            seen = x[(slice(None), *(slice(None, None, self.stride),) * num_axes)]
            return over_channels(seen, kernel.reshape(kernel.shape[-2:]))
        if num_axes == 3 and self.groups == 1:
            return convolve_volumes(x, kernel, self.stride, self.padding)
        return convolve(x, kernel, self.stride, self.padding, self.groups)
