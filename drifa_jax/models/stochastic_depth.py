"""Stochastic depth: in training, records skip residual blocks, the deeper ones more often."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from drifa_jax.rng import stream
from drifa_jax.typing import FeatureMap


@dataclass(frozen=True)
class StochasticDepth:
    """How blocks are skipped in one pass; backbones get None where none is.

    Attributes:
      key: all is drawn from it.
      rate: probability that a record skips the last block; it rises linearly from 0 at the first.
    """

    key: jax.Array
    rate: float

    def of(self, modality: str) -> StochasticDepth:
        """The draws of one branch."""
        return StochasticDepth(stream(self.key, modality), self.rate)


def residual(
    y: FeatureMap, depth: StochasticDepth | None, block: int, num_blocks: int, part: str = "block"
) -> FeatureMap:
    """What a block adds to its input: zero for records that skip it, else `y / (1 - rate)`.

    Args:
      y: `[b, ..., c]`.
      depth: of the branch, or None where no block is skipped.
      block: its number among the `num_blocks` of the branch, counted from 0.
      num_blocks: of the branch.
      part: tells the residuals of one block apart, each of which draws for itself.

    Source: Huang et al., "Deep networks with stochastic depth", ECCV 2016, with the survivors
    scaled in training instead of at inference.
    """
    if depth is None or block == 0:
        return y
    rate = depth.rate * block / (num_blocks - 1)
    kept = jax.random.bernoulli(stream(depth.key, part, block), 1 - rate, y.shape[:1])
    kept = kept.reshape(-1, *(1,) * (y.ndim - 1))
    return jnp.where(kept, y / (1 - rate), jnp.zeros((), y.dtype))
