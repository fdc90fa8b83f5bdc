"""One modality as it was found, and what the user says where the data leave it open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drifa_jax.errors import UserError

FEWEST_GROUPS = 5
"""Of a class: fewer cannot be in every split and fold."""
ENOUGH_GROUPS = 30
"""Of a class: from here on its own sensitivity means something (a 95 % interval of +-0.15)."""


ONE_PATIENT = (
    "all images are of one patient, who cannot be both in training and in test. Add patients; "
    "where they are of several, say what tells them apart: --group-column COLUMN of a table, "
    "--group-pattern REGEX of file names."
)


def too_small(small: Mapping[str, int]) -> str:
    """What is said of classes of too few groups, class -> groups."""
    told = ", ".join(f"{name} ({groups})" for name, groups in small.items())
    return (
        f"too small for its classes: {told} of fewer than {FEWEST_GROUPS} patients or images. "
        f"With {FEWEST_GROUPS} a class can be split at all, from about {ENOUGH_GROUPS} on its "
        "figures mean something. Add records, or merge or remove these classes."
    )


@dataclass(frozen=True)
class Answers:
    """What the user says where the data leave it open; "" leaves it to the data."""

    table: str = ""
    label: str = ""
    label_table: str = ""
    group_column: str = ""
    group_pattern: str = ""
    include: str = ""
    pairing: str = ""


@dataclass
class Found:
    """One modality.

    Attributes:
      name: of the modality.
      root: what the names of its images are relative to.
      fields: of its `ModalityConfig`.
      reasons: field -> why.
      images: names of its images.
      task: what its labels are called.
      counts: class -> records.
      groups_of: class -> groups.
      splits: split -> records, of those that the data bring.
      groups: patients, lesions or slides; 0 where nobody knows.
      table: the table that it shares with others, if any.
      facts: what the user should know of it.
      classes_of: the class of each image.
    """

    name: str
    root: Path
    fields: dict[str, Any]
    reasons: dict[str, str]
    images: tuple[str, ...]
    task: str
    counts: dict[str, int]
    groups_of: dict[str, int]
    splits: dict[str, int]
    groups: int = 0
    table: str = ""
    facts: list[str] = field(default_factory=list)
    classes_of: Sequence[str] = ()

    @property
    def whole(self) -> str:
        """How many of what splits keep whole, in words."""
        if self.groups:
            return f"{self.groups} patients, lesions or slides"
        return f"{sum(self.counts.values())} records"

    @property
    def pictures(self) -> bool:
        """Whether its images are files whose headers Pillow reads."""
        return self.fields["format"] in ("folders", "manifest")

    def examples(self, by_class: int) -> dict[str, list[str]]:
        """Class -> names of a few of its images, evenly spread."""
        held: dict[str, list[str]] = {}
        for name, kind in zip(self.images, self.classes_of, strict=False):
            held.setdefault(kind, []).append(name)
        chosen = {}
        for kind, images in sorted(held.items()):
            step = max(1, len(images) // by_class)
            chosen[kind] = images[::step][:by_class]
        return chosen


class Questions(UserError):
    """What the data leave open; each line names the flag that answers."""

    def __init__(self, questions: Sequence[str]):
        super().__init__("these need an answer:\n  " + "\n  ".join(questions))


def fewest_groups(found: Sequence[Found]) -> tuple[int, str]:
    """What splits keep whole, of the modality that has the fewest: number, and in words."""
    fewest = min(found, key=lambda modality: modality.groups or sum(modality.counts.values()))
    return fewest.groups or sum(fewest.counts.values()), fewest.whole
