"""Stochastic depth: in training, records skip residual blocks, the deeper ones more often."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
      num_slices: rows of a batch that belong to one record, side by side, and share its draws.
    """

    key: jax.Array
    rate: float
    num_slices: int = 1

    def of(self, modality: str) -> StochasticDepth:
        """The draws of one branch."""
        return replace(self, key=stream(self.key, modality))

    def of_slices(self, num_slices: int) -> StochasticDepth:
        """The same draws for a batch that holds the slices of its records."""
        return replace(self, num_slices=num_slices)


def residual(
    y: FeatureMap, depth: StochasticDepth | None, block: int, num_blocks: int, part: str = "block"
) -> FeatureMap:
    """What a block adds to its input: zero for records that skip it, else `y / (1 - rate)`.

    Args:
      y: `[b * num_slices, ..., c]`.
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
    num_records = y.shape[0] // depth.num_slices
    kept = jax.random.bernoulli(stream(depth.key, part, block), 1 - rate, (num_records,))
    kept = jnp.repeat(kept, depth.num_slices).reshape(-1, *(1,) * (y.ndim - 1))
    return jnp.where(kept, y / (1 - rate), jnp.zeros((), y.dtype))
