"""RRA, the robust residual attention block: a residual block with MFA after each convolution."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from flax import nnx

from drifa_jax.models.backbones.contract import ScaledGate
from drifa_jax.models.batch_norm import BatchNorm, batch_norm
from drifa_jax.models.convolution import Convolution
from drifa_jax.models.mfa import MFA
from drifa_jax.network_options import NetworkOptions
from drifa_jax.typing import FeatureMap, Present


class RRABlock(nnx.Module):
    """Robust residual attention block.

        x ─┬─ conv3x3(stride) ─ MFA ─ BN ─ ReLU ─ conv3x3 ─ MFA ─ BN ─┐
           └─ identity, or conv1x1(stride) ─ BN where the shape changes ┴─ + ─ ReLU

    Args:
      num_in: channels of the input.
      num_out: channels of the output.
      stride: of the first convolution and of the projection.
      mfa_parts: which parts of MFA are inside, of "hifa" and "clia"; none gives the plain
        residual block.
      num_axes: spatial axes.
      options: dtype, padding and batch norm constants.
      rngs: key of the initial weights.

    Source: section 3.1 and Fig. 1C. MFA sits between convolution and batch norm in the authors'
    implementation, and convolutions keep their bias although batch norm follows.
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        stride: int,
        *,
        mfa_parts: Sequence[str] = ("hifa", "clia"),
        num_axes: int = 2,
        options: NetworkOptions,
        rngs: nnx.Rngs,
    ):
        shared = {"num_axes": num_axes, "options": options, "rngs": rngs}
        self.conv1 = Convolution(num_in, num_out, 3, stride, **shared)
        self.mfa1 = optional_mfa(num_out, mfa_parts, options, rngs)
        self.norm1 = batch_norm(num_out, options)
        self.conv2 = Convolution(num_out, num_out, 3, 1, **shared)
        self.mfa2 = optional_mfa(num_out, mfa_parts, options, rngs)
        self.norm2 = batch_norm(num_out, options)
        reshapes = stride != 1 or num_in != num_out
        self.projection = Convolution(num_in, num_out, 1, stride, **shared) if reshapes else None
        self.projection_norm = batch_norm(num_out, options) if reshapes else None

    def __call__(self, x: FeatureMap, *, train: bool, present: Present | None = None) -> FeatureMap:
        """`[b, *space, num_in] -> [b, *(space / stride), num_out]`."""
        return self.attend(x, train=train, present=present)[0]

    def attend(
        self, x: FeatureMap, *, train: bool, present: Present | None = None
    ) -> tuple[FeatureMap, dict[str, ScaledGate]]:
        """What calling the block returns, and the gates of `mfa1` and `mfa2`."""
        during = {"train": train, "present": present}
        y, gates1 = attended(self.mfa1, self.norm1, self.conv1(x), "mfa1", **during)
        y, gates2 = attended(
            self.mfa2, self.norm2, self.conv2(y), "mfa2", rectified=False, **during
        )
        if self.projection is not None:
            x = self.projection_norm(self.projection(x), train=train, present=present)
        return jax.nn.relu(y + x), gates1 | gates2


def attended(
    mfa: MFA | None,
    norm: BatchNorm,
    x: FeatureMap,
    name: str,
    *,
    train: bool,
    present: Present | None,
    rectified: bool = True,
) -> tuple[FeatureMap, dict[str, ScaledGate]]:
    """The map refined, normalised and rectified, and its gate under a name; none without an MFA."""
    if mfa is None:
        x = norm(x, train=train, present=present)
        return jax.nn.relu(x) if rectified else x, {}
    y, gates = mfa.attend_and_normalise(norm, x, train=train, present=present, rectified=rectified)
    return y, {name: ScaledGate(gates["gate"], mfa.alpha[...])}


def optional_mfa(
    num_channels: int, parts: Sequence[str], options: NetworkOptions, rngs: nnx.Rngs
) -> MFA | None:
    """MFA with the named parts ("hifa", "clia"), or None where there are none."""
    if not parts:
        return None
    return MFA(
        num_channels, hifa="hifa" in parts, clia="clia" in parts, dtype=options.dtype, rngs=rngs
    )
