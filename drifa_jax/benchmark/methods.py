"""What a benchmark compares: ways to fuse, on the same branches, under the same training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drifa_jax.ablate.variants import Variant
from drifa_jax.errors import UserError
from drifa_jax.fusion_presets import BEST_FUSION, NO_ATTENTION
from drifa_jax.network_options import READ_RESOLUTIONS

REFERENCE = "concatenation"
"""Concatenation with the same auxiliary heads: what the best method must beat."""

BEST = "best"
"""The method that is compared with the reference; `docs/fusion_protocol.md` says why it is this."""

_APART: dict[str, Any] = {"model.fusion": "drifa"} | {
    f"model.{field}": value for field, value in NO_ATTENTION.items()
}


def methods(modalities: Sequence[str]) -> tuple[Variant, ...]:
    """All methods over given modalities; each is a change of the set's configuration."""
    every_resolution = {"model.read_stages": READ_RESOLUTIONS}
    return (
        Variant(
            BEST,
            "concatenation of every resolution, with the same auxiliary heads",
            {"model.fusion": "drifa"} | {f"model.{name}": v for name, v in BEST_FUSION.items()},
        ),
        Variant(
            REFERENCE,
            "concatenation, with the same auxiliary heads",
            {**_APART, "model.readout": "auxiliary"},
        ),
        Variant(
            "experts_of_resolutions",
            "product of experts that read every resolution",
            {**_APART, **every_resolution, "model.readout": "experts"},
        ),
        Variant(
            "experts",
            "product of experts that read the last stage",
            {**_APART, "model.readout": "experts"},
        ),
        Variant(
            "gated_experts",
            "product of experts behind identity gates",
            {**_APART, "model.fusion": "identity_gates", "model.readout": "experts"},
        ),
        Variant("drifa", "the paper's attention and readout", {}),
        Variant("plain_concatenation", "concatenation, one head", _APART),
        Variant(
            "late_average",
            "mean of the probabilities of a head a modality",
            {**_APART, "model.readout": "average"},
        ),
        *(
            Variant(
                f"only_{m}",
                f"{m} alone, every resolution",
                {
                    **_APART,
                    **every_resolution,
                    "model.readout": "auxiliary",
                    "data.only_modalities": (m,),
                },
            )
            for m in modalities
        ),
    )


def chosen(modalities: Sequence[str], names: Sequence[str]) -> tuple[Variant, ...]:
    """The methods of these names, all when there are none, the reference always among them.

    Raises:
      UserError: for a name that no method has.
    """
    known = {method.name: method for method in methods(modalities)}
    for name in names:
        # A single modality of another set is no mistake.
        if name not in known and not name.startswith("only_"):
            raise UserError(f"--methods: there is no {name!r}; choose among {', '.join(known)}.")
    return tuple(m for m in known.values() if not names or m.name in (REFERENCE, *names))
