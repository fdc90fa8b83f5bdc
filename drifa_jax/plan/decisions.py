"""What a plan decides, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from drifa_jax.config import Config, from_mapping


@dataclass
class Plan:
    """Settings by their dotted names, and why.

    Attributes:
      modalities: modality -> field -> value.
      settings: dotted name -> value, of all else.
      reasons: dotted name -> one line.
      warnings: what the user should know before believing any figure.
      seconds: that the run takes on this device; None where it was not measured.
    """

    modalities: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: float | None = None

    def decide(self, name: str, value: Any, reason: str) -> None:
        """Sets a field, with its reason."""
        self.settings[name], self.reasons[name] = value, reason

    def config(self) -> Config:
        """The plan as a resolved configuration."""
        values: dict[str, Any] = {"data": {"modalities": self.modalities}}
        for name, value in self.settings.items():
            *groups, last = name.split(".")
            group = values
            for part in groups:
                group = group.setdefault(part, {})
            group[last] = value
        return from_mapping(values)
