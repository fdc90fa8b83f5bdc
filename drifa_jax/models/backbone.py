"""A branch: the backbone of one modality, as a stem and a row of stages.

DRIFA plugs into any backbone that offers what `Branch` asks for. The network calls the stem,
then one stage after another, and fuses the modalities between them; it never looks inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax
from flax import nnx

from drifa_jax.models.bottleneck import EXPANSION, BottleneckRRABlock
from drifa_jax.models.convolution import Convolution, LayerOptions
from drifa_jax.models.kernels.window_pool import max_pool_3x3
from drifa_jax.models.rra import RRABlock, attended, optional_mfa
from drifa_jax.typing import FeatureMap, Gate, Images, Present

RESNET_PLANS: dict[str, tuple[int, ...]] = {
    "resnet10": (1, 1, 1, 1),
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
}
"""Blocks per resolution; each resolution after the first doubles the width and halves the size."""

BOTTLENECK_BACKBONES = {"resnet50"}
"""Names of the plans of `BottleneckRRABlock`s, four times as wide outside as inside."""


def stage_widths(width: int, blocks_per_resolution: Sequence[int]) -> tuple[int, ...]:
    """Channels after every stage of a plan, one block a stage."""
    return tuple(
        width * 2**resolution
        for resolution, num_blocks in enumerate(blocks_per_resolution)
        for _ in range(num_blocks)
    )


class Branch(Protocol):
    """What a backbone offers to be fused.

    `stage_widths[k]` is the number of channels after stage `k`. All branches of one network
    have the same number of stages and, stage by stage, the same widths; sizes may differ.
    """

    stage_widths: tuple[int, ...]

    def stem(self, images: Images, *, train: bool, present: Present | None) -> FeatureMap:
        """From pixels to the first features."""
        ...

    def stage(
        self, number: int, x: FeatureMap, *, train: bool, present: Present | None
    ) -> FeatureMap:
        """Features after stage `number`, counted from 0."""
        ...


@runtime_checkable
class GatedBranch(Branch, Protocol):
    """A branch with gates inside, which explanations read; to offer this is voluntary.

    Both methods are those of `Branch`, and return the gates by name as well, `[b, c]` float32.
    """

    def attend_stem(
        self, images: Images, *, train: bool, present: Present | None
    ) -> tuple[FeatureMap, dict[str, Gate]]:
        """From pixels to the first features, and gates by name."""
        ...

    def attend_stage(
        self, number: int, x: FeatureMap, *, train: bool, present: Present | None
    ) -> tuple[FeatureMap, dict[str, Gate]]:
        """Features after stage `number`, and gates by name."""
        ...


class Stem(nnx.Module):
    """7x7 convolution with stride 2, MFA, batch norm, ReLU, 3x3 max pool with stride 2."""

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        mfa_parts: Sequence[str],
        options: LayerOptions,
        rngs: nnx.Rngs,
    ):
        self.options = options
        self.conv = Convolution(num_in, num_out, 7, 2, options=options, rngs=rngs)
        self.mfa = optional_mfa(num_out, mfa_parts, options, rngs)
        self.norm = options.batch_norm(num_out)

    def __call__(self, images: Images, *, train: bool, present: Present | None = None):
        """`[b, h, w, num_in] -> [b, h / 4, w / 4, num_out]`."""
        return self.attend(images, train=train, present=present)[0]

    def attend(
        self, images: Images, *, train: bool, present: Present | None = None
    ) -> tuple[FeatureMap, dict[str, Gate]]:
        """What calling the stem returns, and the gate of `mfa`."""
        x, gates = attended(self.mfa, self.conv(images), "mfa")
        x = jax.nn.relu(self.norm(x, train=train, present=present))
        return max_pool_3x3(x, self.options.window_padding(3)), gates


class ResidualBranch(nnx.Module):
    """The authors' backbone: a stem and RRA blocks in the plan of a ResNet, one block a stage.

    Args:
      num_channels: channels of the modality's images.
      width: channels after the stem; the last stages have 8 times as many in four resolutions
        (32 times with bottleneck blocks).
      blocks_per_resolution: for example `RESNET_PLANS["resnet18"]`.
      bottleneck: whether blocks are those of ResNet-50 instead of ResNet-18 and -34.
      mfa_parts: parts of MFA inside stem and blocks ("hifa", "clia"), or none.
      options: dtype, padding and batch norm constants.
      rngs: key of the initial weights.

    Source: section 3.1, Fig. 1C.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        width: int,
        blocks_per_resolution: Sequence[int],
        bottleneck: bool = False,
        mfa_parts: Sequence[str] = ("hifa", "clia"),
        options: LayerOptions,
        rngs: nnx.Rngs,
    ):
        self.stem = Stem(num_channels, width, mfa_parts=mfa_parts, options=options, rngs=rngs)
        self.stages = nnx.Dict()
        widths: list[int] = []
        num_in = width
        make_block, expansion = (BottleneckRRABlock, EXPANSION) if bottleneck else (RRABlock, 1)
        for resolution, num_blocks in enumerate(blocks_per_resolution):
            num_inside = width * 2**resolution
            for block in range(num_blocks):
                self.stages[f"stage_{len(widths)}"] = make_block(
                    num_in,
                    num_inside,
                    2 if resolution > 0 and block == 0 else 1,
                    mfa_parts=mfa_parts,
                    options=options,
                    rngs=rngs,
                )
                num_in = expansion * num_inside
                widths.append(num_in)
        self.stage_widths = tuple(widths)

    def stage(
        self, number: int, x: FeatureMap, *, train: bool, present: Present | None = None
    ) -> FeatureMap:
        """Features after RRA block `number`, counted from 0."""
        return self.stages[f"stage_{number}"](x, train=train, present=present)

    def attend_stem(
        self, images: Images, *, train: bool, present: Present | None = None
    ) -> tuple[FeatureMap, dict[str, Gate]]:
        """As `stem`, with the gate inside it."""
        return self.stem.attend(images, train=train, present=present)

    def attend_stage(
        self, number: int, x: FeatureMap, *, train: bool, present: Present | None = None
    ) -> tuple[FeatureMap, dict[str, Gate]]:
        """As `stage`, with the gates inside the block."""
        return self.stages[f"stage_{number}"].attend(x, train=train, present=present)
