"""The split of a run as a file: which record, of which group and content, went where.

Saved beside a run, it lets anyone repeat the split exactly and notice when the data changed.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from drifa_jax.data.duplicates import content_hash
from drifa_jax.data.problems import Problems
from drifa_jax.data.record import Source
from drifa_jax.data.splits import Subset
from drifa_jax.errors import UserError

FORMAT = "drifa-split-1"


@dataclass(frozen=True)
class Entry:
    """One record of a split; `content` is the SHA-256 of its images, or "" if not taken."""

    record_id: str
    group_id: str
    content: str


@dataclass(frozen=True)
class SplitManifest:
    """split -> its records, with the seed that drew it."""

    seed: int
    splits: Mapping[str, tuple[Entry, ...]]

    def save(self, path: str | Path) -> None:
        """Write the manifest as JSON, one record a line."""
        lines = []
        for split, entries in self.splits.items():
            rows = ",\n".join(
                "   " + json.dumps([e.record_id, e.group_id, e.content]) for e in entries
            )
            lines.append(f"  {json.dumps(split)}: [\n{rows}\n  ]")
        head = f'{{"format": {json.dumps(FORMAT)}, "seed": {self.seed}, "splits": {{\n'
        Path(path).write_text(head + ",\n".join(lines) + "\n}}\n")

    def apply(self, source: Source, *, check_content: bool = False) -> dict[str, Subset]:
        """The same split of a source, by record id.

        Raises:
          UserError: listing records that are missing, and, when asked, those whose images changed.
        """
        index = {source.record_id(i): i for i in range(len(source))}
        problems = Problems(f"the split manifest applied to {source.description}")
        parts: dict[str, Subset] = {}
        for split, entries in self.splits.items():
            for entry in entries:
                if entry.record_id not in index:
                    problems.add(entry.record_id, f"is in the {split} split but not in the data")
                elif check_content and entry.content:
                    if _content(source, index[entry.record_id]) != entry.content:
                        problems.add(entry.record_id, "has other images than when it was split")
            known = [index[e.record_id] for e in entries if e.record_id in index]
            parts[split] = Subset(source, known, f"{source.description}, {split} of a saved split")
        problems.raise_any("Restore the data, or split anew with a new manifest.")
        return parts


def describe_split(
    sources: Mapping[str, Source], seed: int, *, hash_content: bool = True
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
    return SplitManifest(seed, splits)


def load_split(path: str | Path) -> SplitManifest:
    """Read a manifest; a `UserError` says what is wrong with it."""
    try:
        content = json.loads(Path(path).read_text())
        if content["format"] != FORMAT:
            raise UserError(f"{path}: has the format {content['format']!r}, wanted {FORMAT!r}.")
        splits = {
            split: tuple(Entry(*row) for row in rows) for split, rows in content["splits"].items()
        }
        return SplitManifest(int(content["seed"]), splits)
    except FileNotFoundError as error:
        raise UserError(f"The split manifest {path} does not exist.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is not a split manifest ({error}).") from error


def _content(source: Source, index: int) -> str:
    return content_hash(source[index])
