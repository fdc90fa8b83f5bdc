"""Excel workbooks are rows of text, as the same table saved as CSV."""

from __future__ import annotations

import datetime
import zipfile

import openpyxl
import pytest

from drifa_jax.data.table import read_table
from drifa_jax.errors import UserError


def write(path, *sheets):
    book = openpyxl.Workbook()
    book.remove(book.active)
    for k, rows in enumerate(sheets):
        sheet = book.create_sheet(f"sheet {k}")
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def test_cells_are_text_as_in_a_csv(tmp_path):
    rows = [["id", "age", "seen", "note"], [7, 61.0, datetime.datetime(2024, 5, 2), None]]
    rows += [[None] * 4, ["im 8", 61.5, "", "=1+1"]]
    assert read_table(write(tmp_path / "t.xlsx", rows, [])) == [
        {"id": "7", "age": "61", "seen": "2024-05-02", "note": ""},
        # Nobody has calculated the formula, so the file holds no value.
        {"id": "im 8", "age": "61.5", "seen": "", "note": ""},
    ]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: write(path, [["id"], [1]], [["other"], [2]]), "several sheets"),
        (lambda path: write(path, [["id"], [1, "stray"]]), "line 2: has 2 cells, the header 1"),
        (lambda path: write(path, []), "is empty"),
        (lambda path: path.write_bytes(b"PK\3\4words"), "is not an Excel workbook"),
        (lambda path: zipfile.ZipFile(path, "w").close(), "is not an Excel workbook"),
    ],
)
def test_what_cannot_be_read_is_told(make, words, tmp_path):
    make(tmp_path / "t.xlsx")
    with pytest.raises(UserError, match=words):
        read_table(tmp_path / "t.xlsx")


def test_a_bomb_is_refused_unopened(tmp_path, monkeypatch):
    monkeypatch.setattr("drifa_jax.data.workbooks.MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(UserError, match="unpacked; save it as CSV"):
        read_table(write(tmp_path / "t.xlsx", [["id"], [1]]))
