"""One table in memory, in Parquet and in CSV: nothing is lost, changed in silence, or run."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest

from drifa_jax.errors import UserError
from drifa_jax.post_processing.out_of_distribution import DistanceScores
from drifa_jax.post_processing.task import PostProcessingOptions, fit_task
from drifa_jax.predictions.files import read_predictions, to_arrow, write_predictions, written
from drifa_jax.predictions.table import Predictions, Provenance, joined, task_predictions
from drifa_jax.uncertainty.measures import from_samples

TASKS = {"tumour": ("benign", "a|b", "=1+1"), "stroke": ("no", "yes")}
COUNT = 60


def drawn(count=COUNT, *, post_processing=True):
    draw = np.random.default_rng(0)
    tasks = {}
    for task, classes in TASKS.items():
        truth = draw.integers(-1, len(classes), count)
        uncertainty = from_samples(draw.dirichlet(np.ones(len(classes)), (2, 3, count)))
        fitted = fit_task(uncertainty, truth, PostProcessingOptions()) if post_processing else None
        found = task_predictions(classes, uncertainty, fitted)
        tasks[task] = dataclasses.replace(found, truth=truth)
    tasks["stroke"] = dataclasses.replace(
        tasks["stroke"], group_ids=tuple(f"p{i // 3}" for i in range(count))
    )
    return Predictions(
        tuple(f"r{i}" for i in range(count)),
        tasks,
        Provenance(("runs/a",), "abc", (7, 9), 2, 3, 1, "validation", "test", "drawn", True),
        DistanceScores(draw.random(count), draw.random(count)),
        tuple(f"g{i // 2}" for i in range(count)),
        {"mri": np.ones(count, bool), "ct": np.arange(count) % 2 == 0},
        {"sex": tuple("fm"[i % 2] for i in range(count)), "group_id": ("x",) * count},
        {"network": 1.5},
    )


def assert_same(one, other):
    assert to_arrow(one).equals(to_arrow(other), check_metadata=True)


@pytest.mark.parametrize("post_processing", [True, False])
def test_parquet_gives_back_every_digit(post_processing, tmp_path):
    whole = drawn(post_processing=post_processing)
    write_predictions(whole, tmp_path / "out.parquet")
    again = read_predictions(tmp_path / "out.parquet")
    assert_same(again, whole)
    for task, found in whole.tasks.items():
        np.testing.assert_array_equal(again[task].truth, found.truth)
        np.testing.assert_array_equal(again[task].uncertainty.margin, found.uncertainty.margin)
        assert (again[task].sets is None) == (not post_processing)


def test_parts_below_each_other_are_the_whole():
    whole = drawn()
    halves = [whole.take(range(20)), whole.take(range(20, COUNT))]
    assert_same(joined(halves), dataclasses.replace(whole, seconds={"network": 3.0}))


def test_what_is_written_in_blocks_is_what_is_written_at_once(tmp_path):
    whole = drawn()
    for suffix in (".csv", ".json", ".parquet"):
        write_predictions(whole, tmp_path / f"once{suffix}")
        with written([tmp_path / f"blocks{suffix}"]) as write:
            for start in range(0, COUNT, 7):
                write(whole.take(range(start, min(start + 7, COUNT))))
    for suffix in (".csv", ".json"):
        once, blocks = ((tmp_path / f"{n}{suffix}").read_text() for n in ("once", "blocks"))
        assert once == blocks
    assert_same(read_predictions(tmp_path / "blocks.parquet"), whole)
    assert len(json.loads((tmp_path / "once.json").read_text())) == COUNT


def test_names_that_a_spreadsheet_would_run_are_harmless_and_numbers_stay(tmp_path):
    ids = ("=cmd()", "+x", "@y", "-3.5", "-z", *(f"r{i}" for i in range(COUNT - 5)))
    write_predictions(dataclasses.replace(drawn(), record_ids=ids), tmp_path / "out.csv")
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["record_id"] for row in rows[:6]] == ["'=cmd()", "'+x", "'@y", "-3.5", "'-z", "r0"]
    assert not any(row["tumour/predicted"].startswith("=") for row in rows)


def test_a_block_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(UserError, match="no image"), written([tmp_path / "out.csv"]) as write:
        write(drawn())
        raise UserError("no image")
    assert not list(tmp_path.iterdir())


def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path):
    whole = drawn()
    path = tmp_path / "out.parquet"
    write_predictions(whole, path)
    data, draw = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for place in draw.integers(0, len(data), 150):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(draw.integers(8))
        path.write_bytes(flipped)
        try:
            assert_same(read_predictions(path), whole)
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 75


def test_other_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.parquet is damaged"):
        read_predictions(tmp_path / "none.parquet")
    with pytest.raises(UserError, match="must end in one of"):
        write_predictions(drawn(), tmp_path / "out.txt")
