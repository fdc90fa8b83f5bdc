"""ResNets of RRA blocks, the paper's backbones: a stem and blocks, one block a stage."""

from __future__ import annotations

from collections.abc import Sequence

from flax import nnx

from drifa_jax.models.backbones.contract import ScaledGate, Stage
from drifa_jax.models.batch_norm import batch_norm
from drifa_jax.models.bottleneck import EXPANSION, BottleneckRRABlock
from drifa_jax.models.convolution import Convolution
from drifa_jax.models.kernels.window_pool import max_pool_3x3
from drifa_jax.models.rra import RRABlock, attended, optional_mfa
from drifa_jax.network_options import NetworkOptions
from drifa_jax.typing import FeatureMap, Images, Present

RESNET_PLANS: dict[str, tuple[int, ...]] = {
    "resnet10": (1, 1, 1, 1),
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
}
"""Blocks per resolution; each resolution after the first doubles the width and halves the size."""

BOTTLENECK_BACKBONES = {"resnet50"}
"""Names of the plans of `BottleneckRRABlock`s, four times as wide outside as inside."""


class Stem(nnx.Module):
    """7x7 convolution with stride 2, MFA, batch norm, ReLU, 3x3 max pool with stride 2."""

    def __init__(
        self,
        num_channels: int,
        *,
        num_axes: int = 2,
        options: NetworkOptions,
        rngs: nnx.Rngs,
    ):
        self.pool_padding = options.window_padding(3, num_axes)
        self.conv = Convolution(
            num_channels, options.width, 7, 2, num_axes=num_axes, options=options, rngs=rngs
        )
        self.mfa = optional_mfa(options.width, options.mfa_parts, options, rngs)
        self.norm = batch_norm(options.width, options)

    def __call__(self, images: Images, *, train: bool, present: Present | None = None):
        """`[b, *space, num_channels] -> [b, *(space / 4), width]`."""
        return self.attend(images, train=train, present=present)[0]

    def attend(
        self, images: Images, *, train: bool, present: Present | None = None
    ) -> tuple[FeatureMap, dict[str, ScaledGate]]:
        """What calling the stem returns, and the gate of `mfa`."""
        x, gates = attended(
            self.mfa, self.norm, self.conv(images), "mfa", train=train, present=present
        )
        return max_pool_3x3(x, self.pool_padding), gates


class ResNet(nnx.Module):
    """The authors' backbone: a stem and RRA blocks in the plan of a ResNet, one block a stage.

    Dropout may follow every stage before the last resolution.

    Args:
      num_channels: channels of the modality's images.
      plan: blocks per resolution, or a name in `RESNET_PLANS`.
      bottleneck: whether blocks are those of ResNet-50 instead of ResNet-18 and -34; the last
        stages have 32 instead of 8 times as many channels as the stem in four resolutions.
      num_axes: spatial axes; 3 reads volumes with the same blocks.
      options: width, parts of MFA inside stem and blocks, dtype, padding, batch norm constants.
      rngs: key of the initial weights.

    Source: section 3.1, Fig. 1C.
    """

    takes_width = True

    def __init__(
        self,
        num_channels: int,
        plan: str | Sequence[int],
        bottleneck: bool = False,
        *,
        num_axes: int = 2,
        options: NetworkOptions,
        rngs: nnx.Rngs,
    ):
        if isinstance(plan, str):
            plan, bottleneck = RESNET_PLANS[plan], plan in BOTTLENECK_BACKBONES
        self.stem = Stem(num_channels, num_axes=num_axes, options=options, rngs=rngs)
        self.stages = nnx.Dict()
        declared: list[Stage] = []
        num_in = options.width
        make_block, expansion = (BottleneckRRABlock, EXPANSION) if bottleneck else (RRABlock, 1)
        for resolution, num_blocks in enumerate(plan):
            num_inside = options.width * 2**resolution
            for block in range(num_blocks):
                self.stages[f"stage_{len(declared)}"] = make_block(
                    num_in,
                    num_inside,
                    2 if resolution > 0 and block == 0 else 1,
                    mfa_parts=options.mfa_parts,
                    num_axes=num_axes,
                    options=options,
                    rngs=rngs,
                )
                num_in = expansion * num_inside
                declared.append(
                    Stage(
                        f"resolution_{resolution}_block_{block}",
                        num_in,
                        4 * 2**resolution,
                        dropout=resolution < len(plan) - 1,
                        ends_resolution=block == num_blocks - 1,
                    )
                )
        self.plan = tuple(declared)

    def parts_in_order(self) -> list[tuple[nnx.Module, ...]]:
        """The stem, and each block."""
        blocks = (self.stages[f"stage_{number}"] for number in range(len(self.plan)))
        return [(self.stem,), *((block,) for block in blocks)]

    def stage(
        self, number: int, x: FeatureMap, *, train: bool, present: Present | None = None
    ) -> FeatureMap:
        """Features after RRA block `number`, counted from 0."""
        return self.stages[f"stage_{number}"](x, train=train, present=present)

    def attend_stem(
        self, images: Images, *, train: bool, present: Present | None = None
    ) -> tuple[FeatureMap, dict[str, ScaledGate]]:
        """As `stem`, with the gate inside it."""
        return self.stem.attend(images, train=train, present=present)

    def attend_stage(
        self, number: int, x: FeatureMap, *, train: bool, present: Present | None = None
    ) -> tuple[FeatureMap, dict[str, ScaledGate]]:
        """As `stage`, with the gates inside the block."""
        return self.stages[f"stage_{number}"].attend(x, train=train, present=present)
