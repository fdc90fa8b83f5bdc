"""The metrics against scikit-learn, on every resample, written out or weighted."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn import metrics

from drifa_jax.evaluate.metrics import estimates, measured, scalars
from drifa_jax.evaluate.resamples import ScoredRecords
from drifa_jax.uncertainty.calibration import (
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
)

CLASSES = ("a", "b", "c", "d")
UNDEFINED_FOR_ONE_CLASS = ("auroc", "average_precision", "mcc", "cohen_kappa", "quadratic_kappa")


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


def by_sklearn(p, y):
    """Every metric by scikit-learn; NaN where it has none."""
    k = p.shape[1]
    called, occurring = p.argmax(1), np.unique(y)
    found = {"accuracy": metrics.accuracy_score(y, called)}
    for average in ("macro", "weighted"):
        three = metrics.precision_recall_fscore_support(
            y, called, labels=occurring, average=average, zero_division=0
        )[:3]
        for name, value in zip(("precision", "recall", "f1"), three, strict=True):
            found[f"{name}_{average}"] = value
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        y, called, labels=range(k), zero_division=np.nan
    )
    areas, precisions = np.full((2, k), np.nan)
    for c in occurring if len(occurring) > 1 else ():
        areas[c] = metrics.roc_auc_score(y == c, p[:, c])
        precisions[c] = metrics.average_precision_score(y == c, p[:, c])
    return found | {
        "balanced_accuracy": found["recall_macro"],
        "mcc": metrics.matthews_corrcoef(y, called),
        "cohen_kappa": metrics.cohen_kappa_score(y, called, labels=range(k)),
        "quadratic_kappa": metrics.cohen_kappa_score(
            y, called, labels=range(k), weights="quadratic"
        ),
        "auroc": np.nanmean(areas),
        "average_precision": np.nanmean(precisions),
        "brier": brier_score(p, y),
        "nll": metrics.log_loss(y, p, labels=range(k)),
        "ece": expected_calibration_error(p, y),
        "sensitivity": recall,
        "specificity": [np.mean(called[y != c] != c) for c in range(k)],
        "precision": precision,
        "f1": np.where(np.isin(range(k), occurring), f1, np.nan),
        "auroc_of_class": areas,
        "average_precision_of_class": precisions,
    }


@pytest.mark.parametrize("ties", [False, True])
def test_each_resample_is_that_of_sklearn_on_its_written_out_records(ties):
    p, y, groups = predictions(ties=ties)
    draw = np.random.default_rng(1)
    num_groups = groups.max() + 1
    weights = draw.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=6)
    found = measured(ScoredRecords(p, y, groups)(weights))
    for row, of_groups in enumerate(weights):
        records = np.repeat(np.arange(len(y)), of_groups[groups])
        wanted = by_sklearn(p[records], y[records])
        assert set(wanted) == set(found)
        for name, values in wanted.items():
            np.testing.assert_allclose(found[name][row], values, atol=1e-12, err_msg=name)


def test_the_estimate_is_that_of_sklearn():
    p, y, _ = predictions()
    found = estimates(p, y)
    for name, values in by_sklearn(p, y).items():
        np.testing.assert_allclose(found[name], values, atol=1e-12, err_msg=name)
    assert found["nll"] == pytest.approx(negative_log_likelihood(p, y))


def test_metrics_agree_with_counting():
    # Called: a, b, b, c, a
    p = np.array([[8, 1, 1], [2, 7, 1], [3, 6, 1], [1, 1, 8], [5, 3, 2]]) / 10
    found = estimates(p, np.array([0, 1, 0, 2, 2]))
    assert found["accuracy"] == pytest.approx(3 / 5)
    # recall of a, b, c: 1/2, 1, 1/2; precision: 1/2, 1/2, 1
    assert found["balanced_accuracy"] == found["recall_macro"] == pytest.approx(2 / 3)
    assert found["precision_macro"] == pytest.approx(2 / 3)
    assert found["f1_macro"] == pytest.approx((1 / 2 + 2 / 3 + 2 / 3) / 3)
    # a: 5 of 6 pairs in order (0.3 below 0.5); b: 4 of 4; c: 6 of 6.
    assert found["auroc"] == pytest.approx((5 / 6 + 1 + 1) / 3)


def test_one_class_among_the_labels_leaves_ranking_and_agreement_undefined():
    p, _, _ = predictions()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = estimates(p, np.full(len(p), 1))
    for metric in scalars():
        assert np.isnan(found[metric.name]) == (metric.name in UNDEFINED_FOR_ONE_CLASS)
    assert found["accuracy"] == pytest.approx(np.mean(p.argmax(1) == 1))


def test_a_class_that_is_never_called_has_no_precision_but_counts_as_zero_in_the_mean():
    p = np.array([[0.9, 0.1, 0.0, 0.0], [0.8, 0.1, 0.1, 0.0], [0.2, 0.7, 0.1, 0.0]])
    found = estimates(p, np.array([0, 2, 1]))
    assert np.isnan(found["precision"][2])
    assert found["precision_macro"] == pytest.approx((0.5 + 1 + 0) / 3)


def test_no_figure_leaves_its_bounds():
    for seed in range(20):
        p, y, _ = predictions(num_records=7, seed=seed)
        found = estimates(p, y)
        for metric in scalars():
            low, high = metric.bounds
            assert not (found[metric.name] < low - 1e-12 or found[metric.name] > high + 1e-12)


def test_records_without_a_label_are_refused():
    p, y, groups = predictions()
    y[3] = -1
    with pytest.raises(ValueError, match="without a label"):
        ScoredRecords(p, y, groups)
