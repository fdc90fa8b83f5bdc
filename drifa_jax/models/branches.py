"""The branches of a network side by side: stems, or stages, of some of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from drifa_jax.models.backbones.contract import (
    Backbone,
    GatedBackbone,
    SkippingBackbone,
    TokenBackbone,
)
from drifa_jax.models.gates import PlacedGate
from drifa_jax.models.mifa import PresentModalities
from drifa_jax.models.stochastic_depth import StochasticDepth


def run_branches(
    branches: Mapping[str, Backbone],
    features: Mapping[str, jax.Array],
    method: str,
    calls: Mapping[str, tuple[Any, ...]],
    number: int,
    train: bool | Mapping[str, bool],
    present: PresentModalities | None,
    found: list[PlacedGate] | None,
    depth: StochasticDepth | None,
) -> dict[str, jax.Array]:
    """`stem` or `stage` of branches, with their gates where `found` collects them.

    Args:
      branches: modality -> backbone.
      features: modality -> what they read.
      method: "stem" or "stage".
      calls: modality -> first arguments, of the branches to be run; others stay as they are.
      number: stage of the network, of the gates found.
      train, present, depth: as the network is told.
      found: gates are added to it; None where nobody asks.

    Tokens without a place in the map go from stage to stage beside it, as `<m>/tokens`.
    """
    after = dict(features)
    for m, arguments in calls.items():
        x, branch = features[m], branches[m]
        options = {
            "train": train if isinstance(train, bool) else train[m],
            "present": None if present is None else present[m],
        }
        skips = method == "stage" and isinstance(branch, SkippingBackbone)
        if skips and options["train"] and depth is not None:
            options["depth"] = depth.of(m)
        if isinstance(branch, TokenBackbone):
            tokens = f"{m}/tokens"
            carried = (features[tokens],) if tokens in features else ()
            call = getattr(branch, f"{method}_with_tokens")
            after[m], after[tokens] = call(*arguments, x, *carried, **options)
            continue
        if found is None or not isinstance(branch, GatedBackbone):
            after[m] = getattr(branch, method)(*arguments, x, **options)
            continue
        after[m], gates = getattr(branch, f"attend_{method}")(*arguments, x, **options)
        found += [
            PlacedGate(
                gate.values,
                {m: gate.scale},
                name.rstrip("0123456789"),
                modality=m,
                stage=number,
                inside=name,
            )
            for name, gate in gates.items()
        ]
    return after
