"""A gate and where in the network it sits, as the network hands it out."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax

STEM = -1
"""The stage of a gate inside the stem."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("values", "scales"),
    meta_fields=("kind", "part", "modality", "stage", "inside"),
)
@dataclass(frozen=True)
class PlacedGate:
    """One gate.

    Attributes:
      values: `[b, c]` float32; of several members `[e, b, c]`.
      scales: modality -> `[c]` or `[e, c]`, the learned factor of each channel that multiplies
        the gate.
      kind: "mfa" (within one modality), "mifa" (across modalities), or what a backbone or fusion
        calls its own.
      part: "gate" (what multiplies the features), or a part that it is made of.
      modality: whose features it gates; None where modalities share it.
      stage: number of the stage; `STEM` inside the stem.
      inside: name inside the stem or stage of a backbone; "" for the gates between stages.
    """

    values: Any
    scales: dict[str, Any]
    kind: str
    part: str = "gate"
    modality: str | None = None
    stage: int = STEM
    inside: str = ""

    @property
    def place(self) -> str:
        """Where it stands, in words."""
        if self.stage == STEM:
            return "stem"
        if not self.inside:
            return f"after stage {self.stage}"
        number = self.inside.removeprefix(self.kind)
        return f"block {self.stage}, " + (f"after convolution {number}" if number else self.inside)
