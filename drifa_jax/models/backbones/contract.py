"""What a backbone offers to be fused: a stem, and stages that say what they give.

DRIFA plugs into any network that offers this. The network calls the stem, then one stage after
another, and fuses the modalities between them; it never looks inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from drifa_jax.typing import FeatureMap, Gate, Images, Present

Tokens = Float[Array, "b n c"]


@dataclass(frozen=True)
class Stage:
    """One stage of a backbone, after which modalities can meet.

    Attributes:
      name: in words of the backbone, for messages.
      channels: of the features after it.
      reduction: input pixels per feature pixel along each spatial axis.
      dropout: whether Monte Carlo dropout may follow; it always follows the last stage.
      ends_resolution: whether the next stage, if any, works at another resolution (or, of a
        transformer, belongs to another quarter of its depth).
    """

    name: str
    channels: int
    reduction: int
    dropout: bool
    ends_resolution: bool = True


def stage_per_resolution(channels: Sequence[int], first_reduction: int) -> tuple[Stage, ...]:
    """Stages of which each halves the map of the one before.

    Monte Carlo dropout follows all but the last.

    Args:
      channels: after each stage.
      first_reduction: input pixels per pixel of the first stage's map, along each axis.
    """
    last = len(channels) - 1
    return tuple(
        Stage(f"stage_{number}", width, first_reduction * 2**number, dropout=number < last)
        for number, width in enumerate(channels)
    )


class ScaledGate(NamedTuple):
    """A gate inside a backbone: its features were multiplied by `values * scale`.

    Attributes:
      values: one weight a record and channel.
      scale: `[c]`, the learned factor of each channel.
    """

    values: Gate
    scale: jax.Array


class Backbone(Protocol):
    """The branch of one modality, from `[b, *space, c]` to features of the same rank.

    A registry entry is a function `(num_channels, *, options, rngs) -> Backbone`, whose options
    are the network's (`drifa_jax.network_options.NetworkOptions`).

    Attributes:
      plan: its stages in order.

    A backbone that can be built in any `options.width` has the attribute `takes_width = True`; a
    width that no branch takes is an error.
    """

    plan: tuple[Stage, ...]

    def stem(self, images: Images, *, train: bool, present: Present | None) -> FeatureMap:
        """From pixels to the first features."""
        ...

    def stage(
        self, number: int, x: FeatureMap, *, train: bool, present: Present | None
    ) -> FeatureMap:
        """Features after stage `number`, counted from 0."""
        ...


@runtime_checkable
class GatedBackbone(Backbone, Protocol):
    """A backbone with gates inside, which explanations read; to offer this is voluntary.

    Both methods are those of `Backbone`, and return the gates by name as well. A number at the
    end of a name tells gates of one kind apart: `mfa1`, `mfa2`.
    """

    def attend_stem(
        self, images: Images, *, train: bool, present: Present | None
    ) -> tuple[FeatureMap, dict[str, ScaledGate]]:
        """From pixels to the first features, and gates by name."""
        ...

    def attend_stage(
        self, number: int, x: FeatureMap, *, train: bool, present: Present | None
    ) -> tuple[FeatureMap, dict[str, ScaledGate]]:
        """Features after stage `number`, and gates by name."""
        ...


@runtime_checkable
class LayeredBackbone(Protocol):
    """A backbone that says how far its parameters are from the pixels; to offer this is voluntary.

    Training can then give the first layers smaller steps than the last ones.
    """

    def parts_in_order(self) -> Sequence[Sequence[nnx.Module | nnx.Param]]:
        """All that it owns, from the pixels to the heads: the parts of each layer.

        A layer is the stem or a stage; of a transformer, a block.
        """
        ...


@runtime_checkable
class SkippingBackbone(Protocol):
    """A backbone whose residual blocks can be skipped in training; to offer this is voluntary.

    Its `stage` or `stage_with_tokens` also takes the keyword `depth`, a
    `models.stochastic_depth.StochasticDepth` or None.

    Attributes:
      num_blocks: residual blocks of all stages, along which the rate rises.
    """

    num_blocks: int


@runtime_checkable
class PlacedBackbone(Protocol):
    """A backbone with learned positions as its parameter `positions`; to offer this is voluntary.

    Weights that were trained on pictures of another size can then be read.
    """

    def fitted_positions(self, positions: np.ndarray) -> np.ndarray:
        """Positions that were learned on another grid, `[n, c]`, on the grid of the backbone.

        Raises:
          ValueError: for a number of them that no grid has.
        """
        ...


@runtime_checkable
class TokenBackbone(Protocol):
    """A backbone whose stages also read tokens without a place in the map, as transformers do.

    The network hands them from stage to stage beside the map; attention, dropout and heads leave
    them alone. It offers these two methods in the place of `stem` and `stage`.
    """

    plan: tuple[Stage, ...]

    def stem_with_tokens(
        self, images: Images, *, train: bool, present: Present | None
    ) -> tuple[FeatureMap, Tokens]:
        """From pixels to the first features, and the tokens."""
        ...

    def stage_with_tokens(
        self, number: int, x: FeatureMap, tokens: Tokens, *, train: bool, present: Present | None
    ) -> tuple[FeatureMap, Tokens]:
        """Features and tokens after stage `number`, counted from 0."""
        ...
