"""Spatial convolution with the authors' defaults: bias, Glorot uniform kernel, SAME padding."""

from __future__ import annotations

from flax import nnx
from jax import lax

from drifa_jax.models.initial import glorot_uniform, zeros
from drifa_jax.network_options import NetworkOptions
from drifa_jax.typing import FeatureMap


class Convolution(nnx.Module):
    """A square convolution with bias, `[b, h, w, num_in] -> [b, h / stride, w / stride, num_out]`.

    Args:
      num_in: channels of the input.
      num_out: channels of the output.
      window: side of the kernel.
      stride: step of the window along both axes.
      options: dtype and padding.
      rngs: key of the initial weights.

    Parameters: `kernel` `[window, window, num_in, num_out]` and `bias` `[num_out]`, float32.
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        window: int,
        stride: int,
        *,
        options: NetworkOptions,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(glorot_uniform(rngs.params(), (window, window, num_in, num_out)))
        self.bias = nnx.Param(zeros(num_out))
        self.stride = stride
        self.dtype = options.dtype
        self.padding = options.window_padding(window)

    def __call__(self, x: FeatureMap) -> FeatureMap:
        """The filtered map, in `dtype`."""
        y = lax.conv_general_dilated(
            x.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + self.bias[...].astype(self.dtype).reshape(1, 1, 1, -1)
