"""The weighted sums against scikit-learn on every resample, written out or weighted."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn import metrics

from drifa_jax.evaluate.points import metrics_of
from drifa_jax.evaluate.weighted import SCALARS, WeightedMetrics
from drifa_jax.uncertainty.calibration import (
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
)

CLASSES = ("a", "b", "c", "d")


def predictions(num_records=120, num_classes=4, seed=0, ties=False):
    draw = np.random.default_rng(seed)
    y = draw.choice(
        num_classes, num_records, p=np.arange(1, num_classes + 1) / 10 if num_classes == 4 else None
    )
    p = draw.dirichlet(np.ones(num_classes), num_records)
    p[np.arange(num_records), y] += 0.4
    p /= p.sum(1, keepdims=True)
    if ties:
        # Quarters: many equal scores, exactly representable.
        p = np.eye(num_classes)[p.argmax(1)] * 0.5 + 0.5 / num_classes
        p[::3] = 1 / num_classes
    groups = np.unique(draw.integers(0, num_records // 3, num_records), return_inverse=True)[1]
    return p, y, groups


@pytest.mark.parametrize("ties", [False, True])
def test_each_resample_equals_the_metrics_of_its_written_out_records(ties):
    p, y, groups = predictions(ties=ties)
    draw = np.random.default_rng(1)
    num_groups = groups.max() + 1
    weights = draw.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=6)
    found = WeightedMetrics(p, y, groups)(weights)
    for row, of_groups in enumerate(weights):
        records = np.repeat(np.arange(len(y)), of_groups[groups])
        points = metrics_of(p[records], y[records], CLASSES)
        for name in SCALARS:
            assert found[name][row] == pytest.approx(points.scalars[name], abs=1e-12), name
        for name, values in points.per_class.items():
            wanted = [np.nan if value is None else value for value in values]
            np.testing.assert_allclose(found[name][row], wanted, atol=1e-12, err_msg=name)


def test_the_single_numbers_are_those_of_sklearn():
    p, y, _ = predictions()
    called = p.argmax(1)
    points = metrics_of(p, y, CLASSES)
    wanted = {
        "accuracy": metrics.accuracy_score(y, called),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, called),
        "precision_macro": metrics.precision_score(y, called, average="macro", zero_division=0),
        "recall_weighted": metrics.recall_score(y, called, average="weighted"),
        "f1_macro": metrics.f1_score(y, called, average="macro"),
        "f1_weighted": metrics.f1_score(y, called, average="weighted"),
        "mcc": metrics.matthews_corrcoef(y, called),
        "cohen_kappa": metrics.cohen_kappa_score(y, called),
        "quadratic_kappa": metrics.cohen_kappa_score(y, called, weights="quadratic"),
        "auroc": metrics.roc_auc_score(y, p, multi_class="ovr", average="macro"),
        "average_precision": metrics.average_precision_score(np.eye(4)[y], p, average="macro"),
        "brier": brier_score(p, y),
        "nll": metrics.log_loss(y, p),
        "ece": expected_calibration_error(p, y),
    }
    for name, value in wanted.items():
        assert points.scalars[name] == pytest.approx(value, abs=1e-12), name
    assert points.scalars["nll"] == pytest.approx(negative_log_likelihood(p, y))
    specificity = metrics.recall_score(y != 2, called != 2)
    assert points.per_class["specificity"][2] == pytest.approx(specificity, abs=1e-12)


def test_one_class_among_the_labels_leaves_ranking_and_agreement_undefined():
    p, _, groups = predictions()
    y = np.full(len(p), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        points = metrics_of(p, y, CLASSES)
    for name in ("auroc", "average_precision", "mcc", "cohen_kappa", "quadratic_kappa"):
        assert points.scalars[name] is None
        assert "only the class 'b' occurs" in points.undefined[name]
    found = WeightedMetrics(p, y, groups)(np.ones((1, groups.max() + 1)))
    assert all(np.isnan(found[name][0]) for name in points.undefined)
    assert found["accuracy"][0] == pytest.approx(points.scalars["accuracy"])


def test_a_class_that_is_never_called_has_no_precision_but_counts_as_zero_in_the_mean():
    p = np.array([[0.9, 0.1, 0.0, 0.0], [0.8, 0.1, 0.1, 0.0], [0.2, 0.7, 0.1, 0.0]])
    y = np.array([0, 2, 1])
    points = metrics_of(p, y, CLASSES)
    assert points.per_class["precision"][2] is None
    assert points.scalars["precision_macro"] == pytest.approx((0.5 + 1 + 0) / 3)
    found = WeightedMetrics(p, y, np.arange(3))(np.ones((1, 3)))
    assert np.isnan(found["precision"][0, 2])
    assert found["precision_macro"][0] == pytest.approx((0.5 + 1 + 0) / 3)


def test_records_without_a_label_are_refused():
    p, y, groups = predictions()
    y[3] = -1
    with pytest.raises(ValueError, match="without a label"):
        WeightedMetrics(p, y, groups)
