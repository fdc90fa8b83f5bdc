"""The gates of MFA and MIFA, made readable: how strongly each stage lets each modality through.

A gate is one weight per channel. `gates` returns them all; `gate_rows` says in a few numbers per
stage what they do: how open they are, how much they tell channels apart, and how much they differ
between records. A gate that is the same for every record selects nothing by what it sees.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from drifa_jax.explain.members import Pixels, Present, masks, over_members
from drifa_jax.models.functional import Functional
from drifa_jax.models.pixels import scale_pixels
from drifa_jax.predict.restored import Restored


@dataclass(frozen=True)
class Gate:
    """One gate of one stage.

    Attributes:
      stage: number of the stage.
      kind: "mfa" (within one modality) or "mifa" (across modalities).
      part: "gate" (what multiplies the features), or "mgifa" or "mlifa" that it is made of.
      modality: of an MFA; None of MIFA, whose gate all modalities share.
      values: `[e, b, c]` float32, in (0, 1) for "gate".
      scales: modality -> `[e, c]`, the learned factor of each channel that multiplies the gate.
    """

    stage: int
    kind: str
    part: str
    modality: str | None
    values: np.ndarray
    scales: dict[str, np.ndarray]


def gates(restored: Restored, pixels: Pixels, *, present: Present | None = None) -> list[Gate]:
    """Every gate between the stages, in the order in which the features meet them.

    Args:
      restored: the members.
      pixels: modality -> `[b, h, w, c]` uint8 at the network's size.
      present: modality -> `[b]` bool, or None when every record holds every modality.

    Returns:
      None of a network without attention between its stages: an empty list.

    Test: tests/explain/test_gates.py.
    """
    function = _compiled(restored.network)
    named = over_members(restored, function, dict(pixels), masks(restored, present))
    fusion = restored.params.get("fusion", {})
    found = []
    for name, values in named.items():
        stage, kind, *rest = name.split("/")
        of_stage = fusion[stage]
        if kind == "mfa":
            modality, part = rest
            scales = {modality: np.asarray(of_stage["mfa"][modality]["alpha"])}
        else:
            modality, part = None, rest[0]
            scales = {m: np.asarray(alpha) for m, alpha in of_stage["mifa"]["alpha"].items()}
        found.append(Gate(int(stage.removeprefix("stage_")), kind, part, modality, values, scales))
    order = {"mfa": 0, "mifa": 1}
    return sorted(found, key=lambda g: (g.stage, order[g.kind], g.modality or "", g.part))


def gate_rows(found: list[Gate]) -> list[dict[str, Any]]:
    """One row for each stage, modality and kind, of the gates that multiply features.

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
    def named_gates(params, statistics, pixels, present):
        (_, seen), _ = network.apply(
            params, statistics, scale_pixels(pixels), train=False, present=present
        )
        # Of the intermediates, gates alone are `[b, c]`: features have spatial axes, and the
        # features of tables are named after their modality.
        return {name: x for name, x in seen.items() if _is_gate(name)}

    return jax.jit(named_gates)


def _is_gate(name: str) -> bool:
    _, _, rest = name.partition("/")
    kind, _, part = rest.partition("/")
    if kind == "mfa":
        return part.endswith("/gate")
    return kind == "mifa" and part in ("gate", "mgifa", "mlifa")
