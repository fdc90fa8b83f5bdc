"""Intervals: grouped, repeatable, of the right size, and honest where there is nothing to say."""

from __future__ import annotations

import numpy as np
import pytest

from drifa_jax.evaluate.intervals import (
    bootstrap,
    exact_proportion,
    resampled_weights,
    task_metrics,
)

CLASSES = ("no", "yes")


def binary(num_records, accuracy=0.8, seed=0):
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 2, num_records)
    right = draw.random(num_records) < accuracy
    confident = 0.5 + 0.5 * draw.random(num_records)
    p = np.where(right == (y == 1), confident, 1 - confident)
    return np.stack([1 - p, p], 1), y


def test_a_resample_draws_as_many_groups_as_there_are():
    chunks = list(resampled_weights(17, 70, seed=3))
    weights = np.concatenate(chunks)
    assert weights.shape == (70, 17)
    assert (weights.sum(1) == 17).all()
    # Each group is drawn once on average: 70 * 17 draws of 17 groups, 5 standard errors.
    assert abs(weights[:, 0].mean() - 1) < 5 / np.sqrt(70)


def test_resamples_do_not_depend_on_the_number_of_threads(monkeypatch):
    def statistic(weights):
        return {"sum": weights @ np.arange(5.0)}

    many = bootstrap(statistic, 5, num_resamples=100, seed=1)["sum"]
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    one = bootstrap(statistic, 5, num_resamples=100, seed=1)["sum"]
    np.testing.assert_array_equal(one, many)
    assert (bootstrap(statistic, 5, num_resamples=100, seed=2)["sum"] != many).any()


def test_the_interval_of_accuracy_is_the_binomial_one_when_every_record_is_a_group():
    p, y = binary(400)
    found = task_metrics(p, y, [str(i) for i in range(400)], CLASSES, num_resamples=2000)
    accuracy = found.scalars["accuracy"]
    deviation = np.sqrt(accuracy.value * (1 - accuracy.value) / 400)
    # The quantiles of 2,000 resamples are themselves known to some 4 % of the width.
    assert accuracy.high - accuracy.low == pytest.approx(2 * 1.96 * deviation, rel=0.1)
    assert accuracy.low < accuracy.value < accuracy.high


def test_copies_of_patients_do_not_narrow_the_interval():
    p, y = binary(60)
    alone = task_metrics(p, y, [str(i) for i in range(60)], CLASSES, num_resamples=500)
    fivefold = np.repeat(np.arange(60), 5)
    grouped = task_metrics(
        p[fivefold], y[fivefold], [str(i) for i in fivefold], CLASSES, num_resamples=500
    )
    assert (grouped.num_records, grouped.num_groups) == (300, 60)
    for name, of in alone.scalars.items():
        if name != "ece" and of.low is not None:
            assert grouped.scalars[name].high - grouped.scalars[name].low == pytest.approx(
                of.high - of.low, rel=0.15
            ), name


def test_a_class_without_an_error_gets_the_exact_interval_of_its_patients():
    _, y = binary(40)
    perfect = np.eye(2)[y] * 0.98 + 0.01
    found = task_metrics(perfect, y, [str(i // 2) for i in range(40)], CLASSES, num_resamples=200)
    accuracy = found.scalars["accuracy"]
    assert (accuracy.value, accuracy.method, accuracy.high) == (1.0, "exact", 1.0)
    # Nobody of n wrong: 1 - 0.025 ** (1 / n), the closed form of Clopper and Pearson.
    assert accuracy.low == pytest.approx(0.025 ** (1 / 20))
    assert found.scalars["mcc"].low is None
    assert "same value" in found.scalars["mcc"].reason


def test_the_exact_interval_at_known_values():
    # Clopper and Pearson for 8 of 10, from tables.
    assert exact_proportion(0.8, 10) == pytest.approx((0.4439, 0.9748), abs=1e-4)


def test_one_group_has_values_but_no_intervals():
    p, y = binary(30)
    found = task_metrics(p, y, ["one"] * 30, CLASSES)
    assert found.scalars["accuracy"].value is not None
    assert found.scalars["accuracy"].low is None
    assert "only one group" in found.scalars["accuracy"].reason


def test_resamples_without_a_class_are_counted_not_invented():
    p, y = binary(30)
    y[:] = 0
    y[:2] = 1
    found = task_metrics(p, y, [str(i) for i in range(30)], CLASSES, num_resamples=400)
    auroc = found.scalars["auroc"]
    # Both positives are missed by (28 / 30)^30 = 13 % of the resamples.
    assert 0.05 < auroc.num_undefined / 400 < 0.25
    assert auroc.low is not None


def test_the_interval_of_the_calibration_error_holds_it():
    p, y = binary(300, accuracy=0.75)
    ece = task_metrics(p, y, [str(i) for i in range(300)], CLASSES, num_resamples=400).scalars[
        "ece"
    ]
    assert ece.method == "basic"
    assert 0 <= ece.low <= ece.value <= ece.high


def test_json_is_plain_and_says_why():
    import json

    p, y = binary(30)
    y[:] = 1
    document = task_metrics(p, y, ["one"] * 30, CLASSES).to_json()
    assert "only the class 'yes' occurs" in document["metrics"]["auroc"]["reason"]
    assert json.loads(json.dumps(document, allow_nan=False)) == document
