"""What an ablation takes away: a variant is a name, a meaning and the fields that it changes.

Variants are data. Every one is an ordinary configuration, so what an ablation trains could have
been trained by `drifa train` with the same fields changed by hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drifa_jax.config import Config
from drifa_jax.data.dataset import modality_names
from drifa_jax.errors import UserError

REFERENCE = "drifa"
CONCATENATION = "concatenation"


@dataclass(frozen=True)
class Variant:
    """One row of an ablation.

    Attributes:
      name: of its folder and row.
      meaning: what differs from the reference, in one phrase.
      changes: dotted field of the configuration -> value.
    """

    name: str
    meaning: str
    changes: Mapping[str, Any]

    def of(self, config: Config) -> Config:
        """The configuration with the fields changed."""
        for field, value in self.changes.items():
            config = _changed(config, field.split("."), value)
        return config


def variants(config: Config) -> tuple[Variant, ...]:
    """The reference and everything that can be taken away from a configuration.

    A variant that would train the same network on the same records as an earlier one (MGIFA off
    where there is no MGIFA) is left out; `left_out` names those.
    """
    return tuple(variant for variant, twin in _with_twins(config) if twin is None)


def left_out(config: Config) -> dict[str, str]:
    """Name of a variant -> the variant that it would repeat."""
    return {variant.name: twin for variant, twin in _with_twins(config) if twin is not None}


def chosen(config: Config, names: tuple[str, ...]) -> tuple[Variant, ...]:
    """The variants of these names, in the order of `variants`, the reference always among them.

    Raises:
      UserError: for a name that this configuration has no variant of.
    """
    known = {variant.name: variant for variant in variants(config)}
    repeated = left_out(config)
    for name in names:
        if name in repeated:
            raise UserError(f"--variants: {name!r} would repeat {repeated[name]!r} here.")
        if name not in known:
            raise UserError(f"--variants: there is no {name!r}; choose among {', '.join(known)}.")
    return tuple(v for v in known.values() if not names or v.name in (REFERENCE, *names))


def _with_twins(config: Config) -> list[tuple[Variant, str | None]]:
    first: dict[str, str] = {}
    found = []
    for variant in _candidates(config):
        twin = first.setdefault(variant.of(config).to_json(), variant.name)
        found.append((variant, None if twin == variant.name else twin))
    return found


def _candidates(config: Config) -> list[Variant]:
    model = config.model

    def without(part: str, *fields: str) -> dict[str, tuple[str, ...]]:
        return {
            f"model.{field}": tuple(p for p in getattr(model, field) if p != part)
            for field in fields
        }

    no_mfa: dict[str, Any] = {"model.mfa_parts": (), "model.stage_mfa_parts": ()}
    no_mifa: dict[str, Any] = {"model.mifa_parts": ()}
    found = [
        Variant(REFERENCE, "DRIFA-Net as configured", {}),
        Variant("mfa_off", "no MFA anywhere", no_mfa),
        Variant("hifa_off", "MFA without HIFA", without("hifa", "mfa_parts", "stage_mfa_parts")),
        Variant("clia_off", "MFA without CLIA", without("clia", "mfa_parts", "stage_mfa_parts")),
        Variant("rra_attention_off", "no MFA inside the RRA blocks", {"model.mfa_parts": ()}),
        Variant("mifa_off", "no MIFA: refined branches, concatenated", no_mifa),
        Variant("mgifa_off", "MIFA without MGIFA", without("mgifa", "mifa_parts")),
        Variant("mlifa_off", "MIFA without MLIFA", without("mlifa", "mifa_parts")),
        Variant("dropout_off", "no dropout", {"model.dropout_rate": 0.0}),
        Variant(
            CONCATENATION,
            "plain ResNet branches, concatenated: no attention at all",
            no_mfa | no_mifa,
        ),
        Variant(
            "late_averaging",
            "no MIFA: a head per modality, probabilities averaged",
            no_mifa | {"model.readout": "average"},
        ),
    ]
    kept = config.data.only_modalities or modality_names(config.data)
    if len(kept) > 1:
        found += [Variant(f"only_{m}", f"{m} alone", {"data.only_modalities": (m,)}) for m in kept]
    if config.data.source == "files" and len(config.data.modalities) > 1:
        found += [
            Variant(
                f"{strategy}_pairing",
                f"{meaning}, instead of {config.data.pairing} pairing",
                {"data.pairing": strategy},
            )
            for strategy, meaning in (
                ("index", "strangers paired by index, as the authors do"),
                ("by_task", "no strangers paired: one modality a record"),
            )
        ]
    return found


def _changed(node: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    if rest:
        value = _changed(getattr(node, name), rest, value)
    return dataclasses.replace(node, **{name: value})
