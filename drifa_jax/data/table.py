"""Tables: rows of a CSV or Parquet file, and their columns as a modality of numbers.

A tabular modality is fitted on training rows alone. Each number is centred and scaled by them;
each category that they hold gets a place. A value that is missing, and a category that training
never saw, have places of their own, so that neither is mistaken for an average patient.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from drifa_jax.data.problems import Problems
from drifa_jax.data.record import TabularSpec
from drifa_jax.data.records import Records
from drifa_jax.errors import UserError

Row = Mapping[str, str]

MISSING_VALUES = ("", "na", "n/a", "nan", "none", "null", "unknown", "?")
"""What a cell says, in any letter case, when the value is missing."""


def read_table(path: str | Path) -> list[dict[str, str]]:
    """Rows of a CSV (`.csv`, `.tsv`) or Parquet file as text, missing cells as "".

    Raises:
      UserError: if the file is missing, empty, has a repeated column or ragged rows.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"The table {path} does not exist.")
    if path.suffix.lower() in (".parquet", ".pq"):
        return _read_parquet(path)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    problems = Problems(f"the table {path}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.reader(file, delimiter=delimiter))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: is not a text table in UTF-8 ({error}).") from error
    if not lines:
        raise UserError(f"{path}: is empty.")
    header = [name.strip() for name in lines[0]]
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


def _read_parquet(path: Path) -> list[dict[str, str]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: is not a Parquet file ({error}).") from error
    return [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]


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
