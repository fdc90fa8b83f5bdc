"""One class in many spellings, words for missing values, one-hot columns: every guess is told."""

from __future__ import annotations

import pytest

from drifa_jax.data.label_columns import one_hot_columns, read_labels
from drifa_jax.data.record import MISSING_LABEL


def read(cells, declared=()):
    rows = [{"label": cell} for cell in cells]
    column = read_labels(rows, "label", declared)
    return column, [column.label(row) for row in rows]


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        (["0", "0.0", "00", "0", "1", "1.0"], ("0", "1")),
        (["Benign", "benign", "Benign", "MALIGNANT", "malignant"], ("Benign", "MALIGNANT")),
        (["grade  1", "Grade 1", "grade 2", "grade 2"], ("Grade 1", "grade 2")),
        (["n\u00e9vus", "ne\u0301vus", "n\u00e9vus", "x"], ("n\u00e9vus", "x")),
    ],
)
def test_spellings_of_one_class_are_one_class_and_told(cells, classes):
    column, labels = read(cells)
    assert column.classes == classes
    assert MISSING_LABEL not in labels
    assert "are one class" in " ".join(column.notes)


def test_numbers_that_differ_are_different_classes():
    assert read(["1", "10", "1.5", "-1", "0", "-0"])[0].classes == ("-1", "0", "1", "1.5", "10")
    long = ["1.2.826.0.1", "1.2.826.0.10", "123456789012345678901234567890", "1e5", "infinity"]
    assert len(read(long)[0].classes) == 5


@pytest.mark.parametrize("word", ["None", "NA", "nan", "null", "unknown"])
def test_a_frequent_word_for_missing_is_a_class_and_told(word):
    column, labels = read(["Mild", "Severe", word] * 4)
    assert word in column.classes
    assert labels.count(column.classes.index(word)) == 4
    assert column.notes[0].startswith(f"4 cells of label say {word!r}, taken for a class.")


def test_a_rare_word_for_missing_is_no_label_and_told():
    column, labels = read(["Mild", "Severe"] * 20 + ["None"])
    assert column.classes == ("Mild", "Severe")
    assert labels[-1] == MISSING_LABEL
    assert column.notes[0].startswith("1 cells of label say 'None', taken for no label.")


def test_nan_beside_empty_cells_is_another_way_to_leave_them_empty():
    column, labels = read(["a", "b", "nan", ""] * 3)
    assert column.classes == ("a", "b")
    assert labels.count(MISSING_LABEL) == 6
    assert "'nan', taken for no label" in column.notes[0]


def test_declared_classes_leave_nothing_to_guess():
    column, labels = read(["None", "mild", "NA", "A", "a"], ("None", "Mild", "A", "a"))
    assert labels == [0, 1, MISSING_LABEL, 2, 3]
    assert column.label({"label": "other"}) == "'other', not one of ('None', 'Mild', 'A', 'a')"


def test_one_hot_columns_are_the_classes():
    rows = [{"MEL": "1.0", "NV": "0.0"}, {"MEL": "0", "NV": "1"}, {"MEL": "", "NV": ""}]
    column = read_labels(rows, "MEL,NV")
    assert column.classes == ("MEL", "NV")
    assert [column.label(row) for row in rows] == [0, 1, MISSING_LABEL]
    assert "no one-hot row" in column.label({"MEL": "1", "NV": "1"})
    assert "no one-hot row" in column.label({"MEL": "0.3", "NV": "0.7"})


def test_columns_that_look_one_hot_are_found():
    rows = [{"id": "r1", "a": "1", "b": "0"}, {"id": "r2", "a": "0", "b": "1"}]
    assert one_hot_columns(rows, ("id",)) == ("a", "b")
    assert one_hot_columns([*rows, {"id": "r3", "a": "1", "b": "1"}], ("id",)) == ()
