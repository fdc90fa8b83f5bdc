"""ConvNeXt: a convolutional network of the proportions of a Swin transformer.

Sources: Liu et al., "A ConvNet for the 2020s", CVPR 2022 (version 1); Woo et al., "ConvNeXt V2",
CVPR 2023 (version 2, with global response normalisation in the place of layer scale).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from drifa_jax.models.backbones.contract import stage_per_resolution
from drifa_jax.models.backbones.layers import (
    Dense,
    DepthwiseConvolution,
    LayerNorm,
    PatchConvolution,
    per_channel,
)
from drifa_jax.models.initial import ones, zeros
from drifa_jax.models.pooling import at_least_float32, spatial_axes
from drifa_jax.models.stochastic_depth import StochasticDepth, residual
from drifa_jax.network_options import NetworkOptions
from drifa_jax.typing import FeatureMap, Images, Present

EXPANSION = 4
"""Channels inside a block over the channels outside it."""

LAYER_SCALE = 1e-6
"""Initial value of version 1's layer scale, which makes every block begin as the identity."""


@dataclass(frozen=True)
class ConvNeXtPlan:
    """Blocks and channels of every resolution, and which version of the block."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    version: int = 1

    def __post_init__(self):
        if len(self.depths) != len(self.widths) or not self.depths:
            raise ValueError(f"depths are {self.depths} but widths {self.widths}.")
        if self.version not in (1, 2):
            raise ValueError(f"version is {self.version}; ConvNeXt has the versions 1 and 2.")


_SIZES = {
    "atto": ((2, 2, 6, 2), (40, 80, 160, 320)),
    "femto": ((2, 2, 6, 2), (48, 96, 192, 384)),
    "pico": ((2, 2, 6, 2), (64, 128, 256, 512)),
    "nano": ((2, 2, 8, 2), (80, 160, 320, 640)),
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
}

CONVNEXT_PLANS: dict[str, ConvNeXtPlan] = {
    f"convnext{suffix}_{size}": ConvNeXtPlan(depths, widths, version)
    for version, suffix in ((1, ""), (2, "v2"))
    for size, (depths, widths) in _SIZES.items()
}
"""The sizes of both papers, and timm's smaller ones of version 1, by name."""


class ConvNeXtBlock(nnx.Module):
    """Depthwise 7x7, layer norm, widen, GELU, (response norm), narrow, (layer scale), shortcut.

    Args:
      num_channels: of input and output.
      version: 1 has layer scale, 2 has global response normalisation.
      num_axes: spatial axes.
      options: dtype.
      rngs: key of the initial weights.
    """

    def __init__(
        self,
        num_channels: int,
        version: int,
        *,
        num_axes: int = 2,
        options: NetworkOptions,
        rngs: nnx.Rngs,
    ):
        num_inside = EXPANSION * num_channels
        self.depthwise = DepthwiseConvolution(
            num_channels, 7, num_axes=num_axes, options=options, rngs=rngs
        )
        self.norm = LayerNorm(num_channels)
        self.expand = Dense(num_channels, num_inside, options=options, rngs=rngs)
        self.response_norm = GlobalResponseNorm(num_inside) if version == 2 else None
        self.project = Dense(num_inside, num_channels, options=options, rngs=rngs)
        self.layer_scale = nnx.Param(LAYER_SCALE * ones(num_channels)) if version == 1 else None

    def __call__(
        self,
        x: FeatureMap,
        depth: StochasticDepth | None = None,
        number: int = 0,
        num_blocks: int = 1,
    ) -> FeatureMap:
        """`[b, *space, c] -> [b, *space, c]`; the block is `number` of `num_blocks`."""
        y = self.depthwise(x)
        # What mixes channels alone works on a plain list of pixels: XLA on CPU takes twice as long
        # for the gradients of the same layers on a map with axes.
        y = self.expand(self.norm(y.reshape(-1, y.shape[-1])))
        y = jax.nn.gelu(y, approximate=False)
        if self.response_norm is not None:
            y = self.response_norm(y.reshape(*x.shape[:-1], -1)).reshape(y.shape)
        y = self.project(y)
        if self.layer_scale is not None:
            y = y * per_channel(self.layer_scale, y)
        return x + residual(y.reshape(x.shape), depth, number, num_blocks)


class GlobalResponseNorm(nnx.Module):
    """Channels compete: each is scaled by its norm over space, relative to the mean norm.

    Parameters: `scale` and `bias` `[num_channels]`, float32, zero at first (the identity).
    """

    def __init__(self, num_channels: int):
        self.scale = nnx.Param(zeros(num_channels))
        self.bias = nnx.Param(zeros(num_channels))

    def __call__(self, x: FeatureMap) -> FeatureMap:
        """`[b, *space, c] -> [b, *space, c]`."""
        response = relative_response(x)
        return per_channel(self.scale, x) * (x * response) + per_channel(self.bias, x) + x


