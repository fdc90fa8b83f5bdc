"""Excel workbooks (`.xlsx`) as rows of text, read by openpyxl (the extra "tables")."""

from __future__ import annotations

import datetime
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drifa_jax.data.problems import FileError, reading
from drifa_jax.extras import optional

MAX_UNPACKED_BYTES = 2**29
"""A workbook is a zip file; what promises more is refused."""


def read_workbook(path: Path) -> list[list[str]]:
    """The cells of the only sheet that holds any, a list a row, missing cells as "".

    Formulas give the values that Excel saved with them. Whole numbers are written without a
    point, dates as YYYY-MM-DD.

    Raises:
      FileError: damaged or encrypted, too large, no cell, or cells on several sheets.

    Test: tests/data/test_workbooks.py.
    """
    openpyxl = optional("openpyxl", "Reading Excel workbooks", "tables")
    with reading(path, "is not an Excel workbook that can be read; save it as CSV"):
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_UNPACKED_BYTES:
            raise FileError(path, f"would take {size / 2**20:.0f} MiB unpacked; save it as CSV")
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            sheets = {sheet.title: list(_rows(sheet)) for sheet in book.worksheets}
        finally:
            book.close()
    held = {title: rows for title, rows in sheets.items() if rows}
    if len(held) > 1:
        named = ", ".join(map(repr, held))
        raise FileError(path, f"holds several sheets ({named}); save the one that is meant as CSV")
    return next(iter(held.values()), [])


def _rows(sheet: Any) -> Iterator[list[str]]:
    # What a file says of its own extent may be absurd; the cells themselves tell.
    sheet.reset_dimensions()
    for row in sheet.iter_rows(values_only=True):
        cells = [_text(value) for value in row]
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            yield cells


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, datetime.datetime) and not any(value.timetuple()[3:6]):
        return value.date().isoformat()
    if isinstance(value, datetime.date):
        return value.isoformat()
    return str(value).strip()
