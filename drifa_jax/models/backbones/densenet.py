"""DenseNet: every layer reads all layers before it at its resolution.

Source: Huang et al., "Densely connected convolutional networks", CVPR 2017 (DenseNet-BC).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from drifa_jax.models.backbones.contract import stage_per_resolution
from drifa_jax.models.backbones.layers import Dense, patches
from drifa_jax.models.batch_norm import batch_norm
from drifa_jax.models.convolution import Convolution
from drifa_jax.models.kernels.window_pool import max_pool_3x3
from drifa_jax.models.pooling import at_least_float32
from drifa_jax.network_options import NetworkOptions
from drifa_jax.typing import FeatureMap, Images, Present

BOTTLENECK = 4
"""Channels between a layer's two convolutions over those that it adds."""


@dataclass(frozen=True)
class DenseNetPlan:
    """Layers of every resolution, channels that each adds, and channels of the stem."""

    depths: tuple[int, ...]
    growth: int
    stem: int


DENSENET_PLANS = {"densenet121": DenseNetPlan((6, 12, 24, 16), 32, 64)}


class DenseLayer(nnx.Module):
    """Batch norm, ReLU, 1x1, batch norm, ReLU, 3x3; the result is put beside the input."""

    def __init__(self, num_in, growth, *, num_axes, options: NetworkOptions, rngs):
        num_inside = BOTTLENECK * growth
        self.norm1 = batch_norm(num_in, options)
        self.conv1 = Dense(num_in, num_inside, bias=False, options=options, rngs=rngs)
        self.norm2 = batch_norm(num_inside, options)
        self.conv2 = Convolution(
            num_inside, growth, 3, 1, bias=False, num_axes=num_axes, options=options, rngs=rngs
        )

    def __call__(self, x: FeatureMap, *, train: bool, present: Present | None) -> FeatureMap:
        """`[b, *space, num_in] -> [b, *space, num_in + growth]`."""
        y = self.conv1(jax.nn.relu(self.norm1(x, train=train, present=present)))
        y = self.conv2(jax.nn.relu(self.norm2(y, train=train, present=present)))
        return jnp.concatenate([x.astype(y.dtype), y], -1)


class Transition(nnx.Module):
    """Batch norm, ReLU, 1x1 to half the channels, mean of 2x2 (2x2x2) patches."""

    def __init__(self, num_in, num_out, *, options: NetworkOptions, rngs):
        self.norm = batch_norm(num_in, options)
        self.conv = Dense(num_in, num_out, bias=False, options=options, rngs=rngs)

    def __call__(self, x: FeatureMap, *, train: bool, present: Present | None) -> FeatureMap:
        """`[b, *space, num_in] -> [b, *(space // 2), num_out]`."""
        y = self.conv(jax.nn.relu(self.norm(x, train=train, present=present)))
        in_patches = patches(y, 2).reshape(
            y.shape[0], *(size // 2 for size in y.shape[1:-1]), -1, y.shape[-1]
        )
        return jnp.mean(in_patches, -2, dtype=at_least_float32(y)).astype(y.dtype)


class DenseNet(nnx.Module):
    """DenseNet as a `Backbone`: one stage a resolution, the last with the final norm and ReLU.

    Args:
      num_channels: channels of the modality's images.
      plan: for example `DENSENET_PLANS["densenet121"]`.
      num_axes: spatial axes.
      options: dtype, padding and batch norm constants.
      rngs: key of the initial weights.
    """

    def __init__(
        self,
        num_channels: int,
        plan: DenseNetPlan,
        *,
        num_axes: int = 2,
        options: NetworkOptions,
        rngs: nnx.Rngs,
    ):
        shared = {"num_axes": num_axes, "options": options, "rngs": rngs}
        self.pool_padding = options.window_padding(3, num_axes)
        self.conv = Convolution(num_channels, plan.stem, 7, 2, bias=False, **shared)
        self.norm = batch_norm(plan.stem, options)
        self.transitions = nnx.Dict()
        self.layers = nnx.Dict()
        self.depths = plan.depths
        widths: list[int] = []
        num_in = plan.stem
        for resolution, depth in enumerate(plan.depths):
            if resolution > 0:
                name = f"transition_{resolution - 1}"
                self.transitions[name] = Transition(num_in, num_in // 2, options=options, rngs=rngs)
                num_in //= 2
            self.layers[f"resolution_{resolution}"] = nnx.Dict(
                {
                    f"layer_{k}": DenseLayer(num_in + k * plan.growth, plan.growth, **shared)
                    for k in range(depth)
                }
            )
            num_in += depth * plan.growth
            widths.append(num_in)
        self.last_norm = batch_norm(num_in, options)
        self.plan = stage_per_resolution(widths, 4)

    def parts_in_order(self) -> list[tuple[nnx.Module, ...]]:
        """The stem, and each resolution with the transition before it."""
        last = len(self.depths) - 1
        found: list[tuple[nnx.Module, ...]] = [(self.conv, self.norm)]
        for number in range(len(self.depths)):
            parts = [self.layers[f"resolution_{number}"]]
            if number > 0:
                parts.append(self.transitions[f"transition_{number - 1}"])
            if number == last:
                parts.append(self.last_norm)
            found.append(tuple(parts))
        return found

    def stem(self, images: Images, *, train: bool, present: Present | None = None) -> FeatureMap:
        """`[b, *space, num_channels] -> [b, *(space / 4), stem]`."""
        x = self.norm(self.conv(images), train=train, present=present)
        return max_pool_3x3(jax.nn.relu(x), self.pool_padding)

    def stage(
        self, number: int, x: FeatureMap, *, train: bool, present: Present | None = None
    ) -> FeatureMap:
        """Features after dense block `number`, counted from 0."""
        options = {"train": train, "present": present}
        if number > 0:
            x = self.transitions[f"transition_{number - 1}"](x, **options)
        layers = self.layers[f"resolution_{number}"]
        for k in range(self.depths[number]):
            x = layers[f"layer_{k}"](x, **options)
        if number == len(self.depths) - 1:
            x = jax.nn.relu(self.last_norm(x, **options))
        return x
