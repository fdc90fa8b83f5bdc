"""A manifest: a CSV, Excel or Parquet table that says which images and labels make a record.

Wide form, one row a record: columns hold the image of each modality and the label of each task.
Long form, one row an image: a column names the modality, another the image, and rows of the
same record id belong together. A missing cell is an absent modality or an unknown label. An image
is a picture, a DICOM file or a NIfTI volume, which stands for the slices that are trained on. Of a
modality that reads whole volumes it may also be the folder of one DICOM series.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from drifa_jax.config import ModalityConfig
from drifa_jax.data.decode import FITS
from drifa_jax.data.label_columns import LabelColumn, column_names, one_hot_columns, read_labels
from drifa_jax.data.problems import FileError, LeftOut, Problems
from drifa_jax.data.readers import nifti
from drifa_jax.data.readers.any_file import NIFTI, kind_by_name, read_any, split_slice
from drifa_jax.data.readers.any_volume import read_any_volume
from drifa_jax.data.record import MISSING_LABEL, PixelSpec, TaskSpec, VolumeSpec, pixel_spec
from drifa_jax.data.records import ATTRIBUTE, SPLIT, Records, at, label
from drifa_jax.data.sources.folders import SPLIT_FOLDERS
from drifa_jax.data.sources.image_finder import ImageFinder
from drifa_jax.data.table import Row, is_missing, read_table
from drifa_jax.errors import UserError


@dataclass(frozen=True)
class ManifestColumns:
    """Which column of the table means what.

    Attributes:
      record_id: unique name of a record (in the long form, shared by its images).
      images: modality -> column with the image: a path relative to the root, or a file name
        without folder or suffix, which is then looked up anywhere below the root. Of volumes the
        path may be that of a folder with one DICOM series.
      tasks: task -> column with the class name, or one-hot columns with commas between.
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
        """All columns that mean something, those of labels as they were given."""
        names = (self.record_id, *self.images.values(), *self.tasks.values())
        names = (*names, self.group, self.split, self.modality, self.path)
        return tuple(dict.fromkeys(name for name in names if name))


@dataclass(frozen=True)
class _Entry:
    record_id: str
    group: str
    split: str
    paths: Mapping[str, str]
    labels: Mapping[str, int]
    row: Row


class ManifestFiles:
    """Reads images by their path, brought to the size of a modality."""

    def __init__(
        self, modality: PixelSpec, fit: str, window: str = "", spacing: tuple[float, ...] = ()
    ):
        if fit not in FITS:
            raise ValueError(f"fit is {fit!r}; choose one of {tuple(FITS)}.")
        self._modality, self._options = modality, {"fit": fit, "window": window}
        if isinstance(modality, VolumeSpec):
            self._options["spacing"] = spacing

    def __call__(self, path: str) -> np.ndarray:
        read = read_any_volume if isinstance(self._modality, VolumeSpec) else read_any
        return read(path, self._modality, **self._options)


