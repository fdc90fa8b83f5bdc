"""The split of a run as a file: which record, of which group and content, went where.

Saved beside a run, it lets anyone repeat the split exactly and notice when the data changed.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from drifa_jax.data.duplicates import content_hash
from drifa_jax.data.problems import Problems
from drifa_jax.data.record import Source
from drifa_jax.data.records import SPLIT, Records, as_records
from drifa_jax.digests import digest
from drifa_jax.errors import UserError
from drifa_jax.sealed_files import unsealed
from drifa_jax.whole_files import written_whole

FORMAT = "drifa-split-1"
CURE = "Restore the data, or split anew with a new manifest."
FIELDS = {"format", "seed", "descriptions", "left_out", "splits"}


@dataclass(frozen=True)
class Entry:
    """One record of a split; `content` is the SHA-256 of its images, or "" if not taken."""

    record_id: str
    group_id: str
    content: str


@dataclass(frozen=True)
class SplitManifest:
    """The splits of one table of records.

    Attributes:
      seed: drew what the data did not bring.
      splits: split -> its records.
      descriptions: split -> what it is, in words.
      left_out: ids of the records that are in no split, such as duplicates.
    """

    seed: int
    splits: Mapping[str, tuple[Entry, ...]]
    descriptions: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def save(self, path: str | Path) -> None:
        """Write the manifest as JSON, one record a line; whole or not at all."""
        facts = {
            "format": FORMAT,
            "seed": self.seed,
            "descriptions": dict(self.descriptions),
            "left_out": list(self.left_out),
        }
        rows = {
            split: [[e.record_id, e.group_id, e.content] for e in entries]
            for split, entries in self.splits.items()
        }
        facts["digest"] = digest(facts | {"splits": rows})
        lines = []
        for split, entries in rows.items():
            listed = ",\n".join("   " + json.dumps(row) for row in entries)
            lines.append(f"  {json.dumps(split)}: [\n{listed}\n  ]")
        head = json.dumps(facts)[:-1] + ', "splits": {\n'
        with written_whole(path) as partial:
            partial.write_text(head + ",\n".join(lines) + "\n}}\n")

    def assigned(self, source: Source) -> Records:
        """The records that the manifest names, each with the split that it says.

        Raises:
          UserError: listing records that are missing.
        """
        records = as_records(source)
        self._missing_from(records).raise_any(CURE)
        split_of = {e.record_id: split for split, entries in self.splits.items() for e in entries}
        told = [split_of.get(record_id) for record_id in records.ids]
        known = np.flatnonzero([split is not None for split in told])
        return records.with_column(SPLIT, pa.array(told, pa.string())).take(known)

    def apply(self, source: Source, *, check_content: bool = False) -> dict[str, Records]:
        """The same split of a source, by record id.

        Raises:
          UserError: listing records that are missing, and, when asked, those whose images changed.
        """
        records = as_records(source)
        index = {record_id: i for i, record_id in enumerate(records.ids)}
        problems = self._missing_from(records)
        parts: dict[str, Records] = {}
        for split, entries in self.splits.items():
            known = [entry for entry in entries if entry.record_id in index]
            described = self.descriptions.get(
                split, f"{records.description}, {split} of a saved split"
            )
            part = records.take([index[entry.record_id] for entry in known], described)
            parts[split] = part.regrouped([entry.group_id for entry in known])
        if check_content:
            for record_id in self.changed(parts):
                problems.add(record_id, "has other images than when it was split")
        problems.raise_any(CURE)
        return parts

    def _missing_from(self, records: Records) -> Problems:
        held = set(records.ids)
        problems = Problems(f"the split manifest applied to {records.description}")
        for split, entries in self.splits.items():
            for entry in entries:
                if entry.record_id not in held:
                    problems.add(entry.record_id, f"is in the {split} split but not in the data")
        return problems

    def changed(self, parts: Mapping[str, Source]) -> list[str]:
        """Ids of the records of splits whose images are not those that were split."""
        changed = []
        with ThreadPoolExecutor(2) as pool:
            for split, part in parts.items():
                records = as_records(part)
                known = {e.record_id: e.content for e in self.splits[split] if e.content}
                rows = [i for i, record_id in enumerate(records.ids) if record_id in known]
                contents = pool.map(functools.partial(_content, records), rows)
                for row, content in zip(rows, contents, strict=True):
                    record_id = records.record_id(row)
                    if content != known[record_id]:
                        changed.append(record_id)
        return changed


def describe_split(
    sources: Mapping[str, Source],
    seed: int,
    *,
    left_out: Sequence[str] = (),
    hash_content: bool = True,
) -> SplitManifest:
    """The manifest of splits; hashing reads every record."""
    splits = {}
    with ThreadPoolExecutor(2) as pool:
        for split, source in sources.items():
            indices = range(len(source))
            contents = [""] * len(source)
            if hash_content:
                contents = list(pool.map(functools.partial(_content, source), indices))
            splits[split] = tuple(
                Entry(source.record_id(i), source.group_id(i), contents[i]) for i in indices
            )
    descriptions = {split: source.description for split, source in sources.items()}
    return SplitManifest(seed, splits, descriptions, tuple(left_out))


def load_split(path: str | Path) -> SplitManifest:
    """Read a manifest; a `UserError` says what is wrong with it."""
    try:
        content = unsealed(json.loads(Path(path).read_text()))
        if content["format"] != FORMAT:
            raise UserError(f"{path}: has the format {content['format']!r}, wanted {FORMAT!r}.")
        if unknown := sorted(set(content) - FIELDS):
            raise ValueError(f"it has the unknown fields {unknown}")
        splits = {
            split: tuple(_entry(row) for row in rows) for split, rows in content["splits"].items()
        }
        ids = Counter(entry.record_id for entries in splits.values() for entry in entries)
        if repeated := [record_id for record_id, count in ids.items() if count > 1]:
            raise ValueError(f"it names {repeated[0]!r} more than once")
        return SplitManifest(
            int(content["seed"]),
            splits,
            dict(content.get("descriptions", {})),
            tuple(content.get("left_out", ())),
        )
    except FileNotFoundError as error:
        raise UserError(f"The split manifest {path} does not exist.") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: is not a split manifest, or was changed ({error}). Copy it again from where "
            "it was saved; without it the records cannot be told apart as before."
        ) from error


def _entry(row: list[str]) -> Entry:
    if not all(isinstance(cell, str) for cell in row):
        raise TypeError(f"{row} are not three texts")
    return Entry(*row)


def _content(source: Source, index: int) -> str:
    return content_hash(source[index])
