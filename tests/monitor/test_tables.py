"""Tables that do not fit are named; periods are made of what is known of records."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from drifa_jax.errors import UserError
from drifa_jax.monitor.periods import by_time
from drifa_jax.monitor.tables import (
    check_run,
    monitored,
    read_tables,
    with_post_processing,
)
from drifa_jax.predictions.files import write_predictions


def test_files_and_folders_are_periods_in_the_order_given(deployment, tmp_path):
    (tmp_path / "parts" / "deep").mkdir(parents=True)
    write_predictions(deployment(20, 1, name="a"), tmp_path / "parts" / "deep" / "1.parquet")
    write_predictions(deployment(15, 2, name="b"), tmp_path / "parts" / "2.parquet")
    write_predictions(deployment(12, 3, name="c"), tmp_path / "march.parquet")
    found = monitored(read_tables([tmp_path / "parts", tmp_path / "march.parquet"]))
    assert found.periods == ("parts", "march")
    assert np.bincount(found.period).tolist() == [35, 12]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "does not exist"),
        ("empty", "holds no .parquet file"),
        ("a.csv", "does not say which network"),
        ("broken.parquet", "is damaged"),
        ("none.parquet", "holds no records"),
    ],
)
def test_what_is_no_table_is_named(name, message, deployment, tmp_path):
    (tmp_path / "empty").mkdir()
    write_predictions(deployment(20, 1), tmp_path / "a.csv")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    write_predictions(deployment(20, 1).take([]), tmp_path / "none.parquet")
    with pytest.raises(UserError, match=message):
        read_tables([tmp_path / name])


def test_likeness_is_left_out_where_one_table_lacks_it(deployment):
    with_it, without = deployment(20, 1, name="a"), deployment(20, 2, name="b")
    without = dataclasses.replace(without, out_of_distribution=None)
    for tables in ([with_it, without], [without, with_it]):
        found = monitored([("a", tables[0]), ("b", tables[1])])
        assert found.predictions.out_of_distribution is None


def test_predictions_of_another_run_are_refused(deployment, reference, tmp_path):
    other = deployment(20, 1, identity="f" * 32)
    with pytest.raises(UserError, match=r"another run.*ffff.*not runs/mine with 0123"):
        check_run(other, reference.predictions, "runs/mine")
    write_predictions(other, tmp_path / "a.parquet")
    write_predictions(deployment(20, 1), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="differ in their identity"):
        read_tables([tmp_path / "a.parquet", tmp_path / "b.parquet"])


def test_bare_predictions_get_the_post_processing_and_others_options_are_refused(
    deployment, reference
):
    whole = deployment(30, 1)
    bare = dataclasses.replace(
        whole,
        tasks={
            t: dataclasses.replace(
                a, sets=None, refer=None, probabilities=a.uncertainty.probabilities
            )
            for t, a in whole.tasks.items()
        },
    )
    made = with_post_processing(bare, reference.fitted)["tumour"]
    np.testing.assert_array_equal(made.sets, whole["tumour"].sets)
    np.testing.assert_array_equal(made.probabilities, whole["tumour"].probabilities)
    other = dataclasses.replace(whole["tumour"], sets=~whole["tumour"].sets)
    with pytest.raises(UserError, match=r"'tumour'.*other options.*--alpha"):
        with_post_processing(dataclasses.replace(whole, tasks={"tumour": other}), reference.fitted)


def test_a_record_counts_once(deployment):
    part = deployment(20, 1)
    with pytest.raises(UserError, match=r"20 records are there more than once.*january.*february"):
        monitored([("january", part), ("february", part)])
    with pytest.raises(UserError, match="more than once"):
        monitored([("january", part.take([*range(20), 3]))])
    # Files of two months may have the same names; other answers tell them apart.
    assert monitored([("january", part), ("february", deployment(20, 2))]).periods


def test_names_that_come_again_cannot_be_labelled(deployment, tmp_path):
    (tmp_path / "labels.csv").write_text("record_id,tumour\nrecord-0,glioma\n")
    tables = [("january", deployment(20, 1)), ("february", deployment(20, 2))]
    with pytest.raises(UserError, match="more than once"):
        monitored(tables, labels=tmp_path / "labels.csv")


def test_a_column_of_times_makes_periods(deployment, tmp_path):
    rows = [f"record-{k},2024-0{1 + k // 12}-1{k % 9},north" for k in range(36)]
    (tmp_path / "records.csv").write_text("\n".join(["record_id,date,site", *rows, "ghost,,"]))
    found = monitored([("all", deployment(36, 1))], records=tmp_path / "records.csv", time="date")
    assert found.periods == ("2024-01", "2024-02", "2024-03")
    assert found.predictions.attributes["site"][0] == "north"
    assert "1 rows of records that were not predicted: ghost" in found.notes[0]


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        ("day", "2024-03-05"),
        ("week", "2024-W10"),
        ("month", "2024-03"),
        ("quarter", "2024-Q1"),
        ("year", "2024"),
    ],
)
def test_dates_are_read_as_they_are_written(length, expected):
    values = ["2024-03-05", "20240305", "2024-03-05T14:30", "2024-03-05 14:30:10+01:00"]
    assert by_time(values, list("abcd"), "date", length)[1] == (expected,)


def test_records_without_a_time_are_named():
    with pytest.raises(UserError, match=r"2 records have no date there: 'a', 'b' \('soon'\)"):
        by_time(["", "soon", "2024-01-01"], list("abc"), "date", "month")


def test_an_unknown_column_is_named(deployment):
    with pytest.raises(UserError, match="--time date: no such column"):
        monitored([("all", deployment(20, 1))], time="date")


def test_periods_of_one_record_are_not_judged(deployment):
    tables = [("long", deployment(40, 1, name="a")), ("short", deployment(1, 2, name="b"))]
    assert "short (1 record)" in monitored(tables).notes[0]
    with pytest.raises(UserError, match=r"No period holds 10 records: short \(1 record\)"):
        monitored(tables[1:])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,tumour\nrecord-0,glioma\n", "no column 'record_id'"),
        ("record_id,mood\nrecord-0,glad\n", r"no column of a task \(tumour\)"),
        ("record_id,tumour\nx,glioma\ny,none\n", "none of its records was predicted; it has x, y"),
        ("record_id,tumour\nrecord-0,cyst\n", "'cyst'.*no class; they are glioma"),
        ("record_id,tumour\nrecord-0,glioma\nrecord-0,none\n", "line 3 tells 'record-0' otherwise"),
    ],
)
def test_labels_that_fit_nothing_are_named(text, message, deployment, tmp_path):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        monitored([("all", deployment(20, 1))], labels=tmp_path / "labels.csv")


def test_labels_may_lack_records_and_bring_others(deployment, tmp_path):
    (tmp_path / "labels.csv").write_text("record_id,label\nrecord-3,none\nrecord-4,\nghost,none\n")
    found = monitored([("all", deployment(20, 1))], labels=tmp_path / "labels.csv")
    truth = found.predictions["tumour"].truth
    assert truth[3] == 2 and (np.delete(truth, 3) < 0).all()
    assert "1 rows" in found.notes[0]
