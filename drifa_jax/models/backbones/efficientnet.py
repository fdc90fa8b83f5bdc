"""EfficientNet and EfficientNet-Lite: inverted residuals, scaled together in width and depth.

Sources: Tan and Le, "EfficientNet: rethinking model scaling for convolutional neural networks",
ICML 2019. Lite (Google, 2020) leaves out squeeze-and-excitation, bounds its ReLU at 6 and keeps
stem, top, and the depth of the first and last group unscaled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
from flax import nnx

from drifa_jax.models.backbones.contract import stage_per_resolution
from drifa_jax.models.backbones.layers import Dense, DepthwiseConvolution
from drifa_jax.models.batch_norm import batch_norm
from drifa_jax.models.convolution import Convolution
from drifa_jax.models.pointwise import Pointwise
from drifa_jax.models.pooling import average_pool, over_space
from drifa_jax.models.stochastic_depth import StochasticDepth, residual
from drifa_jax.network_options import NetworkOptions
from drifa_jax.typing import FeatureMap, Images, Present

SQUEEZE = 4
"""Channels of a block's input over those inside its squeeze-and-excitation."""


@dataclass(frozen=True)
class Group:
    """Blocks in a row that share their shape; the first of them has the stride."""

    window: int
    stride: int
    expansion: int
    num_channels: int
    num_blocks: int


@dataclass(frozen=True)
class EfficientNetPlan:
    """Channels of stem and top, the groups between them, and whether it is a Lite."""

    stem: int
    groups: tuple[Group, ...]
    top: int
    lite: bool = False


BASE = (
    Group(3, 1, 1, 16, 1),
    Group(3, 2, 6, 24, 2),
    Group(5, 2, 6, 40, 2),
    Group(3, 2, 6, 80, 3),
    Group(5, 1, 6, 112, 3),
    Group(5, 2, 6, 192, 4),
    Group(3, 1, 6, 320, 1),
)
"""The groups of B0."""


