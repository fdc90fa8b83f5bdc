"""Tables: rows of a CSV, Excel or Parquet file, and their columns as a modality of numbers.

A tabular modality is fitted on training rows alone. Each number is centred and scaled by them;
each category that they hold gets a place. A value that is missing, and a category that training
never saw, have places of their own, so that neither is mistaken for an average patient.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from drifa_jax.data.problems import FileError, Problems, reading
from drifa_jax.data.record import TabularSpec
from drifa_jax.data.records import Records
from drifa_jax.data.workbooks import read_workbook
from drifa_jax.errors import UserError

Row = Mapping[str, str]

MISSING_VALUES = ("", "na", "n/a", "nan", "none", "null", "unknown", "?")
"""What a cell says, in any letter case, when the value is missing."""


DELIMITERS = (",", ";", "\t", "|")
"""Of text tables; the header tells which."""
MAX_BYTES = 2**29
"""Larger tables of text are refused before they are read."""


def read_table(path: str | Path) -> list[dict[str, str]]:
    """Rows of a text table (`.csv`, `.tsv`), `.xlsx` or Parquet file as text, missing cells as "".

    Cells of text tables are separated by whatever separates most names in the first line: commas,
    semicolons, tabs or bars.

    Raises:
      UserError: if the file is missing, empty, has a repeated column or ragged rows.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"The table {path} does not exist.")
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".pq"):
        return _read_parquet(path)
    problems = Problems(f"the table {path}")
    lines = read_workbook(path) if suffix == ".xlsx" else _read_text(path)
    if not any(map(any, lines)):
        raise UserError(f"{path}: is empty.")
    header = [name.strip() for name in lines[0]]
    if suffix == ".xlsx":
        # A sheet's rows end with their last cell that holds something.
        lines = [[*line, *[""] * (len(header) - len(line))] for line in lines]
    for name in sorted({name for name in header if header.count(name) > 1}):
        problems.add("header", f"names the column {name!r} more than once")
    rows = []
    for number, cells in enumerate(lines[1:], start=2):
        if not any(cells):
            continue
        if len(cells) != len(header):
            problems.add(f"line {number}", f"has {len(cells)} cells, the header {len(header)}")
        rows.append(dict(zip(header, (cell.strip() for cell in cells), strict=False)))
    problems.raise_any("Correct these lines.")
    return rows


def _read_text(path: Path) -> list[list[str]]:
    with reading(path, "is not a text table in UTF-8; save it as CSV in UTF-8"):
        if path.stat().st_size > MAX_BYTES:
            raise FileError(path, f"is larger than the {MAX_BYTES // 2**20} MiB allowed")
        with path.open("rb") as file:
            start = file.read(4)
        if start.startswith((b"PK\3\4", b"\xd0\xcf\x11\xe0")):
            raise FileError(path, "is an Excel workbook; call it .xlsx, or save it as CSV")
        if start.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise FileError(path, "is a text table in UTF-16; save it as CSV in UTF-8")
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            # `max` takes the first of equals, the comma.
            delimiter = max(
                DELIMITERS, key=lambda mark: len(next(csv.reader([first], delimiter=mark), []))
            )
            file.seek(0)
            return list(csv.reader(file, delimiter=delimiter))


def _read_parquet(path: Path) -> list[dict[str, str]]:
    from pyarrow import parquet

    with reading(path, "is not a Parquet file"):
        rows = parquet.read_table(path).to_pylist()
    return [{str(k): _parquet_text(v) for k, v in row.items()} for row in rows]


def _parquet_text(value: Any) -> str:
    # What a program wrote where it had no number is no word of a person.
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def is_missing(cell: str | None) -> bool:
    """Whether a cell holds no value."""
    return cell is None or cell.strip().lower() in MISSING_VALUES


@dataclass(frozen=True)
class TableColumns:
    """The typed columns of a tabular modality."""

    name: str
    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()

    def __post_init__(self):
        both = set(self.numeric) & set(self.categorical)
        if both or not (self.numeric or self.categorical):
            raise ValueError(
                f"the table {self.name!r} needs columns, each numeric or categorical; "
                f"both: {sorted(both)}"
            )


@dataclass(frozen=True)
class TableEncoding:
    """How rows become numbers; made by `fit_table` from training rows.

    Attributes:
      columns: the typed columns.
      means, deviations: of each numeric column over the training rows that hold it.
      categories: of each categorical column, those seen in training, sorted.
    """

    columns: TableColumns
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    categories: tuple[tuple[str, ...], ...]

    @property
    def feature_names(self) -> tuple[str, ...]:
        """What each number of a record means."""
        names = []
        for column in self.columns.numeric:
            names += [column, f"{column} missing"]
        for column, known in zip(self.columns.categorical, self.categories, strict=True):
            names += [f"{column} = {category}" for category in known]
            names += [f"{column} missing", f"{column} not seen in training"]
        return tuple(names)

    @property
    def spec(self) -> TabularSpec:
        return TabularSpec(self.columns.name, len(self.feature_names))

    def encode(self, row: Row) -> np.ndarray | None:
        """`[num_features]` float32 of one row; None when every column is missing."""
        cells = [row.get(name) for name in (*self.columns.numeric, *self.columns.categorical)]
        if all(is_missing(cell) for cell in cells):
            return None
        features: list[float] = []
        for name, mean, deviation in zip(
            self.columns.numeric, self.means, self.deviations, strict=True
        ):
            value = _number(row.get(name), name)
            missing = value is None
            features += [0.0 if missing else (value - mean) / deviation, float(missing)]
        for name, known in zip(self.columns.categorical, self.categories, strict=True):
            cell = row.get(name)
            missing = is_missing(cell)
            features += [float(not missing and cell == category) for category in known]
            features += [float(missing), float(not missing and cell not in known)]
        return np.array(features, np.float32)

    def decode(self, features: np.ndarray) -> dict[str, str]:
        """Column -> value of features `[num_features]`, in words, for people."""
        values, place = {}, 0
        for name, mean, deviation in zip(
            self.columns.numeric, self.means, self.deviations, strict=True
        ):
            scaled, missing = features[place : place + 2]
            values[name] = "missing" if missing else f"{scaled * deviation + mean:.4g}"
            place += 2
        for name, known in zip(self.columns.categorical, self.categories, strict=True):
            shares = features[place : place + len(known) + 2]
            words = (*known, "missing", "not seen in training")
            values[name] = words[int(np.argmax(shares))]
            place += len(words)
        return values


