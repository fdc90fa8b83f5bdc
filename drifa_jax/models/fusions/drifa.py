"""The paper's fusion: an MFA in each branch, then MIFA across all of them."""

from __future__ import annotations

from collections.abc import Mapping

from flax import nnx

from drifa_jax.models.fusions.contract import Features, Fused
from drifa_jax.models.gates import PlacedGate
from drifa_jax.models.mifa import MIFA
from drifa_jax.models.rra import optional_mfa
from drifa_jax.network_options import NetworkOptions
from drifa_jax.typing import Gate, Present


class DRIFAFusion(nnx.Module):
    """MFA of each modality (but after the last stage), then MIFA, of the parts in the options.

    Source: section 3 and Fig. 1.
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        *,
        last: bool,
        options: NetworkOptions,
        rngs: nnx.Rngs,
    ):
        mfa_parts = () if last else options.stage_mfa_parts
        self.mfa = nnx.Dict(
            {m: optional_mfa(c, mfa_parts, options, rngs) for m, c in channels.items()}
            if mfa_parts
            else {}
        )
        self.mifa = (
            MIFA(
                tuple(channels),
                channels,
                mgifa="mgifa" in options.mifa_parts,
                mlifa="mlifa" in options.mifa_parts,
                dtype=options.dtype,
                rngs=rngs,
            )
            if options.mifa_parts
            else None
        )

    def __call__(self, features: Features, present: Mapping[str, Present] | None) -> Fused:
        """`y_m = MIFA(MFA_m(x_m))`."""
        features, seen, gates = dict(features), {}, []
        for m, mfa in self.mfa.items():
            features[m], parts = mfa.attend(features[m])
            seen |= {f"mfa/{m}": features[m], f"mfa/{m}/gate": parts["gate"]}
            gates.append(PlacedGate(parts["gate"], {m: mfa.alpha[...]}, "mfa", modality=m))
        if self.mifa is not None:
            features, parts = self.mifa.attend(features, present)
            seen |= {f"mifa/{part}": gate for part, gate in parts.items()}
            seen |= {f"mifa/{m}": x for m, x in features.items()}
            gates += self._placed(parts)
        return Fused(features, seen, tuple(gates))

    def _placed(self, parts: Mapping[str, Gate]) -> list[PlacedGate]:
        """MIFA's gates: shared by all modalities, or one of each where their channels differ."""
        scales = {m: alpha[...] for m, alpha in self.mifa.alpha.items()}
        if "gate" in parts:
            return [PlacedGate(gate, scales, "mifa", part) for part, gate in parts.items()]
        placed = []
        for name, gate in parts.items():
            part, _, m = name.partition("/")
            own = {m: scales[m]} if m else {}
            placed.append(PlacedGate(gate, own, "mifa", part, modality=m or None))
        return placed
