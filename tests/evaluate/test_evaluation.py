"""What is drawn together about a task: decisions, subgroups and the rows of the tables."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from drifa_jax.errors import UserError
from drifa_jax.evaluate.evaluation import MODALITIES_COLUMN, evaluate_tasks
from drifa_jax.predictions.files import flat_rows
from drifa_jax.predictions.table import Predictions, task_predictions
from drifa_jax.uncertainty.measures import from_samples

TASKS = {"tumour": ("no", "yes"), "stroke": ("a", "b", "c")}


@pytest.fixture
def answers():
    draw = np.random.default_rng(0)
    count = 90
    labels = {t: draw.integers(0, len(c), count) for t, c in TASKS.items()}
    labels["stroke"][::3] = -1
    tasks = {}
    for task, classes in TASKS.items():
        p = draw.dirichlet(np.ones(len(classes)), (1, 4, count))
        found = task_predictions(classes, from_samples(p))
        tasks[task] = dataclasses.replace(found, truth=labels[task])
    return Predictions(
        record_ids=tuple(f"r{i}" for i in range(count)),
        tasks=tasks,
        group_ids=tuple(f"r{i}" for i in range(count)),
        attributes={
            "stroke/side": tuple("lr"[i % 2] for i in range(count)),
            "sex": tuple("fm"[i % 2] for i in range(count)),
        },
        present={"mri": np.ones(count, bool), "ct": np.arange(count) % 2 == 0},
    )


def test_only_labelled_records_count(answers):
    found = evaluate_tasks(answers, {}, num_resamples=20)
    assert found["stroke"].metrics.num_records == 60
    assert found["stroke"].wrong.shape == found["stroke"].entropy.shape == (60,)
    p = answers["stroke"].uncertainty.probabilities
    right = p.argmax(1)[answers["stroke"].truth >= 0] == found["stroke"].labels
    assert found["stroke"].metrics.scalars["accuracy"].value == pytest.approx(right.mean())


def test_intervals_of_a_task_resample_the_groups_of_its_own_part(answers):
    """Of pairs of strangers: 30 patients of three scans each were paired with 90 others."""
    patients = tuple(f"ct:p{i // 3}" for i in range(90))
    tumour = dataclasses.replace(answers["tumour"], group_ids=patients)
    paired = dataclasses.replace(answers, tasks={**answers.tasks, "tumour": tumour})
    found = evaluate_tasks(paired, {}, num_resamples=20)
    assert found["tumour"].metrics.num_groups == 30
    assert found["stroke"].metrics.num_groups == 60
    rows = flat_rows(paired)
    assert rows[4]["tumour/group_id"] == "ct:p1" and "stroke/group_id" not in rows[4]


def test_a_task_without_labels_is_left_out(answers):
    answers["stroke"].truth[:] = -1
    assert set(evaluate_tasks(answers, {}, num_resamples=20)) == {"tumour"}


def test_subgroups_are_the_usual_columns_and_what_a_record_lacks(answers):
    found = evaluate_tasks(answers, {}, num_resamples=20)
    assert set(found["tumour"].subgroups) == {"sex", MODALITIES_COLUMN}
    names = {row.name for row in found["tumour"].subgroups[MODALITIES_COLUMN]}
    assert names == {"mri", "mri + ct"}


def test_a_column_of_another_task_is_not_asked_about_this_one(answers):
    found = evaluate_tasks(answers, {}, columns=["side"], num_resamples=20)
    assert "stroke/side" in found["stroke"].subgroups
    assert "stroke/side" not in found["tumour"].subgroups


def test_missing_columns_are_an_error_that_lists_what_there_is(answers):
    with pytest.raises(UserError, match=r"--subgroups age.*stroke/side, sex"):
        evaluate_tasks(answers, {}, columns=["age"], num_resamples=20)


def test_rows_hold_the_answer_with_its_uncertainty_beside_it(answers):
    rows = flat_rows(answers)
    assert len(rows) == 90
    row = rows[3]
    assert row["record_id"] == "r3" and row["ct/present"] is False
    assert row["stroke/true"] is None and row["stroke/right"] is None
    total = sum(row[f"stroke/p({c})"] for c in TASKS["stroke"])
    assert total == pytest.approx(1)
    assert 0 <= row["stroke/mutual_information"] <= row["stroke/predictive_entropy"]
    assert row["tumour/right"] == (row["tumour/true"] == row["tumour/predicted"])
