"""Comparing evaluations: the same records in any order, clear words for all that cannot be."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from drifa_jax.cli import main
from drifa_jax.commands.compare import distinct_names
from drifa_jax.errors import UserError
from drifa_jax.evaluate.compared_runs import aligned, compare, read_evaluation
from drifa_jax.evaluate.folders import find_evaluation
from drifa_jax.report.comparison_report import write_comparison


@pytest.fixture(scope="module")
def first(evaluation_folder):
    return read_evaluation(evaluation_folder, "first")


def changed(run, task=None, name="second", **fields):
    """A run with other fields of its predictions, or of those of one task."""
    predictions = run.predictions
    if task is not None:
        other = dataclasses.replace(predictions[task], **fields)
        fields = {"tasks": {**predictions.tasks, task: other}}
    return dataclasses.replace(
        run, name=name, predictions=dataclasses.replace(predictions, **fields)
    )


def worse(run):
    """The same records in another order, with noisier probabilities."""
    draw = np.random.default_rng(1)
    predictions = run.predictions.take(draw.permutation(len(run.predictions)))
    tasks = {}
    for task, found in predictions.tasks.items():
        p = found.probabilities * np.exp(1.5 * draw.normal(size=found.probabilities.shape))
        tasks[task] = dataclasses.replace(found, probabilities=p / p.sum(1, keepdims=True))
    moved = dataclasses.replace(run, predictions=predictions)
    return changed(moved, tasks=tasks)


def test_the_order_of_the_records_does_not_matter(first):
    other = worse(first)
    ours, theirs = first.predictions, other.predictions
    moved = aligned(first, other).predictions
    assert moved.record_ids == ours.record_ids
    place = theirs.record_ids.index(ours.record_ids[9])
    np.testing.assert_array_equal(
        moved["stroke"].probabilities[9], theirs["stroke"].probabilities[place]
    )
    assert compare([first, other], num_resamples=100).pairs["stroke"][0].num_records == 235


def test_a_noisier_network_is_found_worse(first, tmp_path):
    found = compare([first, worse(first)], num_resamples=300)
    accuracy = found.pairs["stroke"][0].differences["accuracy"]
    assert accuracy.interval.high < 0 and accuracy.p_value < 0.05
    assert (
        found.pairs["stroke"][0].mcnemar.only_first > found.pairs["stroke"][0].mcnemar.only_second
    )
    write_comparison(found, tmp_path / "out")
    document = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert document["compared_with"] == "first"
    assert document["tasks"]["stroke"]["differences"]["second"]["delong"]["p_value"] < 0.05
    lines = (tmp_path / "out" / "differences.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 16
    # Again into the same folder: it is replaced, not mixed.
    write_comparison(found, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def without(run, record):
    names = run.predictions.record_ids
    kept = [i for i, name in enumerate(names) if name != record]
    return dataclasses.replace(run, predictions=run.predictions.take(kept))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: without(run, "r7"), r"different records \(1 only in the first, 0 only.*r7"),
        (
            lambda run: changed(run, tasks={"tumour": run.predictions["tumour"]}),
            "answer different tasks",
        ),
        (
            lambda run: changed(run, "stroke", classes=("a", "b", "c")),
            "different classes of stroke",
        ),
        (lambda run: changed(run, "stroke", truth=np.zeros(240, int)), "disagree on the truth of"),
        (lambda run: changed(run, group_ids=run.predictions.record_ids), "different groups"),
        (
            lambda run: changed(run, "stroke", group_ids=run.predictions.record_ids),
            "different groups",
        ),
    ],
)
def test_runs_that_cannot_be_compared_say_why(first, change, message):
    with pytest.raises(UserError, match=message):
        compare([first, change(first)], num_resamples=100)


def test_folders_without_an_evaluation_or_with_a_damaged_one_are_named(tmp_path, evaluation_folder):
    with pytest.raises(UserError, match="has no evaluation; run `drifa evaluate"):
        find_evaluation(tmp_path)
    (tmp_path / "predictions.parquet").write_bytes(b"no")
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        read_evaluation(find_evaluation(tmp_path), "x")
    assert find_evaluation(evaluation_folder) == evaluation_folder


def test_names_are_as_long_as_they_must_be(tmp_path):
    assert distinct_names([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]
    assert distinct_names([tmp_path / "x", tmp_path / "y"]) == ["x", "y"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], "at least two runs"),
        (["a", "a"], "given twice"),
        (["nowhere", "elsewhere"], "nowhere has no evaluation"),
        (["a", "b", "--resamples", "3"], "--resamples is 3"),
    ],
)
def test_wrong_arguments_are_answered_in_words(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_the_command_writes_a_report(evaluation_folder, comparison_folder):
    page = (comparison_folder / "report.html").read_text()
    for title in ("Results in short", "Differences, paired bootstrap", "DeLong and McNemar"):
        assert title in page
    assert "SYNTHETIC" in page
