"""The gates of MFA and MIFA, made readable: how strongly each lets each modality through.

A gate is one weight per channel. `gates` returns them all, from the stem to the last stage;
`gate_rows` says in a few numbers for each what it does: how open it is, how much it tells
channels apart, and how much it differs between records. A gate that is the same for every record
selects nothing by what it sees.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from drifa_jax.explain.members import Pixels, Present, masks, over_members
from drifa_jax.models.functional import Functional
from drifa_jax.models.pixels import scale_pixels
from drifa_jax.predict.restored import Restored

STEM = -1
"""The stage of a gate inside the stem."""

INSIDE = ("mfa", "mfa1", "mfa2", "")
"""Where in its stage a gate stands, in the order in which features meet them; "" comes after."""


@dataclass(frozen=True)
class Gate:
    """One gate.

    Attributes:
      stage: number of the stage; `STEM` inside the stem.
      kind: "mfa" (within one modality) or "mifa" (across modalities).
      part: "gate" (what multiplies the features), or "mgifa" or "mlifa" that it is made of.
      modality: of an MFA; None of MIFA, whose gate all modalities share.
      values: `[e, b, c]` float32, in (0, 1) for "gate".
      scales: modality -> `[e, c]`, the learned factor of each channel that multiplies the gate.
      inside: name of the MFA inside the stem ("mfa") or the RRA block ("mfa1", "mfa2"); "" for
        the gates between stages.
    """

    stage: int
    kind: str
    part: str
    modality: str | None
    values: np.ndarray
    scales: dict[str, np.ndarray]
    inside: str = ""

    @property
    def place(self) -> str:
        """Where it stands, in words."""
        if self.stage == STEM:
            return "stem"
        if self.inside:
            return f"block {self.stage}, after convolution {self.inside.removeprefix('mfa')}"
        return f"after stage {self.stage}"


def gates(restored: Restored, pixels: Pixels, *, present: Present | None = None) -> list[Gate]:
    """Every gate, in the order in which the features meet them.

    Args:
      restored: the members.
      pixels: modality -> `[b, h, w, c]` uint8 at the network's size (of a table, its features).
      present: modality -> `[b]` bool, or None when every record holds every modality.

    Returns:
      None of a network without attention: an empty list.

    Test: tests/explain/test_gates.py.
    """
    function = _compiled(restored.network)
    named = over_members(restored, function, dict(pixels), masks(restored, present))
    found = [_gate(name, values, restored.params) for name, values in named.items()]
    order = {"mfa": 0, "mifa": 1}
    return sorted(
        found,
        key=lambda g: (g.stage, INSIDE.index(g.inside), order[g.kind], g.modality or "", g.part),
    )


def gate_rows(found: list[Gate]) -> list[dict[str, Any]]:
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


def _gate(name: str, values: np.ndarray, params: Mapping[str, Any]) -> Gate:
    """The gate of an intermediate, with the scales beside it in the parameters."""
    stage, kind, *rest = name.split("/")
    if stage == "stem":
        modality, inside = kind, rest[0]
        alpha = params["branches"][modality]["stem"][inside]["alpha"]
        return Gate(STEM, "mfa", "gate", modality, values, {modality: np.asarray(alpha)}, inside)
    number = int(stage.removeprefix("stage_"))
    if kind == "rra":
        modality, inside = rest
        alpha = params["branches"][modality]["stages"][stage][inside]["alpha"]
        return Gate(number, "mfa", "gate", modality, values, {modality: np.asarray(alpha)}, inside)
    of_stage = params["fusion"][stage]
    if kind == "mfa":
        modality, part = rest
        scales = {modality: np.asarray(of_stage["mfa"][modality]["alpha"])}
        return Gate(number, kind, part, modality, values, scales)
    scales = {m: np.asarray(alpha) for m, alpha in of_stage["mifa"]["alpha"].items()}
    return Gate(number, kind, rest[0], None, values, scales)


@functools.lru_cache(maxsize=4)
def _compiled(network: Functional):
    def named_gates(params, statistics, pixels, present):
        seen, _ = network.apply(
            params,
            statistics,
            scale_pixels(pixels),
            train=False,
            present=present,
            method="observe",
        )
        return {name: x for name, x in seen.items() if _is_gate(name)}

    return jax.jit(named_gates)


def _is_gate(name: str) -> bool:
    stage, _, rest = name.partition("/")
    kind, _, part = rest.partition("/")
    if stage == "stem":
        return True
    if kind == "rra":  # with the features of the stage, named after their modality alone
        return "/" in part
    if kind == "mfa":
        return part.endswith("/gate")
    return kind == "mifa" and part in ("gate", "mgifa", "mlifa")
