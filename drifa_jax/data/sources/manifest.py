"""A manifest: a CSV or Parquet table that says which images and labels make a record.

Wide form, one row a record: columns hold the image of each modality and the label of each task.
Long form, one row an image: a column names the modality, another the image, and rows of the
same record id belong together. A missing cell is an absent modality or an unknown label.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from drifa_jax.config import ModalityConfig
from drifa_jax.data.decode import FITS, IMAGE_SUFFIXES, decode_file
from drifa_jax.data.problems import LeftOut, Problems
from drifa_jax.data.record import MISSING_LABEL, ModalitySpec, TaskSpec, image_spec
from drifa_jax.data.records import ATTRIBUTE, SPLIT, Records, at, label
from drifa_jax.data.sources.folders import SPLIT_FOLDERS
from drifa_jax.data.table import Row, is_missing, read_table
from drifa_jax.errors import UserError

MAX_NAME = 255
"""Bytes of a file name."""


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


class ManifestFiles:
    """Reads images by their path, brought to the size of a modality."""

    def __init__(self, modality: ModalitySpec, fit: str):
        if fit not in FITS:
            raise ValueError(f"fit is {fit!r}; choose one of {tuple(FITS)}.")
        self._modality, self._fit = modality, fit

    def __call__(self, path: str) -> np.ndarray:
        return decode_file(Path(path), self._modality, fit=self._fit)


def manifest_records(
    table: str | Path,
    root: str | Path,
    columns: ManifestColumns,
    modalities: Sequence[ModalitySpec],
    *,
    classes: Mapping[str, Sequence[str]] | None = None,
    fit: str = "stretch",
    quarantine: str | Path | None = None,
    ignore_other_classes: bool = False,
) -> Records:
    """The records of a manifest. Columns that mean nothing else become attributes.

    Args:
      table: the CSV or Parquet file.
      root: folder that the paths are relative to; none may leave it.
      columns: what the columns mean.
      modalities: the size and channels of each modality.
      classes: task -> its class names, or absent to take the sorted names in the table.
      fit: how another aspect ratio is fitted.
      quarantine: CSV file for wrong rows, which are then left out; None raises.
      ignore_other_classes: whether rows of other classes than the declared are left out, and
        counted, rather than wrong.

    Raises:
      UserError: listing every problem: missing columns, duplicate ids, labels outside the
        declared classes, paths outside the root or without a file, unknown splits.

    Test: tests/data/sources/test_manifest.py.
    """
    readers = {spec.name: ManifestFiles(spec, fit) for spec in modalities}
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"The folder {root} of the manifest {table} does not exist.")
    rows = read_table(table)
    problems = Problems(f"the manifest {table}")
    for name in columns.names:
        if rows and name not in rows[0]:
            problems.add(name, f"is no column; the table has {', '.join(rows[0])}")
    if not rows:
        problems.add(table, "has no rows")
    problems.raise_any("Name the columns as the table does.")
    tasks = [
        TaskSpec(task, _classes(rows, column, (classes or {}).get(task)))
        for task, column in columns.tasks.items()
    ]
    if ignore_other_classes:
        rows = _of_declared_classes(rows, columns, classes or {}, table)
    entries = _entries(rows, columns, tasks, _ImageFinder(root), tuple(readers), problems)
    problems.settle("Correct the table.", quarantine)
    if not entries:
        raise UserError(f"The manifest {table} has no row that can be used.")
    content = {
        "record_id": pa.array([entry.record_id for entry in entries], pa.string()),
        "group_id": pa.array([entry.group for entry in entries], pa.string()),
        SPLIT: pa.array([entry.split or None for entry in entries], pa.string()),
    }
    for name in readers:
        paths = (entry.paths.get(name) for entry in entries)
        content[at(name)] = pa.array([path and str(path) for path in paths], pa.string())
    for task in tasks:
        content[label(task.name)] = pa.array([e.labels[task.name] for e in entries], pa.int32())
    for name in rows[0]:
        if name not in columns.names:
            cells = (entry.row.get(name) for entry in entries)
            told = ["" if is_missing(cell) else cell for cell in cells]
            content[ATTRIBUTE + name] = pa.array(told, pa.string())
    described = f"{len(entries)} records of the manifest {table}"
    return Records(pa.table(content), readers, modalities, tasks, description=described)


def scan(name: str, config: ModalityConfig, quarantine: str | None = None) -> Records:
    """The format `manifest`: the columns of one modality."""
    if not config.table:
        raise UserError(f"The manifest of {name} is not named (table).")
    table = Path(config.table)
    return manifest_records(
        table if table.is_absolute() else Path(config.root) / table,
        config.root,
        ManifestColumns(
            config.id_column,
            images={name: config.image_column},
            tasks={config.task: config.label_column},
            group=config.group_column,
            split=config.split_column,
        ),
        [image_spec(name, config)],
        classes={config.task: config.classes} if config.classes else None,
        fit=config.fit,
        quarantine=quarantine,
        ignore_other_classes=config.ignore_other_classes,
    )


def _of_declared_classes(
    rows: list[Row], columns: ManifestColumns, classes: Mapping[str, Sequence[str]], table
) -> list[Row]:
    kept = [
        row
        for row in rows
        if all(row[columns.tasks[task]] in names for task, names in classes.items())
    ]
    if len(kept) < len(rows):
        left_out = LeftOut()
        left_out.add("rows of other classes or none", len(rows) - len(kept))
        logging.getLogger(__name__).warning("%s: %s", table, left_out)
    return kept


def _entries(
    rows: Sequence[Row],
    columns: ManifestColumns,
    tasks: Sequence[TaskSpec],
    finder: _ImageFinder,
    modalities: tuple[str, ...],
    problems: Problems,
) -> list[_Entry]:
    long_form = bool(columns.modality)
    entries: dict[str, _Entry] = {}
    named_image: set[str] = set()
    for number, row in enumerate(rows, start=2):
        where, problems_before = f"line {number}", len(problems)
        record_id = row[columns.record_id]
        if is_missing(record_id):
            problems.add(where, f"has no {columns.record_id}")
            continue
        cells = (
            {row[columns.modality]: row[columns.path]}
            if long_form
            else {m: row[column] for m, column in columns.images.items()}
        )
        paths = {}
        for modality, cell in cells.items():
            if modality not in modalities:
                known = set(modalities)
                problems.add(where, f"names the modality {modality!r}, not one of {known}")
            elif not is_missing(cell):
                named_image.add(record_id)
                found = finder.find(cell)
                if isinstance(found, str):
                    problems.add(where, found)
                else:
                    paths[modality] = found
        group = row[columns.group] if columns.group else ""
        entry = _Entry(
            record_id,
            # A patient whom nobody named is no one else's neighbour.
            record_id if is_missing(group) else group,
            _split(row, columns, where, problems),
            paths,
            _labels(row, columns, tasks, where, problems),
            row,
        )
        before = entries.get(record_id)
        if before is not None and not long_form:
            problems.add(where, f"repeats the {columns.record_id} {record_id!r}")
        elif before is not None:
            entry = _joined(before, entry, where, problems)
        # A row with a problem is left out, for those who go on in spite of it.
        if len(problems) == problems_before:
            entries[record_id] = entry
    for entry in entries.values():
        if entry.record_id not in named_image:
            problems.add(entry.record_id, "has no image in any modality")
    return [entry for entry in entries.values() if entry.paths]


def _labels(row, columns, tasks, where, problems) -> dict[str, int]:
    labels = {}
    for task in tasks:
        cell = row[columns.tasks[task.name]]
        labels[task.name] = MISSING_LABEL
        if cell in task.classes:
            labels[task.name] = task.classes.index(cell)
        elif not is_missing(cell):
            problems.add(where, f"has the {task.name} {cell!r}, not one of {task.classes}")
    return labels


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
        if not pure.parts or len(pure.name) > MAX_NAME:
            return f"names no image with {cell[:40]!r}"
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
        # The whole cell first: identifiers hold dots, and `1.0` may be called 1.png.
        found = self._by_stem.get(pure.name) or self._by_stem.get(pure.stem, [])
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
    for task, index in second.labels.items():
        if index != MISSING_LABEL and labels[task] not in (MISSING_LABEL, index):
            problems.add(where, f"gives {first.record_id!r} another {task} than before")
        labels[task] = max(labels[task], index)
    paths = {**first.paths, **second.paths}
    return _Entry(first.record_id, first.group, first.split, paths, labels, first.row)
