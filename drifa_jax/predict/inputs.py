"""From what stands on the command line to records: which file is which modality of whom."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from drifa_jax.data.problems import LeftOut, Problems
from drifa_jax.data.readers.any_file import NIFTI, split_slice
from drifa_jax.data.readers.nifti import slice_numbers, stem
from drifa_jax.data.sources.walking import files_below
from drifa_jax.data.table import is_missing, read_table
from drifa_jax.errors import UserError
from drifa_jax.predict.prepared_cases import find_prepared
from drifa_jax.predict.reading import ANY, TABLE, Item, Reading

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
ID_COLUMN = "record_id"
Readings = Mapping[str, Reading]
Found = dict[str, dict[str, Item]]
"""Modality -> record id -> what was found of it."""


@dataclass(frozen=True)
class Cases:
    """Records to predict.

    Attributes:
      record_ids: unique names.
      images: modality -> a file or a row a record, None where it lacks the modality.
      notes: what was left out, a line each.
    """

    record_ids: tuple[str, ...]
    images: Mapping[str, tuple[Item, ...]]
    notes: tuple[str, ...] = ()


def find_cases(arguments: Sequence[str], modalities: Sequence[str] | Readings) -> Cases:
    """The records that arguments name.

    Forms:

    - `mri=a.png ct=b.png`: one case; a modality left out is absent. A tabular modality is a table
      with one row: `clinic_table=patient.csv`.
    - `mri=FOLDER ct=FOLDER`: cases are files of the same relative name, whatever their suffix; a
      table (`clinic_table=T.csv`) gives each its row, by the column `record_id` (or the one that
      named records in training). Rows without an image are left out.
    - `FOLDER`: the same, with one subfolder a modality, or `clinic_table.csv` (or the images
      themselves where there is one modality).
    - `TABLE.csv` (or .tsv, .parquet): the column `record_id`, one a modality of images, with paths
      relative to the table, and those of a tabular modality; an empty cell is an absent modality.
    - `a.png b.png`: cases of a network of one modality.
    - `PREPARED:test`: a split of a set that `drifa data prepare` stored; one a modality where
      each was prepared alone, paired by record id.

    A NIfTI volume stands for the slices that training would take from it, each a record with the
    case's other modalities beside it; `scan.nii.gz:43` is one slice. Of a network of volumes it is
    one record, and so is a folder that holds a DICOM series.

    Args:
      arguments: as above.
      modalities: how each is read; names alone are modalities of images.

    Raises:
      UserError: naming every argument, column or file that does not fit.
    """
    if not isinstance(modalities, Mapping):
        modalities = dict.fromkeys(modalities, Reading())
    if not arguments:
        raise UserError(f"Give images: {_forms(modalities)}.")
    if (prepared := find_prepared(arguments, modalities)) is not None:
        return _cases(prepared, modalities)
    left_out = LeftOut()
    # A path may hold "=", so only a known name (or no file at all) makes it `name=path`.
    named = [a.partition("=") for a in arguments if "=" in a and not Path(a).exists()]
    if named and len(named) < len(arguments):
        raise UserError(
            f"Some images are named by modality and some are not; {_forms(modalities)}."
        )
    if named:
        return _expanded(_named(named, modalities, left_out), modalities, left_out)
    for argument in arguments:
        if not split_slice(argument)[0].exists():
            raise UserError(f"{argument} does not exist; {_forms(modalities)}.")
    return _expanded(_unnamed(arguments, modalities, left_out), modalities, left_out)


def _unnamed(arguments: Sequence[str], modalities: Readings, left_out: LeftOut) -> Cases:
    paths = [Path(argument) for argument in arguments]
    if len(paths) == 1 and paths[0].is_dir():
        return _folder(paths[0], modalities, left_out)
    if len(paths) == 1 and paths[0].suffix.lower() in TABLE_SUFFIXES:
        return _manifest(paths[0], modalities)
    if len(modalities) > 1:
        raise UserError(
            f"This network reads {len(modalities)} modalities, so files must say which they are: "
            f"{_forms(modalities)}."
        )
    (reading,) = modalities.values()
    if folders := [path for path in paths if path.is_dir() and not reading.accepts(path)]:
        raise UserError(f"{folders[0]} is a folder; give one folder, or files only.")
    return _cases({next(iter(modalities)): {str(path): path for path in paths}}, modalities)


def _forms(modalities: Readings) -> str:
    files = " ".join(
        f"{name}={'TABLE.csv' if part.format == TABLE else 'FILE'}"
        for name, part in modalities.items()
    )
    folders = ", ".join(
        f"{name}.csv" if part.format == TABLE else f"{name}/" for name, part in modalities.items()
    )
    return f"{files}, the same with folders, one FOLDER with {folders}, or TABLE.csv"


def _named(named: Sequence[tuple[str, str, str]], modalities: Readings, left_out: LeftOut) -> Cases:
    given: dict[str, Path] = {}
    tables: dict[str, Path] = {}
    for name, _, value in named:
        if name not in modalities:
            raise UserError(
                f"{name!r} is no modality of this network; it reads {list(modalities)}."
            )
        if name in given or name in tables:
            raise UserError(f"{name} is given twice; several cases go into folders or a table.")
        if not split_slice(value)[0].exists():
            raise UserError(f"{name}={value}: there is no such file or folder.")
        (tables if modalities[name].format == TABLE else given)[name] = Path(value)
    # The folder of a series is a case, as a file is.
    folders = [path.is_dir() and not modalities[n].accepts(path) for n, path in given.items()]
    if given and all(folders):
        found = {n: _files_below(path, modalities[n], left_out) for n, path in given.items()}
        return _cases(_with_rows(found, tables, modalities, left_out), modalities)
    if any(folders):
        raise UserError("Some modalities name a file and some a folder; give one or the other.")
    record_id = "+".join(dict.fromkeys(_case_name(path) for path in given.values()))
    found = {name: {record_id: path} for name, path in given.items()}
    for name, table in tables.items():
        rows = _rows(table, modalities[name])
        case = rows.get(record_id) if len(rows) > 1 else next(iter(rows.values()), None)
        if case is None:
            raise UserError(f"{table}: holds {len(rows)} rows, and none is named {record_id!r}.")
        found[name] = {record_id or next(iter(rows)): case}
    return _cases(found, modalities)


def _folder(folder: Path, modalities: Readings, left_out: LeftOut) -> Cases:
    found: Found = {}
    tables: dict[str, Path] = {}
    for name, reading in modalities.items():
        if reading.format == TABLE:
            files = [folder / f"{name}{suffix}" for suffix in TABLE_SUFFIXES]
            if found_table := next((file for file in files if file.is_file()), None):
                tables[name] = found_table
        elif (folder / name).is_dir():
            found[name] = _files_below(folder / name, reading, left_out)
    if not found and len(modalities) == 1:
        ((name, reading),) = modalities.items()
        found[name] = _files_below(folder, reading, left_out)
    if not found:
        raise UserError(
            f"{folder} has no subfolder named like a modality: {', '.join(modalities)}."
        )
    return _cases(_with_rows(found, tables, modalities, left_out), modalities)


def _files_below(folder: Path, reading: Reading, left_out: LeftOut) -> dict[str, Item]:
    """Relative name without suffix -> path; of volumes also folders that hold a series."""
    found: dict[str, Item] = {}
    paths = files_below(folder, left_out)
    if reading.volume:
        holding = (place for place in sorted({path.parent for path in paths}))
        series = [place for place in holding if reading.accepts(place)]
        paths = [*series, *(path for path in paths if path.parent not in series)]
    for path in paths:
        if not reading.accepts(path):
            kind = path.suffix.lower() or "no suffix"
            left_out.add(f"files that are no images of the modality ({kind})")
        else:
            place = path.relative_to(folder).parent if path != folder else Path()
            name = (place / _case_name(path)).as_posix()
            if name in found:
                raise UserError(f"{found[name]} and {path} would be the same case; rename one.")
            found[name] = path
    if not found:
        raise UserError(f"{folder} holds no image ({reading.suffixes}).")
    return found


def _case_name(path: Path) -> str:
    """The file's name without suffix; a slice number stays, and a folder's name."""
    if path.is_dir():
        return path.resolve().name
    file, number = split_slice(path.name)
    name = stem(Path(file.name))
    name = file.stem if name == file.name else name
    return name if number is None else f"{name}:{number}"


def _with_rows(
    found: Found, tables: Mapping[str, Path], modalities: Readings, left_out: LeftOut
) -> Found:
    """Adds the rows of tables to the records that images name."""
    ids = {case for part in found.values() for case in part}
    for name, table in tables.items():
        rows = _rows(table, modalities[name])
        found[name] = {case: row for case, row in rows.items() if case in ids}
        left_out.add(f"rows of {table} without an image", len(rows) - len(found[name]))
        if not found[name]:
            raise UserError(
                f"{table}: no row is named like an image; rows are named {sorted(rows)[:3]}, "
                f"images {sorted(ids)[:3]}."
            )
    return found


def _rows(table: Path, reading: Reading) -> dict[str, Item]:
    """Record id -> row, of the table of a tabular modality; rows without a value are left out."""
    rows = read_table(table)
    if not rows:
        raise UserError(f"{table}: has no rows.")
    names = [name for name in (ID_COLUMN, reading.id_column) if name in rows[0]]
    if not names:
        if len(rows) > 1:
            wanted = " or ".join(repr(n) for n in dict.fromkeys((ID_COLUMN, reading.id_column)))
            raise UserError(f"{table}: has no column {wanted}; it has {', '.join(rows[0])}.")
        names = [""]
    if lacking := [column for column in reading.columns if column not in rows[0]]:
        raise UserError(
            f"{table}: has no column {', '.join(lacking)}; it has {', '.join(rows[0])}."
        )
    found: dict[str, Item] = {}
    for number, row in enumerate(rows, start=2):
        case = row.get(names[0], "row")
        if case in found:
            raise UserError(f"{table}: line {number} repeats {case!r}.")
        if not all(is_missing(row[column]) for column in reading.columns):
            found[case] = row
    return found


def _manifest(table: Path, modalities: Readings) -> Cases:
    rows = read_table(table)
    if not rows:
        raise UserError(f"{table}: has no rows.")
    columns = {
        name: part.columns if part.format == TABLE else (name,) for name, part in modalities.items()
    }
    problems = Problems(f"the table {table}")
    known = {ID_COLUMN, *(column for part in columns.values() for column in part)}
    for column in rows[0]:
        if column not in known:
            problems.add(column, "is an unknown column")
    if ID_COLUMN not in rows[0]:
        problems.add(ID_COLUMN, "is missing")
    held = {name: set(part) & set(rows[0]) for name, part in columns.items()}
    if not any(held.values()):
        problems.add(", ".join(modalities), "are missing; at least one modality is needed")
    for name, part in held.items():
        if part and part != set(columns[name]):
            lacking = ", ".join(sorted(set(columns[name]) - part))
            problems.add(lacking, f"is missing, a column of {name}")
    problems.raise_any(f"The columns are {ID_COLUMN} and {', '.join(sorted(known - {ID_COLUMN}))}.")
    found: Found = {name: {} for name, part in held.items() if part}
    ids = set()
    for number, row in enumerate(rows, start=2):
        case = row[ID_COLUMN]
        if not case or case in ids:
            problems.add(f"line {number}", f"repeats {case!r}" if case else f"has no {ID_COLUMN}")
        ids.add(case)
        for name in found:
            if all(is_missing(row[column]) for column in columns[name]):
                continue
            if modalities[name].format == TABLE:
                found[name][case] = row
                continue
            path, reading = table.parent / row[name], modalities[name]
            named = f"names {row[name]!r}, but {path}"
            if not split_slice(str(path))[0].exists():
                problems.add(f"line {number}", f"{named} does not exist")
            elif path.is_dir() and not reading.accepts(path):
                problems.add(f"line {number}", f"{named} is a folder; wanted {reading.suffixes}")
            found[name][case] = path
    problems.raise_any("Correct the table.")
    return _cases(found, modalities, order=[row[ID_COLUMN] for row in rows])


def _cases(found: Found, modalities: Readings, order: Sequence[str] | None = None) -> Cases:
    ids = order or sorted({case for part in found.values() for case in part})
    empty = [case for case in ids if not any(case in part for part in found.values())]
    if empty:
        raise UserError(f"{empty[0]!r} has no image in any modality.")
    # Names of files may be any bytes; those of records are text.
    names = tuple(case.encode(errors="backslashreplace").decode() for case in ids)
    return Cases(names, {m: tuple(found.get(m, {}).get(case) for case in ids) for m in modalities})


def _expanded(cases: Cases, modalities: Readings, left_out: LeftOut) -> Cases:
    """Volumes as their slices, with everything else of the case beside each."""
    cases = dataclasses.replace(cases, notes=left_out.notes("images"))
    if not any(part.format in (NIFTI, ANY) for part in modalities.values()):
        return cases
    ids: list[str] = []
    images: dict[str, list[Item]] = {name: [] for name in modalities}
    for row, case in enumerate(cases.record_ids):
        items = {name: part[row] for name, part in cases.images.items()}
        whole = {
            name: slice_numbers(Path(item))
            for name, item in items.items()
            if isinstance(item, str | Path) and modalities[name].is_volume(str(item))
        }
        if len(set(map(len, whole.values()))) > 1:
            counts = ", ".join(f"{items[name]}: {len(part)}" for name, part in whole.items())
            raise UserError(
                f"{case!r} has volumes of different numbers of slices ({counts}), which cannot be "
                "matched; name single slices, as FILE.nii.gz:NUMBER."
            )
        count = len(next(iter(whole.values()))) if whole else 1
        for place in range(count):
            numbers = [part[place] for part in whole.values()]
            ids.append(f"{case}/axial-{numbers[0]:03d}" if whole else case)
            for name in modalities:
                item = items[name]
                images[name].append(f"{item}:{whole[name][place]}" if name in whole else item)
    expanded = {name: tuple(part) for name, part in images.items()}
    return dataclasses.replace(cases, record_ids=tuple(ids), images=expanded)