def scaled(
    width: float, depth: float, *, lite: bool = False, groups: tuple[Group, ...] = BASE
) -> EfficientNetPlan:
    """The plan with `width` times the channels, in multiples of 8, and `depth` times the blocks."""

    def channels(number: int) -> int:
        wished = number * width
        rounded = max(8, int(wished + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * wished else rounded

    ends = (0, len(groups) - 1)
    return EfficientNetPlan(
        stem=32 if lite else channels(32),
        groups=tuple(
            Group(
                group.window,
                group.stride,
                group.expansion,
                channels(group.num_channels),
                group.num_blocks
                if lite and number in ends
                else math.ceil(depth * group.num_blocks),
            )
            for number, group in enumerate(groups)
        ),
        top=1280 if lite else channels(1280),
        lite=lite,
    )


EFFICIENTNET_PLANS: dict[str, EfficientNetPlan] = {
    f"efficientnet_{prefix}{number}": scaled(width, depth, lite=lite)
    for prefix, lite in (("b", False), ("lite", True))
    for number, (width, depth) in enumerate(((1.0, 1.0), (1.0, 1.1), (1.1, 1.2)))
}
"""B0 to B2 and Lite0 to Lite2 by name."""


class NormalisedConvolution(nnx.Module):
    """A convolution without bias, batch norm, and an activation or none."""

    def __init__(
        self,
        conv: nnx.Module,
        num_channels: int,
        activation: Callable[[jax.Array], jax.Array] | None,
        options: NetworkOptions,
    ):
        self.conv = conv
        self.norm = batch_norm(num_channels, options)
        self.activation = activation

    def __call__(self, x: FeatureMap, *, train: bool, present: Present | None) -> FeatureMap:
        x = self.norm(self.conv(x), train=train, present=present)
        return x if self.activation is None else self.activation(x)


class SqueezeExcitation(nnx.Module):
    """A gate per channel in (0, 1), from the mean over space through a narrow layer."""

    def __init__(self, num_channels: int, num_inside: int, *, rngs: nnx.Rngs):
        self.reduce = Pointwise(num_channels, num_inside, rngs=rngs)
        self.expand = Pointwise(num_inside, num_channels, rngs=rngs)

    def __call__(self, x: FeatureMap) -> FeatureMap:
        """`[b, *space, c] -> [b, *space, c]`."""
        gate = jax.nn.sigmoid(self.expand(jax.nn.silu(self.reduce(average_pool(x)))))
        return x * over_space(gate, x)


class InvertedResidual(nnx.Module):
    """Widen, filter channels apart, (squeeze and excite), narrow, shortcut where it fits."""

    def __init__(
        self,
        num_in: int,
        group: Group,
        stride: int,
        *,
        lite: bool,
        num_axes: int,
        options: NetworkOptions,
        rngs: nnx.Rngs,
    ):
        activation = jax.nn.relu6 if lite else jax.nn.silu
        num_inside, num_out = num_in * group.expansion, group.num_channels

        def pointwise(num_from, num_to, activation):
            conv = Dense(num_from, num_to, bias=False, options=options, rngs=rngs)
            return NormalisedConvolution(conv, num_to, activation, options)

        self.expand = pointwise(num_in, num_inside, activation) if group.expansion > 1 else None
        self.depthwise = NormalisedConvolution(
            DepthwiseConvolution(
                num_inside,
                group.window,
                stride,
                bias=False,
                num_axes=num_axes,
                options=options,
                rngs=rngs,
            ),
            num_inside,
            activation,
            options,
        )
        self.squeeze = (
            None if lite else SqueezeExcitation(num_inside, max(1, num_in // SQUEEZE), rngs=rngs)
        )
        self.project = pointwise(num_inside, num_out, None)
        self.adds = stride == 1 and num_in == num_out

    def __call__(
        self,
        x: FeatureMap,
        *,
        train: bool,
        present: Present | None,
        depth: StochasticDepth | None = None,
        number: int = 0,
        num_blocks: int = 1,
    ) -> FeatureMap:
        """`[b, *space, num_in] -> [b, *(space / stride), num_out]`.

        The block is `number` of `num_blocks`; without a shortcut it cannot be skipped.
        """
        y = x if self.expand is None else self.expand(x, train=train, present=present)
        y = self.depthwise(y, train=train, present=present)
        if self.squeeze is not None:
            y = self.squeeze(y)
        y = self.project(y, train=train, present=present)
        return x + residual(y, depth, number, num_blocks) if self.adds else y


class EfficientNet(nnx.Module):
    """EfficientNet as a `Backbone`: one stage a resolution, the last with the 1x1 top.

    With PyTorch weights of `transformers` or of EfficientNet-Lite, padding is "same" and the
    epsilon of batch norm 1e-3, the defaults here.

    Args:
      num_channels: channels of the modality's images.
      plan: for example `EFFICIENTNET_PLANS["efficientnet_b0"]`.
      num_axes: spatial axes.
      options: dtype, padding and batch norm constants.
      rngs: key of the initial weights.
    """

    def __init__(
        self,
        num_channels: int,
        plan: EfficientNetPlan,
        *,
        num_axes: int = 2,
        options: NetworkOptions,
        rngs: nnx.Rngs,
    ):
        activation = jax.nn.relu6 if plan.lite else jax.nn.silu
        shared = {"num_axes": num_axes, "options": options, "rngs": rngs}
        self.entry = NormalisedConvolution(
            Convolution(num_channels, plan.stem, 3, 2, bias=False, **shared),
            plan.stem,
            activation,
            options,
        )
        self.blocks = nnx.Dict()
        channels: list[int] = []
        ends: list[int] = []
        num_in = plan.stem
        for group in plan.groups:
            if group.stride > 1 or not channels:
                channels.append(0)
                ends.append(0)
            for position in range(group.num_blocks):
                self.blocks[f"block_{len(self.blocks)}"] = InvertedResidual(
                    num_in,
                    group,
                    group.stride if position == 0 else 1,
                    lite=plan.lite,
                    **shared,
                )
                num_in = group.num_channels
            channels[-1], ends[-1] = num_in, len(self.blocks)
        channels[-1] = plan.top
        self.ends = tuple(ends)
        self.num_blocks = len(self.blocks)
        self.top = NormalisedConvolution(
            Dense(num_in, plan.top, bias=False, options=options, rngs=rngs),
            plan.top,
            activation,
            options,
        )
        self.plan = stage_per_resolution(channels, 2 * plan.groups[0].stride)

    def parts_in_order(self) -> list[tuple[nnx.Module, ...]]:
        """The stem, and each resolution, the last with the top."""
        found: list[tuple[nnx.Module, ...]] = [(self.entry,)]
        for number in range(len(self.plan)):
            found.append(tuple(self.blocks[f"block_{k}"] for k in self._blocks_of(number)))
        found[-1] = (*found[-1], self.top)
        return found

    def _blocks_of(self, number: int) -> range:
        """The blocks of resolution `number`."""
        return range(self.ends[number - 1] if number else 0, self.ends[number])

    def stem(self, images: Images, *, train: bool, present: Present | None = None) -> FeatureMap:
        """`[b, *space, num_channels] -> [b, *(space / 2), stem]`."""
        return self.entry(images, train=train, present=present)

    def stage(
        self,
        number: int,
        x: FeatureMap,
        *,
        train: bool,
        present: Present | None = None,
        depth: StochasticDepth | None = None,
    ) -> FeatureMap:
        """Features after resolution `number`, counted from 0; the last ends with the top."""
        for k in self._blocks_of(number):
            x = self.blocks[f"block_{k}"](
                x,
                train=train,
                present=present,
                depth=depth,
                number=k,
                num_blocks=self.num_blocks,
            )
        if number == len(self.plan) - 1:
            x = self.top(x, train=train, present=present)
        return x
