"""Spatial convolution with the authors' defaults: bias, Glorot uniform kernel, SAME padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import lax

from drifa_jax.models.batch_norm import BatchNorm
from drifa_jax.models.initial import glorot_uniform, zeros
from drifa_jax.typing import FeatureMap

PADDINGS = ("same", "symmetric")


@dataclass(frozen=True)
class LayerOptions:
    """What every convolution and batch norm of one network shares.

    Attributes:
      dtype: of convolutions and activations; parameters and statistics stay float32.
      padding: "same" pads strided convolutions at the end, as TensorFlow and JAX do;
        "symmetric" pads both sides alike, as PyTorch does. They differ where the stride is 2,
        so weights trained under one give other features under the other.
      batch_norm_epsilon: added to the variance (authors 1e-3, PyTorch 1e-5).
      batch_norm_momentum: weight of the old moving average.
      batch_norm_unbiased: whether moving variances take the unbiased batch variance, as in
        Keras 2 and PyTorch.
    """

    dtype: Any = jnp.float32
    padding: str = "same"
    batch_norm_epsilon: float = 1e-3
    batch_norm_momentum: float = 0.99
    batch_norm_unbiased: bool = False

    def __post_init__(self):
        if self.padding not in PADDINGS:
            raise ValueError(f"padding is {self.padding!r}; choose one of {PADDINGS}.")

    def window_padding(self, window: int, num_axes: int = 2) -> str | Sequence[tuple[int, int]]:
        """The padding argument of a convolution or pool with this window."""
        if self.padding == "same":
            return "SAME"
        return (((window - 1) // 2, window // 2),) * num_axes

    def batch_norm(self, num_channels: int) -> BatchNorm:
        """A batch norm with this network's constants."""
        return BatchNorm(
            num_channels,
            epsilon=self.batch_norm_epsilon,
            momentum=self.batch_norm_momentum,
            unbiased=self.batch_norm_unbiased,
        )


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
        options: LayerOptions,
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
