"""Batch norm whose statistics are float32 and count present records only.

Flax's own layer casts its statistics to the compute dtype and averages an empty selection to
NaN. Here statistics stay float32 under bfloat16 compute, and a batch in which no record holds
the modality leaves them as they were.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from drifa_jax.models.initial import ones, zeros
from drifa_jax.models.kernels.normalise import counted, normalise, row
from drifa_jax.models.pooling import at_least_float32
from drifa_jax.network_options import NetworkOptions
from drifa_jax.typing import FeatureMap, Pooled, Present


class BatchNorm(nnx.Module):
    """Each channel over batch and space: `(x - mean) / sqrt(var + epsilon) * scale + bias`.

    Args:
      num_channels: channels of the map.
      epsilon: added to the variance (the authors' 1e-3; PyTorch's default is 1e-5).
      momentum: weight of the old moving average (the authors' 0.99).
      unbiased: whether the variance that enters the moving average is multiplied by
        n / (n - 1) for n counted pixels, as in Keras 2 and PyTorch; Keras 3 and the default
        here enter the biased one. Normalisation itself uses the biased one everywhere.

    State: `mean` and `var`, moving averages of the batch statistics, float32.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        epsilon: float = 1e-3,
        momentum: float = 0.99,
        unbiased: bool = False,
    ):
        self.epsilon = epsilon
        self.momentum = momentum
        self.unbiased = unbiased
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
        scale, bias = self.scale[...], self.bias[...]
        if not train:
            return _moving(x, scale, bias, self.mean[...], self.var[...], self.epsilon)
        y, mean, var = normalise(x, scale, bias, present, self.epsilon)
        self.remember(x, mean, var, present)
        return y

    def remember(self, x: FeatureMap, mean: Pooled, var: Pooled, present: Present | None) -> None:
        """Moves the averages towards the statistics `[c]` of a map shaped as `x`."""
        if self.unbiased:
            var = var * _bessel(x, present)
        kept = jnp.asarray(self.momentum, mean.dtype)
        if present is not None:
            kept = jnp.where(jnp.any(present), kept, jnp.ones_like(kept))
        # Assigning through `[...]` compares shardings, which is slow under a trace.
        self.mean.set_value(kept * self.mean[...] + (1 - kept) * lax.stop_gradient(mean))
        self.var.set_value(kept * self.var[...] + (1 - kept) * lax.stop_gradient(var))


def batch_norm(num_channels: int, options: NetworkOptions) -> BatchNorm:
    """A batch norm with a network's constants."""
    return BatchNorm(
        num_channels,
        epsilon=options.batch_norm_epsilon,
        momentum=options.batch_norm_momentum,
        unbiased=options.batch_norm_unbiased,
    )


@functools.partial(jax.jit, static_argnums=5)
def _moving(x, scale, bias, mean, var, epsilon):
    slope = lax.rsqrt(var + epsilon) * scale
    y = (x.astype(at_least_float32(x)) - row(mean, x)) * row(slope, x) + row(bias, x)
    return y.astype(x.dtype)


def _bessel(x: FeatureMap, present: Present | None):
    """`n / (n - 1)` for the n pixels in the statistics; at most one where n is 0 or 1."""
    count = jnp.asarray(counted(x, present)[0], at_least_float32(x))
    return count / jnp.maximum(count - 1, 1)
