"""The 1x1 convolution: one matrix over the channel axis, whatever the other axes are."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx
from jax import lax

from drifa_jax.models.initial import glorot_uniform, zeros
from drifa_jax.models.kernels.tracing import tracing

Weights = tuple[jax.Array, jax.Array]
"""Kernel `[num_in, num_out]` and bias `[num_out]` of a 1x1 convolution."""


class Pointwise(nnx.Module):
    """A 1x1 convolution with the authors' initial values: Glorot uniform kernel, zero bias.

    Args:
      num_in: channels of the input.
      num_out: channels of the output.
      dtype: of the arithmetic; None computes in the wider of input and parameters, which keeps
        pooled vectors float32 (float64 in a float64 run) whatever the dtype of the maps.
      rngs: key of the initial weights.

    Parameters: `kernel` `[num_in, num_out]` and `bias` `[num_out]`, float32.
    """

    def __init__(self, num_in: int, num_out: int, dtype: Any = None, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(glorot_uniform(rngs.params(), (num_in, num_out)))
        self.bias = nnx.Param(zeros(num_out))
        self.dtype = dtype

    @property
    def weights(self) -> Weights:
        """Kernel and bias in the dtype of the arithmetic."""
        kernel, bias = self.kernel[...], self.bias[...]
        return (kernel, bias) if self.dtype is None else _cast((kernel, bias), self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., num_in] -> [..., num_out]`."""
        return pointwise(x, self.weights)


def pointwise(x: jax.Array, weights: Weights) -> jax.Array:
    """`x @ kernel + bias` over the last axis.

    Where the dtypes differ, weights cast to a narrower dtype carry it over to the maps, and
    float32 weights lift pooled vectors to float32.
    """
    kernel, bias = weights
    if x.dtype != kernel.dtype:
        wider = max(x.dtype, kernel.dtype, key=lambda dtype: dtype.itemsize)
        x, (kernel, bias) = x.astype(wider), _cast(weights, wider)
    return over_channels(x, kernel) + bias.reshape((1,) * (x.ndim - 1) + (-1,))


def over_channels(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel` over the last axis: `[..., num_in] -> [..., num_out]`, in one dtype.

    On a map with axes XLA takes longer for the gradients than on a list of pixels; on a TPU, whose
    tiles a list would cut anew, it does not.
    """
    if x.ndim == 2 or tracing().platform == "tpu":
        return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def _cast(weights: Weights, dtype: Any) -> Weights:
    return weights[0].astype(dtype), weights[1].astype(dtype)
