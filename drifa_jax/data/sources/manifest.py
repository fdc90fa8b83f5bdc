"""A manifest: a CSV or Parquet table that says which images and labels make a record.

Wide form, one row a record: columns hold the image of each modality and the label of each task.
Long form, one row an image: a column names the modality, another the image, and rows of the
same record id belong together. A missing cell is an absent modality or an unknown label.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from drifa_jax.data.decode import FITS, IMAGE_SUFFIXES, decode_file
from drifa_jax.data.problems import Problems
from drifa_jax.data.record import MISSING_LABEL, ModalitySpec, Record, TaskSpec
from drifa_jax.data.sources.folders import SPLIT_FOLDERS
from drifa_jax.data.splits import Subset, leaking_groups, split_source
from drifa_jax.data.table import Row, is_missing, read_table
from drifa_jax.errors import UserError


@dataclass(frozen=True)
class ManifestColumns:
    """Which column of the table means what.

    Attributes:
      record_id: unique name of a record (in the long form, shared by its images).
      images: modality -> column with the image: a path relative to the root, or a file name
        without folder or suffix, which is then looked up anywhere below the root.
      tasks: task -> column with the class name.
      group: column with the patient, lesion or slide; "" for every record its own.
      split: column with train, validation or test; "" to draw splits.
      modality, path: columns of the long form; `images` then stays empty.
    """

    record_id: str
    images: Mapping[str, str] = field(default_factory=dict)
    tasks: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    split: str = ""
    modality: str = ""
    path: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that the table must have."""
        names = (self.record_id, *self.images.values(), *self.tasks.values())
        return tuple(n for n in (*names, self.group, self.split, self.modality, self.path) if n)


@dataclass(frozen=True)
class _Entry:
    record_id: str
    group: str
    split: str
    paths: Mapping[str, Path]
    labels: Mapping[str, int]
    row: Row


class ManifestSource:
    """The records of a manifest, a `Source`.

    Args:
      table: the CSV or Parquet file.
      root: folder that the paths are relative to; none may leave it.
      columns: what the columns mean.
      modalities: the size and channels of each modality.
      classes: task -> its class names, or absent to take the sorted names in the table.
      fit: how another aspect ratio is fitted.
      quarantine: CSV file for wrong rows, which are then left out; None raises.

    Raises:
      UserError: listing every problem: missing columns, duplicate ids, labels outside the
        declared classes, paths outside the root or without a file, unknown splits.

    Test: tests/data/sources/test_manifest.py.
    """

    synthetic = False

    def __init__(
        self,
        table: str | Path,
        root: str | Path,
        columns: ManifestColumns,
        modalities: Sequence[ModalitySpec],
        *,
        classes: Mapping[str, Sequence[str]] | None = None,
        fit: str = "stretch",
        quarantine: str | Path | None = None,
    ):
        if fit not in FITS:
            raise ValueError(f"fit is {fit!r}; choose one of {tuple(FITS)}.")
        self.root, self._fit = Path(root), fit
        if not self.root.is_dir():
            raise UserError(f"The folder {root} of the manifest {table} does not exist.")
        rows = read_table(table)
        problems = Problems(f"the manifest {table}")
        for name in columns.names:
            if rows and name not in rows[0]:
                problems.add(name, f"is no column; the table has {', '.join(rows[0])}")
        if not rows:
            problems.add(table, "has no rows")
        problems.raise_any("Name the columns as the table does.")
        self.modalities = tuple(modalities)
        self.tasks = tuple(
            TaskSpec(task, _classes(rows, column, (classes or {}).get(task)))
            for task, column in columns.tasks.items()
        )
        self._described = tuple(name for name in rows[0] if name not in columns.names)
        self._entries = self._read(rows, columns, problems)
        problems.settle("Correct the table.", quarantine)
        if not self._entries:
            raise UserError(f"The manifest {table} has no row that can be used.")
        self.description = f"{len(self._entries)} records of the manifest {table}"
        self._labels = {
            task.name: np.array([e.labels[task.name] for e in self._entries], np.int32)
            for task in self.tasks
        }

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Record:
        entry = self._entries[operator.index(index)]
        images = {
            spec.name: decode_file(entry.paths[spec.name], spec, fit=self._fit)
            for spec in self.modalities
            if spec.name in entry.paths
        }
        return Record(entry.record_id, entry.group, images, dict(entry.labels))

    def labels(self, task: str) -> np.ndarray:
        if task not in self._labels:
            raise ValueError(f"task {task!r} is unknown; choose one of {tuple(self._labels)}")
        return self._labels[task].copy()

    def record_id(self, index: int) -> str:
        return self._entries[index].record_id

    def group_id(self, index: int) -> str:
        return self._entries[index].group

    def attributes(self, index: int) -> dict[str, str]:
        """The cells of the columns that mean nothing else, "" where missing."""
        row = self._entries[index].row
        cells = {name: row.get(name) for name in self._described}
        return {name: "" if is_missing(cell) else cell for name, cell in cells.items()}

    @property
    def rows(self) -> dict[str, Row]:
        """Record id -> its (first) row, for a tabular modality."""
        return {entry.record_id: entry.row for entry in self._entries}

    def splits(
        self, *, seed: int, fractions: Mapping[str, float] | None = None
    ) -> dict[str, Subset]:
        """The splits that the table names, or, where it names none, drawn ones.

        Raises:
          UserError: if a split of the table is empty or a group is in two of them.
        """
        if not any(entry.split for entry in self._entries):
            shares = fractions or {"train": 0.7, "validation": 0.15, "test": 0.15}
            return split_source(self, shares, seed)
        problems = Problems(self.description)
        parts = {}
        for split in ("train", "validation", "test"):
            indices = [i for i, entry in enumerate(self._entries) if entry.split == split]
            if indices:
                parts[split] = Subset(self, indices, f"{self.description}, {split} split")
            elif split != "validation":
                problems.add(split, "is an empty split")
        for group, spans in leaking_groups(parts).items():
            problems.add(group, f"is a group in {' and '.join(spans)}")
        problems += _untrained_classes(parts, self.tasks)
        problems.raise_any("Correct the split column, or leave it out and let splits be drawn.")
        return parts

    def _read(self, rows: Sequence[Row], columns: ManifestColumns, problems: Problems):
        finder = _ImageFinder(self.root)
        known = {spec.name for spec in self.modalities}
        long_form = bool(columns.modality)
        entries: dict[str, _Entry] = {}
        named_image: set[str] = set()
        for number, row in enumerate(rows, start=2):
            where, problems_before = f"line {number}", len(problems)
            one = row[columns.record_id]
            if is_missing(one):
                problems.add(where, f"has no {columns.record_id}")
                continue
            cells = (
                {row[columns.modality]: row[columns.path]}
                if long_form
                else {m: row[column] for m, column in columns.images.items()}
            )
            paths = {}
            for modality, cell in cells.items():
                if modality not in known:
                    problems.add(where, f"names the modality {modality!r}, not one of {known}")
                elif not is_missing(cell):
                    named_image.add(one)
                    found = finder.find(cell)
                    if isinstance(found, str):
                        problems.add(where, found)
                    else:
                        paths[modality] = found
            entry = _Entry(
                one,
                row[columns.group] if columns.group and row[columns.group] else one,
                self._split(row, columns, where, problems),
                paths,
                self._label(row, columns, where, problems),
                row,
            )
            before = entries.get(one)
            if before is not None and not long_form:
                problems.add(where, f"repeats the {columns.record_id} {one!r}")
            elif before is not None:
                entry = _joined(before, entry, where, problems)
            # A row with a problem is left out, for those who go on in spite of it.
            if len(problems) == problems_before:
                entries[one] = entry
        for entry in entries.values():
            if entry.record_id not in named_image:
                problems.add(entry.record_id, "has no image in any modality")
        return tuple(entry for entry in entries.values() if entry.paths)

    def _label(self, row, columns, where, problems) -> dict[str, int]:
        labels = {}
        for task in self.tasks:
            cell = row[columns.tasks[task.name]]
            labels[task.name] = MISSING_LABEL
            if cell in task.classes:
                labels[task.name] = task.classes.index(cell)
            elif not is_missing(cell):
                problems.add(where, f"has the {task.name} {cell!r}, not one of {task.classes}")
        return labels

    @staticmethod
    def _split(row, columns, where, problems) -> str:
        if not columns.split:
            return ""
        cell = row[columns.split].lower()
        if cell not in SPLIT_FOLDERS:
            problems.add(where, f"has the split {cell!r}, not one of {tuple(SPLIT_FOLDERS)}")
        return SPLIT_FOLDERS.get(cell, "")