def common_encoding(encodings: Sequence[TableEncoding]) -> TableEncoding:
    """One encoding that loses nothing that any of several says of a row.

    The scale of numbers is the first one's, the categories are those of all.
    """
    first = encodings[0]
    known = zip(*(encoding.categories for encoding in encodings), strict=True)
    categories = tuple(tuple(sorted(set().union(*several))) for several in known)
    return dataclasses.replace(first, categories=categories)


def translation(common: TableEncoding, own: TableEncoding) -> tuple[np.ndarray, np.ndarray]:
    """How features of `common_encoding` become those of one of its encodings.

    Returns:
      `matrix` `[num_common, num_own]` and `shift` `[num_own]`, float64: for every row that is not
      wholly missing, `own.encode(row)` is `common.encode(row) @ matrix + shift` up to rounding.

    Test: tests/data/test_table.py.
    """
    at = {name: place for place, name in enumerate(common.feature_names)}
    matrix = np.zeros((len(at), len(own.feature_names)))
    shift = np.zeros(len(own.feature_names))
    place = 0
    scales = zip(own.means, own.deviations, common.means, common.deviations, strict=True)
    for column, (mean, deviation, its_mean, its_deviation) in zip(
        own.columns.numeric, scales, strict=True
    ):
        missing = at[f"{column} missing"]
        matrix[at[column], place] = its_deviation / deviation
        shift[place] = (its_mean - mean) / deviation
        # What is missing is 0 in both, whatever lies between the two means.
        matrix[missing, place] = -shift[place]
        matrix[missing, place + 1] = 1
        place += 2
    for column, known, theirs in zip(
        own.columns.categorical, own.categories, common.categories, strict=True
    ):
        unseen = place + len(known) + 1
        for category in theirs:
            to = place + known.index(category) if category in known else unseen
            matrix[at[f"{column} = {category}"], to] = 1
        matrix[at[f"{column} missing"], unseen - 1] = 1
        matrix[at[f"{column} not seen in training"], unseen] = 1
        place = unseen + 1
    return matrix, shift


def fit_table(columns: TableColumns, rows: Sequence[Row]) -> TableEncoding:
    """The encoding of training rows; rows of other splits must not be passed.

    Raises:
      UserError: listing columns that are absent or empty and cells that are no number.

    Test: tests/data/test_table.py.
    """
    problems = Problems(f"the tabular modality {columns.name!r}")
    if not rows:
        raise UserError(f"The tabular modality {columns.name!r} has no training rows.")
    for name in (*columns.numeric, *columns.categorical):
        if not any(name in row for row in rows):
            problems.add(name, f"is no column of the table; it has {', '.join(rows[0])}")
    problems.raise_any()
    means, deviations = [], []
    for name in columns.numeric:
        values = []
        for row in rows:
            try:
                value = _number(row.get(name), name)
            except UserError as error:
                problems.add(name, str(error))
                continue
            if value is not None:
                values.append(value)
        if not values:
            problems.add(name, "has no value in training")
            continue
        deviation = float(np.std(values))
        means.append(float(np.mean(values)))
        # A constant column carries nothing; scaling by 1 keeps it at zero.
        deviations.append(deviation if deviation > 0 else 1.0)
    categories = [
        tuple(sorted({row[name] for row in rows if not is_missing(row.get(name))}))
        for name in columns.categorical
    ]
    problems.raise_any("Correct the table or the list of columns.")
    return TableEncoding(columns, tuple(means), tuple(deviations), tuple(categories))


@dataclass(frozen=True)
class _EncodedRows:
    """Reads a row of a table as numbers; None where all of its columns are missing."""

    rows: Sequence[Row]
    encoding: TableEncoding

    def __call__(self, place: int) -> np.ndarray | None:
        return self.encoding.encode(self.rows[place])


def add_table(
    splits: Mapping[str, Records], rows: Mapping[str, Row], columns: TableColumns
) -> tuple[dict[str, Records], TableEncoding]:
    """Splits with a tabular modality whose normalisation comes from "train" alone.

    Args:
      splits: split -> records; "train" must be among them.
      rows: record id -> row.
      columns: the columns and their types.
    """
    encoding = fit_table(
        columns, [rows[record_id] for record_id in splits["train"].ids if record_id in rows]
    )
    reader = _EncodedRows(tuple(rows.values()), encoding)
    number = {record_id: k for k, record_id in enumerate(rows)}
    return {
        split: records.with_modality(
            encoding.spec, pa.array(map(number.get, records.ids), pa.int64()), reader
        ).described(f"{records.description}, with the table {columns.name}")
        for split, records in splits.items()
    }, encoding


def _number(cell: str | None, column: str) -> float | None:
    if is_missing(cell):
        return None
    try:
        value = float(cell)
    except ValueError:
        raise UserError(f"{cell!r} in the column {column!r} is not a number.") from None
    if not math.isfinite(value):
        raise UserError(f"{cell!r} in the column {column!r} is not finite.")
    return value
