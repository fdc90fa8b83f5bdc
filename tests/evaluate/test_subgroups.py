"""Subgroup tables: which columns, which bands, and what is not shown."""

from __future__ import annotations

import numpy as np
import pytest

from drifa_jax.errors import UserError
from drifa_jax.evaluate.subgroups import find_columns, subgroup_table, subgroup_values

CLASSES = ("no", "yes")


def table(values, groups=None):
    count = len(values)
    y = np.arange(count) % 2
    p = np.eye(2)[y] * 0.6 + 0.2
    p[::5] = p[::5, ::-1]
    groups = groups or [str(i) for i in range(count)]
    return subgroup_table(p, y, groups, CLASSES, values, num_resamples=50)


def test_figures_of_a_subgroup_are_those_of_its_records():
    rows = table(["female"] * 40 + ["male"] * 30)
    assert [(row.name, row.num_records) for row in rows] == [("female", 40), ("male", 30)]
    assert rows[0].metrics["accuracy"].value == pytest.approx(0.8)
    assert rows[0].metrics["accuracy"].low < 0.8


def test_small_subgroups_show_neither_figures_nor_their_size():
    rows = table(["female"] * 60 + ["other"] * 19)
    assert rows[1].suppressed
    assert rows[1].to_json() == {"suppressed": "fewer than 20 groups"}


def test_many_images_of_few_patients_are_a_small_subgroup():
    rows = table(["a"] * 60, groups=[str(i % 3) for i in range(60)])
    assert rows[0].suppressed


def test_ages_become_bands_of_twenty_years():
    values = subgroup_values(["5", "19", "20", "063Y", "85.0", "", "nan", "41", "30", "55"])
    assert values[:5] == ["0 to 19", "0 to 19", "20 to 39", "60 to 79", "80 to 99"]
    assert values[5:7] == ["unknown", "unknown"]


def test_other_numbers_become_quarters():
    values = subgroup_values([str(v) for v in range(1000, 1100)])
    assert len(set(values)) == 4
    assert values.count(values[0]) == 25


def test_a_column_of_names_makes_no_subgroups():
    assert set(subgroup_values([f"name{i}" for i in range(50)])) == {"unknown"}


def test_unknown_values_come_last():
    rows = table([""] * 30 + ["90 to 99"] * 25 + ["zebra"] * 25)
    assert [row.name for row in rows] == ["90 to 99", "zebra", "unknown"]


def test_columns_are_found_by_their_usual_names():
    held = ["Sex", "age", "colour", "ct/Hospital"]
    assert find_columns(held, None) == ["Sex", "age", "ct/Hospital"]
    assert find_columns([], None) == []


def test_asked_columns_that_are_missing_are_named_with_what_there_is():
    with pytest.raises(UserError, match=r"--subgroups sex.*they have colour"):
        find_columns(["colour"], ["sex"])
    with pytest.raises(UserError, match="no columns"):
        find_columns([], ["sex"])
    assert find_columns(["ct/colour"], ["colour"]) == ["ct/colour"]


def test_a_subgroup_of_one_class_says_that_its_area_is_undefined():
    y = np.array([0] * 30 + [0, 1] * 15)
    p = np.eye(2)[y] * 0.6 + 0.2
    rows = subgroup_table(
        p, y, [str(i) for i in range(60)], CLASSES, ["a"] * 30 + ["b"] * 30, num_resamples=20
    )
    assert rows[0].metrics["auroc"].value is None
    assert "only the class 'no'" in rows[0].metrics["auroc"].reason
    assert rows[1].metrics["auroc"].value == 1.0
