"""What a network reads and answers; light, so that an exported file is asked without the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from drifa_jax.data.record import Spec, described_spec
from drifa_jax.predict.reading import Reading


@dataclass(frozen=True)
class Description:
    """What goes into a network and what comes out, by name.

    Attributes:
      modalities: size and channels that every image is brought to; of a table, its features.
      readings: modality -> how its files or rows are read.
      tasks: task -> class names.
      may_lack_modalities: whether it was trained on records that lack some.
      synthetic: whether it was trained on drawn data.
      data: where the training records came from, in words.
    """

    modalities: tuple[Spec, ...]
    readings: Mapping[str, Reading]
    tasks: Mapping[str, tuple[str, ...]]
    may_lack_modalities: bool
    synthetic: bool
    data: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Description:
        specs = tuple(described_spec(spec) for spec in values["modalities"])
        if "readings" in values:
            readings = {s.name: Reading.from_json(values["readings"][s.name]) for s in specs}
        else:  # of runs that read images alone
            readings = {s.name: Reading(fit=values["fits"][s.name]) for s in specs}
        return cls(
            specs,
            readings,
            {task: tuple(classes) for task, classes in values["tasks"].items()},
            bool(values["may_lack_modalities"]),
            bool(values["synthetic"]),
            str(values["data"]),
        )