def relative_response(x: FeatureMap, epsilon: float = 1e-6) -> FeatureMap:
    """`[b, 1, ..., c]`: each channel's L2 norm over space, divided by the mean over channels."""
    square = jnp.sum(lax.square(x.astype(at_least_float32(x))), spatial_axes(x), keepdims=True)
    # The square root has no slope at zero, where a whole channel is silent.
    silent = square == 0
    norm = jnp.where(silent, jnp.zeros_like(square), jnp.sqrt(jnp.where(silent, 1.0, square)))
    return (norm / (jnp.mean(norm, -1, keepdims=True) + epsilon)).astype(x.dtype)


class ConvNeXtStem(nnx.Module):
    """4x4 patches, layer norm."""

    def __init__(self, num_in, num_out, *, num_axes, options, rngs):
        self.conv = PatchConvolution(
            num_in, num_out, 4, num_axes=num_axes, options=options, rngs=rngs
        )
        self.norm = LayerNorm(num_out)

    def __call__(self, images: Images, *, train: bool, present: Present | None = None):
        """`[b, *space, num_in] -> [b, *(space // 4), num_out]`."""
        return self.norm(self.conv(images))


class ConvNeXtResolution(nnx.Module):
    """All blocks of one resolution, after layer norm and 2x2 patches but in the first."""

    def __init__(self, num_in, num_out, num_blocks, version, *, num_axes, options, rngs):
        reduces = num_in is not None
        shared = {"num_axes": num_axes, "options": options, "rngs": rngs}
        self.reduction_norm = LayerNorm(num_in) if reduces else None
        self.reduction = PatchConvolution(num_in, num_out, 2, **shared) if reduces else None
        self.blocks = nnx.Dict(
            {f"block_{k}": ConvNeXtBlock(num_out, version, **shared) for k in range(num_blocks)}
        )

    def __call__(
        self, x: FeatureMap, depth: StochasticDepth | None, first: int, num_blocks: int
    ) -> FeatureMap:
        """The map after its blocks, which are numbered from `first` of `num_blocks`."""
        if self.reduction is not None:
            x = self.reduction(self.reduction_norm(x))
        for number in range(len(self.blocks)):
            x = self.blocks[f"block_{number}"](x, depth, first + number, num_blocks)
        return x


class ConvNeXt(nnx.Module):
    """ConvNeXt as a `Backbone`: a stem and one stage a resolution.

    The layer norm that the papers put behind the global pool belongs to their classifier and is
    left out.

    Args:
      num_channels: channels of the modality's images.
      plan: for example `CONVNEXT_PLANS["convnext_tiny"]`.
      num_axes: spatial axes.
      options: dtype.
      rngs: key of the initial weights, which are Glorot's, as everywhere here; the papers draw
        from a normal distribution of deviation 0.02.
    """

    def __init__(
        self,
        num_channels: int,
        plan: ConvNeXtPlan,
        *,
        num_axes: int = 2,
        options: NetworkOptions,
        rngs: nnx.Rngs,
    ):
        shared = {"num_axes": num_axes, "options": options, "rngs": rngs}
        self.stem = ConvNeXtStem(num_channels, plan.widths[0], **shared)
        self.resolutions = nnx.Dict()
        num_in = None
        for number, (num_blocks, num_out) in enumerate(zip(plan.depths, plan.widths, strict=True)):
            self.resolutions[f"resolution_{number}"] = ConvNeXtResolution(
                num_in, num_out, num_blocks, plan.version, **shared
            )
            num_in = num_out
        self.depths = plan.depths
        self.num_blocks = sum(plan.depths)
        self.plan = stage_per_resolution(plan.widths, 4)

    def parts_in_order(self) -> list[tuple[nnx.Module, ...]]:
        """The stem, and each resolution."""
        resolutions = (self.resolutions[f"resolution_{k}"] for k in range(len(self.plan)))
        return [(self.stem,), *((resolution,) for resolution in resolutions)]

    def stage(
        self,
        number: int,
        x: FeatureMap,
        *,
        train: bool,
        present: Present | None = None,
        depth: StochasticDepth | None = None,
    ) -> FeatureMap:
        """Features after resolution `number`, counted from 0."""
        first = sum(self.depths[:number])
        return self.resolutions[f"resolution_{number}"](x, depth, first, self.num_blocks)