def manifest_records(
    table: str | Path,
    root: str | Path,
    columns: ManifestColumns,
    modalities: Sequence[PixelSpec],
    *,
    classes: Mapping[str, Sequence[str]] | None = None,
    fit: str = "stretch",
    window: str = "",
    spacing: tuple[float, ...] = (),
    chosen: str = "",
    label_table: str | Path | None = None,
    quarantine: str | Path | None = None,
    ignore_other_classes: bool = False,
) -> Records:
    """The records of a manifest. Columns that mean nothing else become attributes.

    A row without an image of the only modality is left out: it may be another modality's.

    Args:
      table: the file.
      root: folder that the paths are relative to; none may leave it.
      columns: what the columns mean.
      modalities: the size and channels of each modality.
      classes: task -> its class names, or absent to take the sorted names in the table.
      fit: how another aspect ratio is fitted.
      window: of DICOM files, a preset; "" takes the window of each file.
      chosen: `COLUMN=VALUE`, which rows are read; "" reads all.
      label_table: another table with further columns of the same records, by `record_id`.
      quarantine: CSV file for wrong rows, which are then left out; None raises.
      ignore_other_classes: whether rows of other classes than the declared are left out, and
        counted, rather than wrong.

    Raises:
      UserError: listing every problem: missing columns, duplicate ids, labels outside the
        declared classes, paths outside the root or without a file, unknown splits.

    Test: tests/data/sources/test_manifest.py.
    """
    readers = {spec.name: ManifestFiles(spec, fit, window, spacing) for spec in modalities}
    root, left_out = Path(root), LeftOut()
    if not root.is_dir():
        raise UserError(f"The folder {root} of the manifest {table} does not exist.")
    problems = Problems(f"the manifest {table}")
    rows = _chosen(read_table(table), chosen, table, left_out)
    if label_table is not None:
        rows = _with_columns(rows, columns.record_id, label_table)
    _check_columns(rows, columns, table, problems)
    labels = {
        task: read_labels(rows, column, (classes or {}).get(task) or ())
        for task, column in columns.tasks.items()
    }
    tasks = [TaskSpec(task, column.classes) for task, column in labels.items()]
    if ignore_other_classes:
        rows = _of_declared_classes(rows, [labels[task] for task in classes or {}], left_out)
    volumes = {spec.name for spec in modalities if isinstance(spec, VolumeSpec)}
    finder, names = ImageFinder(root), tuple(readers)
    entries = _entries(rows, columns, labels, finder, names, volumes, problems, left_out)
    problems.settle("Correct the table.", quarantine, left_out)
    if not entries:
        raise UserError(f"The manifest {table} has no row that can be used ({left_out}).")
    notes = [f"{table}: {note}" for column in labels.values() for note in column.notes]
    notes += left_out.notes(table)
    if columns.group and (alone := sum(is_missing(e.row[columns.group]) for e in entries)):
        what = f"{alone} records have no {columns.group}; each is a group of its own"
        notes.append(f"{table}: {what}")
    content = {
        "record_id": pa.array([entry.record_id for entry in entries], pa.string()),
        "group_id": pa.array([entry.group for entry in entries], pa.string()),
        SPLIT: pa.array([entry.split or None for entry in entries], pa.string()),
    }
    for name in readers:
        content[at(name)] = pa.array([e.paths.get(name) for e in entries], pa.string())
    for task in tasks:
        content[label(task.name)] = pa.array([e.labels[task.name] for e in entries], pa.int32())
    meant = {*columns.names, *(n for c in columns.tasks.values() for n in column_names(c, rows[0]))}
    for name in rows[0]:
        if name not in meant:
            cells = (entry.row.get(name) for entry in entries)
            told = ["" if is_missing(cell) else cell for cell in cells]
            content[ATTRIBUTE + name] = pa.array(told, pa.string())
    described = f"{len(entries)} records of the manifest {table}"
    return Records(
        pa.table(content),
        readers,
        modalities,
        tasks,
        description=described,
        notes=notes,
    )


def scan(name: str, config: ModalityConfig, quarantine: str | None = None) -> Records:
    """The format `manifest`: the columns of one modality."""
    if not config.table:
        raise UserError(f"config: data.modalities.{name}.table is empty; name the manifest.")
    # An absolute path stays what it is.
    return manifest_records(
        Path(config.root) / config.table,
        config.root,
        ManifestColumns(
            config.id_column,
            images={name: config.image_column},
            tasks={config.task: config.label_column},
            group=config.group_column,
            split=config.split_column,
        ),
        [pixel_spec(name, config)],
        classes={config.task: config.classes} if config.classes else None,
        fit=config.fit,
        window=config.window,
        spacing=config.spacing,
        chosen=config.rows,
        label_table=Path(config.root) / config.label_table if config.label_table else None,
        quarantine=quarantine,
        ignore_other_classes=config.ignore_other_classes,
    )


def _of_declared_classes(
    rows: Sequence[Row], labels: Sequence[LabelColumn], left_out: LeftOut
) -> list[Row]:
    def is_one(index: int | str) -> bool:
        return isinstance(index, int) and index != MISSING_LABEL

    kept = [row for row in rows if all(is_one(column.label(row)) for column in labels)]
    left_out.add("rows of other classes or none", len(rows) - len(kept))
    return kept


def _chosen(
    rows: list[dict[str, str]], chosen: str, table: str | Path, left_out: LeftOut
) -> list[dict[str, str]]:
    """The rows that a modality is read from."""
    if not chosen or not rows:
        return rows
    column, equals, value = chosen.partition("=")
    if not equals or column not in rows[0]:
        raise UserError(
            f"The rows {chosen!r} of {table} are not COLUMN=VALUE; it has the columns "
            f"{', '.join(rows[0])}."
        )
    kept = [row for row in rows if row[column] == value]
    if not kept:
        held = sorted({row[column] for row in rows})[:10]
        raise UserError(f"No row of {table} has the {column} {value!r}; there are {held}.")
    if len(kept) < len(rows):
        left_out.add(f"rows of another {column} than {value!r}", len(rows) - len(kept))
    return kept


