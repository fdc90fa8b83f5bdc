"""What a fusion offers: it refines the features of all modalities after one stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import jax

from drifa_jax.models.gates import PlacedGate
from drifa_jax.typing import FeatureMap, Present

Features = Mapping[str, FeatureMap]


@dataclass(frozen=True)
class Fused:
    """What one fusion returns.

    Attributes:
      features: modality -> map, shaped as it came.
      seen: intermediates by name, for tests and comparisons with other frameworks.
      gates: what multiplied the features; their stage is filled in by the network.
    """

    features: dict[str, FeatureMap]
    seen: dict[str, jax.Array] = field(default_factory=dict)
    gates: tuple[PlacedGate, ...] = ()


class Fusion(Protocol):
    """A registry entry is a function `(channels, *, last, options, rngs) -> Fusion`.

    `channels` gives those of each modality that meets after this stage, which may differ; `last`
    says that no stage follows; `options` are the network's.
    """

    def __call__(self, features: Features, present: Mapping[str, Present] | None) -> Fused:
        """Refined features; absent modalities must reach no other."""
        ...
