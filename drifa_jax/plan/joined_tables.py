"""Tables that hold only part of what a record is: labels elsewhere, one-hot, a row an image."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drifa_jax.data.label_columns import column_names, one_hot_columns, told
from drifa_jax.data.table import Row, is_missing
from drifa_jax.errors import UserError
from drifa_jax.plan import names
from drifa_jax.plan.columns import KNOWN_BEFORE, Columns, roles
from drifa_jax.plan.modality import Questions

MODALITY_COLUMN = re.compile(r"modality|sequence|contrast|(image|scan|photo)_?(type|kind)")
MOST_MODALITIES = 8
SHARED = 0.9
"""Part of the ids of one table that another one must hold to be joined to it."""


@dataclass(frozen=True)
class Labels:
    """Where labels come from that the table of images does not hold in one column.

    Attributes:
      column: of the label, or several with commas between, which are one-hot.
      table: that holds it; "" for the table of images itself.
      id_column: by which the two are joined; "" where there is one table.
      rows: of the table of images, with the cells of the other one.
    """

    column: str
    table: str
    id_column: str
    rows: list[Row]


def labels_of(
    rows: Sequence[Row],
    read: Columns,
    others: Mapping[str, Sequence[Row]],
    label_table: str = "",
) -> Labels | None:
    """Labels in one-hot columns, or in another table by a shared id; None where there are none.

    Args:
      rows: of the table of images.
      read: the roles of its columns.
      others: table -> rows, of the tables beside it.
      label_table: the one that the user named; "" leaves it to the data.

    Raises:
      Questions: where several tables hold labels that differ.
      UserError: where the table that the user named holds none.
    """
    if not label_table:
        if read.telling:
            return None
        if columns := _one_hot(rows, read.images):
            return _with_label(columns, "", "", rows)
    elif label_table not in others:
        raise UserError(f"--label-table {label_table}: the others are {', '.join(others)}.")
    found = [
        joined
        for table, other in others.items()
        if label_table in ("", table) and (joined := _joined(rows, read, table, other))
    ]
    if label_table and not found:
        raise UserError(
            f"--label-table {label_table}: it shares no id with the table of images, or has no "
            "column that reads as the label."
        )
    # An id that several images share is the record's, rather than that of one image.
    of_records = [joined for joined in found if joined.id_column not in read.images]
    found = of_records or found
    if len({tuple(row[joined.column] for row in joined.rows) for joined in found}) > 1:
        named = ", ".join(joined.table for joined in found)
        raise Questions([f"which table has the labels? --label-table, one of {named}"])
    # They say the same: the one that holds little else.
    return min(found, key=lambda joined: (_besides(joined, others), joined.table), default=None)


def _besides(labels: Labels, others: Mapping[str, Sequence[Row]]) -> int:
    """How many columns the table of the labels has besides them."""
    row = others[labels.table][0]
    return len(row) - len(column_names(labels.column, row))


def _joined(rows: Sequence[Row], read: Columns, table: str, other: Sequence[Row]) -> Labels | None:
    """The rows with the labels of another table, joined by the id that both have."""
    shared = [name for name in rows[0] if name in other[0] and _joins(rows, other, name)]
    if not shared:
        return None
    column = min(shared, key=lambda name: name in read.images)
    of_other = roles(other, ())
    label = _one_hot(other, (column,))
    if of_other.telling == 1:
        label = of_other.labels[0]
    if not label:
        return None
    by_id = {row[column]: row for row in other}
    empty = dict.fromkeys(other[0], "")
    joined = [{**by_id.get(row[column], empty), **row} for row in rows]
    return _with_label(label, table, column, joined)


def long_form(rows: Sequence[Row], id_column: str = "") -> tuple[str, str, dict[str, str]] | None:
    """(id column, modality column, value -> modality) of a table with a row an image, or None.

    The same id is in several rows, one for each value of the other column.

    Args:
      rows: of the table.
      id_column: the only one that counts; "" finds it.
    """
    for column in rows[0]:
        values = sorted({row[column] for row in rows if not is_missing(row[column])})
        if not 2 <= len(values) <= MOST_MODALITIES:
            continue
        called = {value: _called(value) for value in values}
        telling = all(names.MODALITY_WORDS.fullmatch(name) for name in called.values())
        if not (MODALITY_COLUMN.search(column.lower()) or telling):
            continue
        if len(set(called.values())) < len(values):
            called = {value: _slug(value) for value in values}
        for record in [id_column] if id_column else rows[0]:
            ids = [row[record] for row in rows if not is_missing(row[record])]
            pairs = {(row[record], row[column]) for row in rows}
            if (
                record != column
                and len(pairs) == len(rows) == len(ids)
                and 10 <= len(set(ids)) <= 0.7 * len(rows)
            ):
                return record, column, called
    return None


def _joins(rows: Sequence[Row], other: Sequence[Row], column: str) -> bool:
    """Whether a column names rows of the other table, each of which is there once."""
    ids = [row[column] for row in other]
    known = set(ids)
    if len(known) < len(ids) or len(known) < 10:
        return False
    return sum(row[column] in known for row in rows) >= SHARED * len(rows)


def _one_hot(rows: Sequence[Row], other_than: Sequence[str]) -> str:
    before = [name for name in rows[0] if KNOWN_BEFORE.search(name.lower())]
    columns = one_hot_columns(rows, (*other_than, *before))
    return ",".join(columns) if len(columns) <= names.MOST_CLASSES else ""


def _with_label(label: str, table: str, id_column: str, rows: Sequence[Row]) -> Labels:
    if "," not in label:
        return Labels(label, table, id_column, list(rows))
    return Labels(label, table, id_column, [{**row, label: told(row, label) or ""} for row in rows])


def _called(value: str) -> str:
    name = names.modality_name(value)
    return _slug(value) if name == "image" else name


def _slug(value: str) -> str:
    return re.sub(r"\W+", "_", value.lower()).strip("_") or "image"