def _with_columns(rows: Sequence[Row], id_column: str, table: str | Path) -> list[dict[str, str]]:
    """Rows with further columns of the same records, empty where the other table has no row."""
    others = read_table(table)
    if not others or id_column not in others[0]:
        raise UserError(f"{table}: has no column {id_column!r} by which its rows are joined.")
    by_id = {}
    for row in others:
        if by_id.setdefault(row[id_column], row) != row:
            raise UserError(f"{table}: holds {row[id_column]!r} twice, with different cells.")
    empty = dict.fromkeys(others[0], "")
    return [{**by_id.get(row.get(id_column, ""), empty), **row} for row in rows]


def _check_columns(
    rows: Sequence[Row], columns: ManifestColumns, table: str | Path, problems: Problems
) -> None:
    if not rows:
        problems.add(table, "has no rows")
        problems.raise_any("Give a table with a header and a row for each record.")
    for given in columns.names:
        of_label = given in columns.tasks.values()
        for name in column_names(given, rows[0]) if of_label else (given,):
            if name in rows[0]:
                continue
            what = f"is no column; the table has {', '.join(rows[0])}"
            if of_label and (one_hot := one_hot_columns(rows, columns.names)):
                what += f"; these are one-hot, and can be named together: {','.join(one_hot)}"
            problems.add(name, what)
    problems.raise_any("Name the columns as the table does.")


def _entries(
    rows: Sequence[Row],
    columns: ManifestColumns,
    labels: Mapping[str, LabelColumn],
    finder: ImageFinder,
    modalities: tuple[str, ...],
    volumes: Container[str],
    problems: Problems,
    left_out: LeftOut,
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
                found = finder.find(cell, volumes=modality in volumes)
                if isinstance(found, LookupError):
                    problems.add(where, str(found))
                else:
                    paths[modality] = found
        group = row[columns.group] if columns.group else ""
        entry = _Entry(
            record_id,
            # A patient whom nobody named is no one else's neighbour.
            record_id if is_missing(group) else group,
            _split(row, columns, where, problems),
            paths,
            _labels(row, labels, where, problems),
            row,
        )
        before = entries.get(record_id)
        if before is not None and not long_form:
            what = f"repeats the {columns.record_id} {record_id!r}"
            problems.add(where, f"{what}; rows of one modality are chosen by COLUMN=VALUE (rows)")
        elif before is not None:
            entry = _joined(before, entry, where, problems)
        # A row with a problem is left out, for those who go on in spite of it.
        if len(problems) == problems_before:
            entries[record_id] = entry
    for entry in entries.values():
        if entry.record_id in named_image:
            continue
        if len(modalities) > 1 or long_form:
            problems.add(entry.record_id, "has no image in any modality")
        else:
            left_out.add(f"rows without {columns.images[modalities[0]]}")
    whole = [entry for entry in entries.values() if entry.paths]
    return [part for entry in whole for part in _slices(entry, volumes, problems)]


def _slices(entry: _Entry, kept: Container[str], problems: Problems) -> Iterator[_Entry]:
    """A record of volumes as records of their slices, with its other images beside each.

    Volumes of the modalities in `kept` stay whole.
    """
    volumes = {}
    for modality, path in entry.paths.items():
        if modality in kept:
            continue
        if kind_by_name(path) == NIFTI and split_slice(path)[1] is None:
            try:
                volumes[modality] = nifti.slice_numbers(Path(path))
            except FileError as error:
                problems.add(error.where, error.what)
                return
    if not volumes:
        yield entry
        return
    counts = {len(numbers) for numbers in volumes.values()}
    if len(counts) > 1:
        problems.add(entry.record_id, "has volumes of different numbers of slices; name slices")
        return
    for place in range(counts.pop()):
        slices = {m: f"{entry.paths[m]}:{numbers[place]}" for m, numbers in volumes.items()}
        name = f"{entry.record_id}/axial-{next(iter(volumes.values()))[place]:03d}"
        yield dataclasses.replace(entry, record_id=name, paths={**entry.paths, **slices})


def _labels(row, labels, where, problems) -> dict[str, int]:
    found = {}
    for task, column in labels.items():
        index = column.label(row)
        if isinstance(index, str):
            problems.add(where, f"has the {task} {index}")
            index = MISSING_LABEL
        found[task] = index
    return found


def _split(row, columns, where, problems) -> str:
    if not columns.split:
        return ""
    cell = row[columns.split].lower()
    if cell not in SPLIT_FOLDERS:
        problems.add(where, f"has the split {cell!r}, not one of {tuple(SPLIT_FOLDERS)}")
    return SPLIT_FOLDERS.get(cell, "")


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
