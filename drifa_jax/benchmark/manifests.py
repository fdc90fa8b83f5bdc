"""A published split: which records of a set, of which group and content, are in which part.

A manifest holds ids, groups and hashes, and never data, so that anyone who has a set can repeat a
benchmark on the very same folds and notice that a set is another one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drifa_jax.data.records import Records, at
from drifa_jax.data.split_manifest import Entry, SplitManifest
from drifa_jax.data.splits import split_groups, strata
from drifa_jax.digests import digest
from drifa_jax.errors import UserError
from drifa_jax.sealed_files import unsealed
from drifa_jax.whole_files import written_whole

FORMAT = "drifa-benchmark-1"
PARTS_A_FOLD = 2
"""A fold tests two parts, validates on the next one, and trains on all others."""

DIGITS = 16
"""Of a SHA-256, in hexadecimal: enough to notice another file."""


@dataclass(frozen=True)
class Member:
    """One record: `content` is the digest of its files, `part` where it is."""

    record_id: str
    group_id: str
    part: int
    content: str


@dataclass(frozen=True)
class BenchmarkManifest:
    """The parts of one set.

    Attributes:
      name: of the set.
      num_folds: that the parts make.
      members: its records.
    """

    name: str
    num_folds: int
    members: tuple[Member, ...]

    def save(self, path: Path) -> None:
        """Writes JSON, one record a line; whole or not at all."""
        facts = {"format": FORMAT, "name": self.name, "num_folds": self.num_folds}
        rows = [[m.record_id, m.group_id, m.part, m.content] for m in self.members]
        facts["digest"] = digest(facts | {"records": rows})
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as partial:
            listed = ",\n".join("  " + json.dumps(row) for row in rows)
            partial.write_text(json.dumps(facts)[:-1] + ', "records": [\n' + listed + "\n]}\n")

    def of_fold(self, fold: int) -> SplitManifest:
        """The three splits of one fold."""
        num_parts = self.num_folds * PARTS_A_FOLD
        test = {PARTS_A_FOLD * fold + part for part in range(PARTS_A_FOLD)}
        validation = (PARTS_A_FOLD * (fold + 1)) % num_parts
        splits: dict[str, list[Entry]] = {"train": [], "validation": [], "test": []}
        for m in self.members:
            split = "test" if m.part in test else "validation" if m.part == validation else "train"
            splits[split].append(Entry(m.record_id, m.group_id, ""))
        described = {split: f"{self.name}, {split} of fold {fold}" for split in splits}
        return SplitManifest(0, {s: tuple(e) for s, e in splits.items()}, described)

    def check(self, records: Records, root: str) -> None:
        """An error where the data are not those of the manifest.

        Raises:
          UserError: how many records are missing, unknown, or hold other files, and the first.
        """
        ours = {m.record_id: m for m in self.members}
        held = set(records.ids)
        missing = [i for i in ours if i not in held]
        unknown = [i for i in records.ids if i not in ours]
        changed = []
        if not missing and not unknown:
            contents = zip(records.ids, contents_of(records), strict=True)
            changed = [i for i, content in contents if ours[i].content != content]
        said = [
            f"{len(ids)} of {total} records {what} (first {ids[0]!r})"
            for ids, total, what in (
                (missing, len(ours), "of the manifest are missing from the data"),
                (unknown, len(held), "of the data are not in the manifest"),
                (changed, len(ours), "hold other files than the manifest says"),
            )
            if ids
        ]
        if said:
            raise UserError(
                f"{self.name}: {root} is not the set of the manifest: {'; '.join(said)}. Most "
                "likely it is another version or another subset; get the one that "
                "docs/benchmark.md names, or benchmark yours as a set of its own, by its config."
            )


def drawn(name: str, records: Records, num_folds: int, seed: int = 0) -> BenchmarkManifest:
    """A manifest of new parts: groups stay whole, classes are balanced.

    Raises:
      UserError: when there are fewer groups than parts.
    """
    num_parts = num_folds * PARTS_A_FOLD
    if len(set(records.groups)) < num_parts:
        raise UserError(
            f"{name}: {len(set(records.groups))} groups cannot fill {num_parts} parts of "
            f"{num_folds} folds; lower data.num_folds."
        )
    shares = {str(part): 1 / num_parts for part in range(num_parts)}
    part_of = np.zeros(len(records), int)
    for part, rows in split_groups(strata(records), records.groups, shares, seed).items():
        part_of[rows] = int(part)
    members = zip(records.ids, records.groups, part_of.tolist(), contents_of(records), strict=True)
    return BenchmarkManifest(name, num_folds, tuple(Member(*member) for member in members))


def load(path: Path) -> BenchmarkManifest:
    """A manifest from its file.

    Raises:
      UserError: when it is no manifest, or was changed.
    """
    try:
        values = unsealed(json.loads(path.read_text()))
        if values["format"] != FORMAT:
            raise ValueError(f"its format is {values['format']!r}, wanted {FORMAT!r}")
        members = tuple(Member(*row) for row in values["records"])
        return BenchmarkManifest(values["name"], values["num_folds"], members)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is no benchmark manifest, or was changed ({error}).") from error


def contents_of(records: Records) -> list[str]:
    """Digest of the files of each record, in the order of the modalities' names."""
    names = sorted(
        spec.name for spec in records.modalities if at(spec.name) in records.table.column_names
    )
    places = [records.column(at(name)) for name in names]
    return [_content(row) for row in zip(*places, strict=True)]


def _content(places: Sequence[object]) -> str:
    total = hashlib.sha256()
    for place in places:
        path = Path(place) if isinstance(place, str) else None
        total.update(path.read_bytes() if path is not None and path.is_file() else b"-")
    return total.hexdigest()[:DIGITS]
