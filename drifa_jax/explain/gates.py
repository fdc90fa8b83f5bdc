"""The gates of MFA and MIFA, made readable: how strongly each lets each modality through.

A gate is one weight per channel. `gates` returns them all, from the stem to the last stage;
`gate_rows` says in a few numbers for each what it does: how open it is, how much it tells
channels apart, and how much it differs between records. A gate that is the same for every record
selects nothing by what it sees.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from drifa_jax.explain.members import Pixels, Present, masks, over_members
from drifa_jax.models.functional import Functional
from drifa_jax.models.gates import PlacedGate
from drifa_jax.models.pixels import scale_pixels
from drifa_jax.predict.restored import Restored


def gates(
    restored: Restored, pixels: Pixels, *, present: Present | None = None
) -> list[PlacedGate]:
    """Every gate, in the order in which the features meet them.

    Args:
      restored: the members.
      pixels: modality -> `[b, h, w, c]` uint8 at the network's size (of a table, its features).
      present: modality -> `[b]` bool, or None when every record holds every modality.

    Returns:
      Values `[e, b, c]` and scales `[e, c]` on the host; an empty list of a network without gates.

    Test: tests/explain/test_gates.py.
    """
    function = _compiled(restored.network)
    found = over_members(restored, function, dict(pixels), masks(restored, present))
    # A scale is that of a member, whatever the record.
    found = [
        dataclasses.replace(g, scales={m: s[:, 0] for m, s in g.scales.items()}) for g in found
    ]
    return sorted(
        found, key=lambda g: (g.stage, not g.inside, g.inside, g.kind, g.modality or "", g.part)
    )


def gate_rows(found: list[PlacedGate]) -> list[dict[str, Any]]:
    """One row for each place, modality and kind, of the gates that multiply features.

    `mean` is the average weight (gate times learned scale), `between_channels` the standard
    deviation over channels, `between_records` that over records, averaged over channels, and
    `between_members` that of `mean` over the ensemble.
    """
    rows = []
    for gate in found:
        if gate.part != "gate":
            continue
        for modality, scale in gate.scales.items():
            weight = gate.values * scale[:, None]
            rows.append(
                {
                    "place": gate.place,
                    "stage": gate.stage,
                    "kind": gate.kind,
                    "modality": modality,
                    "mean": float(weight.mean()),
                    "between_channels": float(weight.mean(axis=1).std(axis=-1).mean()),
                    "between_records": float(weight.std(axis=1).mean()),
                    "between_members": float(weight.mean(axis=(1, 2)).std()),
                }
            )
    return rows


@functools.lru_cache(maxsize=4)
def _compiled(network: Functional):
    def found(params, statistics, pixels, present):
        placed, _ = network.apply(
            params, statistics, scale_pixels(pixels), train=False, present=present, method="gates"
        )
        # Every array gets the records' axis, along which answers are put together.
        return [
            dataclasses.replace(
                gate,
                scales={
                    m: jnp.broadcast_to(s, (len(gate.values), *s.shape))
                    for m, s in gate.scales.items()
                },
            )
            for gate in placed
        ]

    return jax.jit(found)
