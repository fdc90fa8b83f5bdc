"""The bottleneck form of RRA, for ResNet-50: narrow, filter, widen, with MFA where it is narrow."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from flax import nnx

from drifa_jax.models.backbones.contract import ScaledGate
from drifa_jax.models.batch_norm import batch_norm
from drifa_jax.models.convolution import Convolution
from drifa_jax.models.rra import attended, optional_mfa
from drifa_jax.network_options import NetworkOptions
from drifa_jax.typing import FeatureMap, Present

EXPANSION = 4
"""Channels after a bottleneck block over the channels inside it."""


class BottleneckRRABlock(nnx.Module):
    """Robust residual attention block of three convolutions, two of them narrow.

        x ─┬─ conv1x1 ─ MFA ─ BN ─ ReLU ─ conv3x3(stride) ─ MFA ─ BN ─ ReLU ─ conv1x1 ─ BN ─┐
           └─ identity, or conv1x1(stride) ─ BN where the shape changes ────────────────────┴─ + ─ ReLU

    Args:
      num_in: channels of the input.
      num_inside: channels between the 1x1 convolutions; the output has four times as many.
      stride: of the 3x3 convolution and of the projection.
      mfa_parts: which parts of MFA are inside, of "hifa" and "clia"; none gives the plain
        bottleneck block.
      num_axes: spatial axes.
      options: dtype, padding and batch norm constants.
      rngs: key of the initial weights.

    Source: the block is He et al., "Deep residual learning for image recognition", CVPR 2016,
    Fig. 5, with the stride on the 3x3 convolution, as torchvision, timm and `transformers` have
    it. Departure: the DRIFA-Net paper has only the block of two convolutions, so where MFA goes
    here is our choice. As there, it stands twice in a block, between convolution and batch norm;
    it follows the two convolutions that keep the narrow width. After the widening one it would
    read four times the channels at sixteen times the weights, and the MFA that follows every
    stage reads that map anyway.
    """  # noqa: E501

    def __init__(
        self,
        num_in: int,
        num_inside: int,
        stride: int,
        *,
        mfa_parts: Sequence[str] = ("hifa", "clia"),
        num_axes: int = 2,
        options: NetworkOptions,
        rngs: nnx.Rngs,
    ):
        num_out = EXPANSION * num_inside
        shared = {"num_axes": num_axes, "options": options, "rngs": rngs}
        self.conv1 = Convolution(num_in, num_inside, 1, 1, **shared)
        self.mfa1 = optional_mfa(num_inside, mfa_parts, options, rngs)
        self.norm1 = batch_norm(num_inside, options)
        self.conv2 = Convolution(num_inside, num_inside, 3, stride, **shared)
        self.mfa2 = optional_mfa(num_inside, mfa_parts, options, rngs)
        self.norm2 = batch_norm(num_inside, options)
        self.conv3 = Convolution(num_inside, num_out, 1, 1, **shared)
        self.norm3 = batch_norm(num_out, options)
        reshapes = stride != 1 or num_in != num_out
        self.projection = Convolution(num_in, num_out, 1, stride, **shared) if reshapes else None
        self.projection_norm = batch_norm(num_out, options) if reshapes else None

    def __call__(self, x: FeatureMap, *, train: bool, present: Present | None = None) -> FeatureMap:
        """`[b, *space, num_in] -> [b, *(space / stride), 4 * num_inside]`."""
        return self.attend(x, train=train, present=present)[0]

    def attend(
        self, x: FeatureMap, *, train: bool, present: Present | None = None
    ) -> tuple[FeatureMap, dict[str, ScaledGate]]:
        """What calling the block returns, and the gates of `mfa1` and `mfa2`."""
        during = {"train": train, "present": present}
        y, gates1 = attended(self.mfa1, self.norm1, self.conv1(x), "mfa1", **during)
        y, gates2 = attended(self.mfa2, self.norm2, self.conv2(y), "mfa2", **during)
        y = self.norm3(self.conv3(y), train=train, present=present)
        if self.projection is not None:
            x = self.projection_norm(self.projection(x), train=train, present=present)
        return jax.nn.relu(y + x), gates1 | gates2
