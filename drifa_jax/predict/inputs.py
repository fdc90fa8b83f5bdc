"""From what stands on the command line to records: which file is which modality of whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from drifa_jax.data.decode import IMAGE_SUFFIXES
from drifa_jax.data.problems import Problems
from drifa_jax.data.table import is_missing, read_table
from drifa_jax.errors import UserError

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
ID_COLUMN = "record_id"


@dataclass(frozen=True)
class Cases:
    """Records to predict.

    Attributes:
      record_ids: unique names.
      images: modality -> a path a record, None where it lacks the modality.
    """

    record_ids: tuple[str, ...]
    images: Mapping[str, tuple[Path | None, ...]]


def find_cases(arguments: Sequence[str], modalities: Sequence[str]) -> Cases:
    """The records that arguments name.

    Forms:

    - `mri=a.png ct=b.png`: one case; a modality left out is absent.
    - `mri=FOLDER ct=FOLDER`: cases are files of the same relative name, whatever their suffix.
    - `FOLDER`: the same, with one subfolder a modality (or the images themselves where there is
      one modality).
    - `TABLE.csv` (or .tsv, .parquet): the column `record_id` and one a modality, with paths
      relative to the table; an empty cell is an absent modality.
    - `a.png b.png`: cases of a network of one modality.

    Raises:
      UserError: naming every argument, column or file that does not fit.
    """
    modalities = tuple(modalities)
    if not arguments:
        raise UserError(f"Give images: {_forms(modalities)}.")
    # A path may hold "=", so only a known name (or no file at all) makes it `name=path`.
    named = [a.partition("=") for a in arguments if "=" in a and not Path(a).exists()]
    if named and len(named) < len(arguments):
        raise UserError(
            f"Some images are named by modality and some are not; {_forms(modalities)}."
        )
    if named:
        return _named({}, named, modalities)
    paths = [Path(argument) for argument in arguments]
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist; {_forms(modalities)}.")
    if len(paths) == 1 and paths[0].is_dir():
        return _folder(paths[0], modalities)
    if len(paths) == 1 and paths[0].suffix.lower() in TABLE_SUFFIXES:
        return _table(paths[0], modalities)
    if len(modalities) > 1:
        raise UserError(
            f"This network reads {len(modalities)} modalities, so files must say which they are: "
            f"{_forms(modalities)}."
        )
    if folders := [path for path in paths if path.is_dir()]:
        raise UserError(f"{folders[0]} is a folder; give one folder, or files only.")
    return _cases({modalities[0]: {str(path): path for path in paths}})


def _forms(modalities: tuple[str, ...]) -> str:
    files = " ".join(f"{name}=FILE" for name in modalities)
    return (
        f"{files}, the same with folders, one FOLDER with {'/, '.join(modalities)}/, or TABLE.csv"
    )


def _named(found: dict, named, modalities) -> Cases:
    for name, _, value in named:
        path = Path(value)
        if name not in modalities:
            raise UserError(
                f"{name!r} is no modality of this network; it reads {list(modalities)}."
            )
        if name in found:
            raise UserError(f"{name} is given twice; several cases go into folders or a table.")
        if not path.exists():
            raise UserError(f"{name}={value}: there is no such file or folder.")
        found[name] = path
    if all(path.is_dir() for path in found.values()):
        return _cases({name: _images_below(path) for name, path in found.items()}, modalities)
    if any(path.is_dir() for path in found.values()):
        raise UserError("Some modalities name a file and some a folder; give one or the other.")
    stems = dict.fromkeys(path.stem for path in found.values())
    record_id = "+".join(stems)
    return _cases({name: {record_id: path} for name, path in found.items()}, modalities)


def _folder(folder: Path, modalities) -> Cases:
    parts = {name: folder / name for name in modalities if (folder / name).is_dir()}
    if parts:
        return _cases({name: _images_below(path) for name, path in parts.items()}, modalities)
    if len(modalities) > 1:
        raise UserError(
            f"{folder} has no subfolder named like a modality: {', '.join(modalities)}."
        )
    return _cases({modalities[0]: _images_below(folder)})


def _images_below(folder: Path) -> dict[str, Path]:
    """Relative name without suffix -> path."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise UserError(f"{found[name]} and {path} would be the same case; rename one.")
            found[name] = path
    if not found:
        raise UserError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)}).")
    return found


def _table(table: Path, modalities) -> Cases:
    rows = read_table(table)
    if not rows:
        raise UserError(f"{table}: has no rows.")
    problems = Problems(f"the table {table}")
    known = {ID_COLUMN, *modalities}
    for column in rows[0]:
        if column not in known:
            problems.add(column, "is an unknown column")
    if ID_COLUMN not in rows[0]:
        problems.add(ID_COLUMN, "is missing")
    if not set(modalities) & set(rows[0]):
        problems.add(", ".join(modalities), "are missing; at least one modality is needed")
    problems.raise_any(f"The columns are {ID_COLUMN} and {', '.join(modalities)}.")
    found: dict[str, dict[str, Path]] = {name: {} for name in modalities if name in rows[0]}
    ids = set()
    for number, row in enumerate(rows, start=2):
        one = row[ID_COLUMN]
        if not one or one in ids:
            problems.add(f"line {number}", f"repeats {one!r}" if one else f"has no {ID_COLUMN}")
        ids.add(one)
        for name in found:
            if is_missing(row[name]):
                continue
            path = table.parent / row[name]
            if not path.is_file():
                problems.add(f"line {number}", f"names {row[name]!r}, but {path} is no file")
            found[name][one] = path
    problems.raise_any("Correct the table.")
    return _cases(found, modalities, order=[row[ID_COLUMN] for row in rows])


def _cases(found, modalities=(), order=None) -> Cases:
    ids = order or sorted({one for of in found.values() for one in of})
    empty = [one for one in ids if not any(one in of for of in found.values())]
    if empty:
        raise UserError(f"{empty[0]!r} has no image in any modality.")
    names = modalities or tuple(found)
    return Cases(tuple(ids), {m: tuple(found.get(m, {}).get(one) for one in ids) for m in names})
