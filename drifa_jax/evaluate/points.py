"""The metrics of one task as single numbers, by scikit-learn, with the reasons of the undefined."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn import metrics

from drifa_jax.uncertainty.calibration import (
    brier_score,
    expected_calibration_error,
    labelled,
    negative_log_likelihood,
)

Number = float | None


@dataclass(frozen=True)
class Points:
    """The metrics of one task.

    Attributes:
      scalars: name -> value; None where it is undefined.
      per_class: name -> one value for each class.
      undefined: name -> why; of scalars.
      confusion: `[k, k]`, `[i, j]` counting records of class i called class j.
    """

    scalars: dict[str, Number]
    per_class: dict[str, list[Number]]
    undefined: dict[str, str]
    confusion: np.ndarray


def metrics_of(probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Points:
    """All metrics of the records that have a label.

    Macro figures average over the classes that occur among the labels. AUROC and average
    precision are one class against the rest, averaged likewise. Where only one class occurs,
    what measures agreement or ranking is undefined, and the reason says so.

    Args:
      probabilities: `[n, k]`, rows adding up to 1.
      labels: `[n]` int, negative where missing.
      classes: names, in the order of the columns.

    Test: tests/evaluate/test_weighted.py, which holds it against the weighted sums.
    """
    p, y = labelled(probabilities, labels)
    k = len(classes)
    called, every = p.argmax(1), np.arange(k)
    occurring = np.unique(y)
    confusion = metrics.confusion_matrix(y, called, labels=every)
    scalars: dict[str, Number] = {"accuracy": float(metrics.accuracy_score(y, called))}
    for average in ("macro", "weighted"):
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(
            y, called, labels=occurring, average=average, zero_division=0
        )
        scalars[f"precision_{average}"] = float(precision)
        scalars[f"recall_{average}"] = float(recall)
        scalars[f"f1_{average}"] = float(f1)
    scalars["balanced_accuracy"] = scalars["recall_macro"]
    undefined: dict[str, str] = {}
    if len(occurring) < 2:
        why = f"only the class {classes[occurring[0]]!r} occurs among the {len(y)} labels"
        for name in ("mcc", "cohen_kappa", "quadratic_kappa", "auroc", "average_precision"):
            scalars[name], undefined[name] = None, why
    else:
        scalars["mcc"] = float(metrics.matthews_corrcoef(y, called))
        for name, weights in (("cohen_kappa", None), ("quadratic_kappa", "quadratic")):
            scalars[name] = float(
                metrics.cohen_kappa_score(y, called, labels=every, weights=weights)
            )
    areas = [_area(metrics.roc_auc_score, y == c, p[:, c]) for c in every]
    precisions = [_area(metrics.average_precision_score, y == c, p[:, c]) for c in every]
    if len(occurring) > 1:
        scalars["auroc"] = _mean(areas)
        scalars["average_precision"] = _mean(precisions)
    scalars |= {
        "brier": brier_score(p, y),
        "nll": negative_log_likelihood(p, y),
        "ece": expected_calibration_error(p, y),
    }
    with warnings.catch_warnings():
        # A class that does not occur, or is never called, has no figure: NaN, shown as undefined.
        warnings.simplefilter("ignore", metrics._classification.UndefinedMetricWarning)
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(
            y, called, labels=every, zero_division=np.nan
        )
    specificity = [float(np.mean(called[y != c] != c)) if (y != c).any() else None for c in every]
    occurs = np.isin(every, occurring)
    per_class = {
        "sensitivity": _numbers(recall),
        "specificity": specificity,
        "precision": _numbers(precision),
        "f1": _numbers(np.where(occurs, f1, np.nan)),
        "auroc_of_class": areas,
        "average_precision_of_class": precisions,
    }
    return Points(scalars, per_class, undefined, confusion)


def _area(score, positive: np.ndarray, scores: np.ndarray) -> Number:
    return float(score(positive, scores)) if 0 < positive.sum() < len(positive) else None


def _mean(values: Sequence[Number]) -> float:
    return float(np.mean([value for value in values if value is not None]))


def _numbers(values: np.ndarray) -> list[Number]:
    return [float(value) if np.isfinite(value) else None for value in values]