class _ImageFinder:
    """Finds images below a root, by relative path or by unique name."""

    def __init__(self, root: Path):
        self._root = root
        self._by_stem: dict[str, list[Path]] | None = None

    def find(self, cell: str) -> Path | str:
        """The path, or what is wrong."""
        pure = PurePosixPath(cell.replace("\\", "/"))
        if pure.is_absolute() or ".." in pure.parts or ":" in pure.parts[0]:
            return f"points outside the root with {cell!r}"
        path = self._root / pure
        if path.is_file():
            if not path.resolve().is_relative_to(self._root.resolve()):
                return f"points outside the root with {cell!r} (a link)"
            return path
        if self._by_stem is None:
            self._by_stem = {}
            for file in sorted(self._root.rglob("*")):
                if file.suffix.lower() in IMAGE_SUFFIXES:
                    self._by_stem.setdefault(file.stem, []).append(file)
        found = self._by_stem.get(pure.stem if pure.suffix else pure.name, [])
        if len(pure.parts) > 1 or not found:
            return f"names {cell!r}, but there is no such image below {self._root}"
        if len(found) > 1:
            return f"names {cell!r}, which is ambiguous: {found[0]} and {found[1]}"
        return found[0]


def _classes(rows, column: str, declared: Sequence[str] | None) -> tuple[str, ...]:
    if declared:
        return tuple(declared)
    return tuple(sorted({row[column] for row in rows if not is_missing(row[column])}))


def _joined(first: _Entry, second: _Entry, where: str, problems: Problems) -> _Entry:
    for modality in first.paths.keys() & second.paths.keys():
        problems.add(where, f"gives {first.record_id!r} a second {modality} image")
    if (first.group, first.split) != (second.group, second.split):
        problems.add(where, f"puts {first.record_id!r} in another group or split than before")
    labels = dict(first.labels)
    for task, label in second.labels.items():
        if label != MISSING_LABEL and labels[task] not in (MISSING_LABEL, label):
            problems.add(where, f"gives {first.record_id!r} another {task} than before")
        labels[task] = max(labels[task], label)
    paths = {**first.paths, **second.paths}
    return _Entry(first.record_id, first.group, first.split, paths, labels, first.row)


def _untrained_classes(parts, tasks) -> Problems:
    problems = Problems("")
    for task in tasks:
        trained = set(parts["train"].labels(task.name)) if "train" in parts else set()
        for split, part in parts.items():
            for label in sorted(set(part.labels(task.name)) - trained - {MISSING_LABEL}):
                what = f"is a class of {task.name} in {split} that training does not hold"
                problems.add(task.classes[label], what)
    return problems
