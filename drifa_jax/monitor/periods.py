"""Which record belongs to which period: by a column of times, or a table a period."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

import numpy as np

from drifa_jax.data.problems import some_of
from drifa_jax.errors import UserError

LENGTHS = ("day", "week", "month", "quarter", "year")
SMALLEST_PERIOD = 10
"""Records below which a period, or a site in it, is shown but not judged."""


def by_time(
    values: Sequence[str], record_ids: Sequence[str], column: str, length: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Number of each record's period `[n]`, and the names of the periods in their order.

    Args:
      values: dates or times as ISO 8601 writes them (`2024-03-05`, `20240305`, `2024-03`).
      record_ids: for messages.
      column: likewise.
      length: of a period, one of `LENGTHS`.

    Raises:
      UserError: naming records without a time, and values that are none.
    """
    named = [_period(value, length) for value in values]
    lacking = [
        f"{record!r} ({value!r})" if value else repr(record)
        for record, value, name in zip(record_ids, values, named, strict=True)
        if name is None
    ]
    if lacking:
        raise UserError(
            f"--time {column}: {len(lacking):,} records have no date there: {some_of(lacking)}. "
            "A date is 2024-03-05, 20240305, 2024-03 or a time as 2024-03-05T14:00."
        )
    names = tuple(sorted(set(named)))
    places = {name: place for place, name in enumerate(names)}
    return np.array([places[name] for name in named], int), names


def check_periods(numbers: np.ndarray, names: Sequence[str]) -> list[str]:
    """Notes on periods that are too small to be judged.

    Raises:
      UserError: where all of them are.
    """
    counts = np.bincount(numbers, minlength=len(names))
    small = [
        f"{name} ({count} record{'' if count == 1 else 's'})"
        for name, count in zip(names, counts, strict=True)
        if count < SMALLEST_PERIOD
    ]
    if len(small) == len(names):
        raise UserError(
            f"No period holds {SMALLEST_PERIOD} records: {some_of(small)}. Choose longer periods "
            f"(--every {', '.join(LENGTHS)}), or put more predictions into one table."
        )
    if small:
        return [f"Shown but not judged, below {SMALLEST_PERIOD} records: {some_of(small)}."]
    return []


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of tables, with a number where one comes again."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(found)


def _period(value: str, length: str) -> str | None:
    """The name of a date's period, which sorts by time; None where it is no date."""
    text = value.strip()
    if len(text) == 7 and text[4:5] == "-" and length in ("month", "quarter", "year"):
        text += "-01"
    try:
        day = datetime.datetime.fromisoformat(text).date()
    except ValueError:
        return None
    year, week, _ = day.isocalendar()
    return {
        "day": day.isoformat(),
        "week": f"{year:04d}-W{week:02d}",
        "month": f"{day:%Y-%m}",
        "quarter": f"{day.year:04d}-Q{(day.month + 2) // 3}",
        "year": f"{day.year:04d}",
    }[length]


def column_of(
    table: Mapping[str, Mapping[str, str]], record_ids: Sequence[str], column: str
) -> tuple[str, ...]:
    """A column of a table of records for these records, "" where it has no row."""
    return tuple(table.get(record, {}).get(column, "") for record in record_ids)
