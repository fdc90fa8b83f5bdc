"""Batch norm whose statistics are float32 and count present records only.

Flax's own layer casts its statistics to the compute dtype and averages an empty selection to
NaN. Here statistics stay float32 under bfloat16 compute, and a batch in which no record holds
the modality leaves them as they were.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import lax

from drifa_jax.models.initial import ones, zeros
from drifa_jax.models.pooling import at_least_float32
from drifa_jax.typing import FeatureMap, Present


class BatchNorm(nnx.Module):
    """Each channel over batch and space: `(x - mean) / sqrt(var + epsilon) * scale + bias`.

    Args:
      num_channels: channels of the map.
      epsilon: added to the variance (the authors' 1e-3; PyTorch's default is 1e-5).
      momentum: weight of the old moving average (the authors' 0.99).

    State: `mean` and `var`, moving averages of the batch statistics, float32. The variance that
    enters the moving average is the biased one, as in Keras 3 (Keras 2 and PyTorch enter the
    unbiased one, larger by n / (n - 1) for n pixels in the batch).
    """

    def __init__(self, num_channels: int, *, epsilon: float = 1e-3, momentum: float = 0.99):
        self.epsilon = epsilon
        self.momentum = momentum
        self.scale = nnx.Param(ones(num_channels))
        self.bias = nnx.Param(zeros(num_channels))
        self.mean = nnx.BatchStat(zeros(num_channels))
        self.var = nnx.BatchStat(ones(num_channels))

    def __call__(self, x: FeatureMap, *, train: bool, present: Present | None = None) -> FeatureMap:
        """The normalised map, shaped and typed as `x`.

        Args:
          x: `[b, *space, c]`.
          train: whether to use, and to remember, this batch's statistics; otherwise the moving
            averages are used and nothing changes.
          present: `[b]` bool; records whose features enter the statistics (all when None).
        """
        if train:
            mean, var = self._batch_statistics(x.astype(at_least_float32(x)), present)
            self._remember(mean, var, present)
        else:
            mean, var = self.mean[...], self.var[...]
        slope = lax.rsqrt(var + self.epsilon) * self.scale[...]
        row = (1,) * (x.ndim - 1) + (-1,)
        centred = x.astype(at_least_float32(x)) - mean.reshape(row)
        return (centred * slope.reshape(row) + self.bias[...].reshape(row)).astype(x.dtype)

    def _batch_statistics(self, x, present):
        axes = tuple(range(x.ndim - 1))
        row = (1,) * (x.ndim - 1) + (-1,)
        if present is None:
            mean = jnp.mean(x, axes)
            return mean, jnp.mean(lax.square(x - mean.reshape(row)), axes)
        counted = present.reshape(-1, *(1,) * (x.ndim - 1))
        pixels_per_record = x[0, ..., 0].size
        count = (jnp.maximum(jnp.sum(present), 1) * pixels_per_record).astype(x.dtype)
        zero = jnp.zeros((), x.dtype)
        mean = jnp.sum(jnp.where(counted, x, zero), axes) / count
        deviation = jnp.where(counted, x - mean.reshape(row), zero)
        return mean, jnp.sum(lax.square(deviation), axes) / count

    def _remember(self, mean, var, present):
        kept = jnp.asarray(self.momentum, mean.dtype)
        if present is not None:
            kept = jnp.where(jnp.any(present), kept, jnp.ones_like(kept))
        self.mean[...] = kept * self.mean[...] + (1 - kept) * lax.stop_gradient(mean)
        self.var[...] = kept * self.var[...] + (1 - kept) * lax.stop_gradient(var)
