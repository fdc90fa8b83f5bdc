"""Paired tests against the definitions written out, and against what chance must do."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, norm
from sklearn.metrics import roc_auc_score

from drifa_jax.evaluate.comparison import auroc_influence, compare_task, delong, holm, mcnemar


def two_predictions(num_records=80, num_classes=2, seed=0, better=1.0):
    draw = np.random.default_rng(seed)
    y = draw.integers(0, num_classes, num_records)
    common = draw.normal(size=(num_records, num_classes))

    def predict(signal):
        logits = common + draw.normal(size=common.shape) + signal * np.eye(num_classes)[y]
        p = np.exp(logits)
        p = np.round(p / p.sum(1, keepdims=True), 2)  # so that scores tie
        p[:, 0] = 1 - p[:, 1:].sum(1)
        return np.maximum(p, 0.0)

    return predict(1.0), predict(better), y


def delong_written_out(a, b, y):
    """DeLong's covariance from all pairs: the equations of the 1988 paper, two loops."""

    def placements(scores):
        x, z = scores[y == 1], scores[y == 0]
        psi = (x[:, None] > z) + 0.5 * (x[:, None] == z)
        return psi.mean(), psi.mean(1), psi.mean(0)

    (area_a, v10a, v01a), (area_b, v10b, v01b) = placements(a), placements(b)
    s10, s01 = np.cov(v10a, v10b), np.cov(v01a, v01b)
    s = s10 / len(v10a) + s01 / len(v01a)
    variance = s[0, 0] + s[1, 1] - 2 * s[0, 1]
    z = (area_b - area_a) / np.sqrt(variance)
    return area_a, area_b, variance, 2 * norm.sf(abs(z))


def test_delong_equals_its_written_out_definition():
    a, b, y = two_predictions()
    found = delong(a, b, y, np.arange(len(y)))
    area_a, area_b, variance, p_value = delong_written_out(a[:, 1], b[:, 1], y)
    assert found.first == pytest.approx(area_a, abs=1e-12)
    assert found.second == pytest.approx(area_b, abs=1e-12)
    assert found.p_value == pytest.approx(p_value, rel=1e-9)
    assert found.high - found.low == pytest.approx(2 * 1.959964 * np.sqrt(variance), rel=1e-6)


def test_influences_give_sklearns_area_and_delongs_variance():
    a, _, y = two_predictions()
    area, influence = auroc_influence(a[:, 1], y == 1)
    assert area == pytest.approx(roc_auc_score(y, a[:, 1]), abs=1e-12)
    assert np.sum(influence) == pytest.approx(0, abs=1e-12)
    _, _, variance, _ = delong_written_out(a[:, 1], np.zeros(len(y)), y)
    assert np.sum(influence**2) == pytest.approx(variance, rel=1e-9)


def test_delong_of_several_classes_is_of_the_macro_area():
    a, b, y = two_predictions(num_records=150, num_classes=3, better=2.0)
    found = delong(a, b, y, np.arange(150))
    assert found.first == pytest.approx(roc_auc_score(y, a, multi_class="ovr"), abs=1e-12)
    assert found.difference > 0


def test_delong_does_not_count_copies_of_patients_as_evidence():
    a, b, y = two_predictions(num_records=100, better=1.6)
    alone = delong(a, b, y, np.arange(100))
    copies = np.repeat(np.arange(100), 6)
    grouped = delong(a[copies], b[copies], y[copies], copies)
    careless = delong(a[copies], b[copies], y[copies], np.arange(600))
    # Up to the factors n / (n - 1) of the two ways to estimate a variance.
    assert grouped.p_value == pytest.approx(alone.p_value, rel=0.1)
    assert careless.p_value < alone.p_value / 10


def test_equal_networks_are_rarely_called_different():
    p_values, mcnemars = [], []
    for seed in range(200):
        a, b, y = two_predictions(num_records=60, seed=seed)
        p_values.append(delong(a, b, y, np.arange(60)).p_value)
        mcnemars.append(mcnemar(a.argmax(1) == y, b.argmax(1) == y).p_value)
    # 5 % of 200 tests is 10; more than 20 has a chance of 0.1 %.
    assert np.sum(np.array(p_values) < 0.05) <= 20
    # The exact test keeps below its level.
    assert np.sum(np.array(mcnemars) < 0.05) <= 16


def test_mcnemar_is_the_binomial_test_of_the_discordant_records():
    first = np.array([True] * 9 + [False] * 2 + [True] * 5)
    second = np.array([False] * 9 + [True] * 2 + [True] * 5)
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (9, 2)
    assert found.p_value == pytest.approx(2 * binom.cdf(2, 11, 0.5))
    assert mcnemar(first, first).p_value == 1.0


def test_the_same_prediction_twice_shows_no_difference_and_no_test():
    a, _, y = two_predictions()
    found = compare_task(a, a, y, [str(i) for i in range(80)], ("n", "y"), num_resamples=100)
    accuracy = found.differences["accuracy"]
    assert accuracy.interval.value == 0
    assert accuracy.p_value is None
    assert "same difference" in accuracy.interval.reason
    assert found.delong.p_value is None
    assert "no variance" in found.delong.reason


def test_the_paired_bootstrap_agrees_with_delong_on_the_area():
    a, b, y = two_predictions(num_records=300, better=1.7)
    found = compare_task(a, b, y, [str(i) for i in range(300)], ("n", "y"), num_resamples=1500)
    auroc = found.differences["auroc"].interval
    # Two ways to the same standard error: some per cent of the width at 300 records.
    width = found.delong.high - found.delong.low
    assert auroc.value == pytest.approx(found.delong.difference, abs=1e-12)
    assert auroc.low == pytest.approx(found.delong.low, abs=0.15 * width)
    assert auroc.high == pytest.approx(found.delong.high, abs=0.15 * width)


def test_one_class_says_that_areas_cannot_be_compared():
    a, b, y = two_predictions()
    y[:] = 1
    found = compare_task(a, b, y, [str(i) for i in range(80)], ("n", "y"), num_resamples=50)
    assert "only one class" in found.delong.reason
    assert found.differences["auroc"].interval.value is None


def test_holm_multiplies_the_smallest_the_most_and_never_turns_the_order():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([None, 0.5]) == [None, 0.5]
