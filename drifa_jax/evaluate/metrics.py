"""Every metric of the package: one entry each, read by everything that reports figures.

A metric is a function of `Resamples`; the estimate is that of the one resample in which every
record counts once, so that estimate, interval, subgroup and difference share one definition.
Definitions are scikit-learn's (tests compare the two resample by resample). Macro figures average
over the classes that occur among the labels. To add a metric, add an entry to `METRICS`, here
or in a program of your own: `METRICS[metric.name] = metric`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from drifa_jax.evaluate.resamples import Resamples, ScoredRecords
from drifa_jax.uncertainty.calibration import SMALLEST_PROBABILITY

NUM_BINS = 15
"""Bins of equal width of the calibration error, as in `uncertainty.calibration`."""


@dataclass(frozen=True)
class Metric:
    """One figure of a task.

    Attributes:
      name: key in `metrics.json` and the tables.
      title: name in reports.
      compute: resamples to `[r]`, or `[r, k]` by class; NaN where it is undefined.
      bounds: smallest and largest value; intervals stay within.
      by_class: whether there is one for each class.
      proportion: whether it is a share of records, which has an exact interval.
      reflected: whether resampling biases it away from zero (see `evaluate.intervals`).
      headline, in_subgroups, in_figure: whether reports show it first, for each subgroup, and in
        the figure of differences.
    """

    name: str
    title: str
    compute: Callable[[Resamples], np.ndarray]
    bounds: tuple[float, float] = (0.0, 1.0)
    by_class: bool = False
    proportion: bool = False
    reflected: bool = False
    headline: bool = False
    in_subgroups: bool = False
    in_figure: bool = False


def measured(
    resamples: Resamples, metrics: tuple[Metric, ...] | None = None
) -> dict[str, np.ndarray]:
    """Metric name -> `[r]`, or `[r, k]` of those by class; all of `METRICS` when None."""
    chosen = tuple(METRICS.values()) if metrics is None else metrics
    return {metric.name: metric.compute(resamples) for metric in chosen}


def estimates(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Metric name -> the figure of these labelled records, `[]`, or `[k]` of those by class."""
    records = ScoredRecords(probabilities, labels, np.zeros(len(labels), int))
    return {name: values[0] for name, values in measured(records.everything()).items()}


def _sensitivity(r: Resamples) -> np.ndarray:
    return _ratio(r.right, r.support)


def _specificity(r: Resamples) -> np.ndarray:
    others = r.total[:, None] - r.support
    return _ratio(others - r.called + r.right, others)


def _precision(r: Resamples) -> np.ndarray:
    return _ratio(r.right, r.called)


def _f1(r: Resamples) -> np.ndarray:
    return np.where(r.support > 0, _ratio(2 * r.right, r.support + r.called), np.nan)


def _macro(by_class: Callable[[Resamples], np.ndarray]) -> Callable[[Resamples], np.ndarray]:
    def compute(r: Resamples) -> np.ndarray:
        occurs = r.support > 0
        # A class that is never called has no precision; in a mean it counts as 0.
        return np.where(occurs, np.nan_to_num(by_class(r)), 0.0).sum(1) / occurs.sum(1)

    return compute


def _weighted(by_class: Callable[[Resamples], np.ndarray]) -> Callable[[Resamples], np.ndarray]:
    def compute(r: Resamples) -> np.ndarray:
        return (np.nan_to_num(by_class(r)) * r.support).sum(1) / r.total

    return compute


def _accuracy(r: Resamples) -> np.ndarray:
    return r.right.sum(1) / r.total


def _several(r: Resamples) -> np.ndarray:
    """Whether more than one class occurs; agreement is undefined otherwise, `[r]`."""
    return (r.support > 0).sum(1) > 1


def _matthews(r: Resamples) -> np.ndarray:
    total, chance = r.total, (r.support * r.called).sum(1)
    spread = np.sqrt((total**2 - (r.support**2).sum(1)) * (total**2 - (r.called**2).sum(1)))
    found = np.nan_to_num(_ratio(r.right.sum(1) * total - chance, spread))
    return np.where(_several(r), found, np.nan)


def _cohen(r: Resamples) -> np.ndarray:
    expected = (r.support * r.called).sum(1) / r.total**2
    return np.where(_several(r), _ratio(_accuracy(r) - expected, 1 - expected), np.nan)


def _quadratic(r: Resamples) -> np.ndarray:
    distance = (np.arange(r.num_classes)[:, None] - np.arange(r.num_classes)) ** 2
    seen = (r.confusion * distance).sum((1, 2))
    by_chance = np.einsum("ri,rj,ij->r", r.support, r.called, distance) / r.total
    return np.where(_several(r), 1 - _ratio(seen, by_chance), np.nan)


def _auroc_of_class(r: Resamples) -> np.ndarray:
    return r.ranked[0]


def _average_precision_of_class(r: Resamples) -> np.ndarray:
    return r.ranked[1]


def _mean_of_defined(by_class: Callable[[Resamples], np.ndarray]):
    def compute(r: Resamples) -> np.ndarray:
        values = by_class(r)
        known = np.isfinite(values)
        return _ratio(np.where(known, values, 0.0).sum(1), known.sum(1).astype(float))

    return compute


def _surprise(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(p[np.arange(len(y)), y], SMALLEST_PROBABILITY))


def _squared_distance(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sum((p - np.eye(p.shape[1])[y]) ** 2, 1)


def _gap_by_bin(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Confidence minus being right, in the column of the confidence's bin."""
    confidence = p.max(1)
    place = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    gaps = np.zeros((len(y), NUM_BINS))
    gaps[np.arange(len(y)), place] = confidence - (p.argmax(1) == y)
    return gaps


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Their quotient; NaN where the whole is zero."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


_ENTRIES = (
    Metric(
        "accuracy", "Accuracy", _accuracy,
        proportion=True, headline=True, in_subgroups=True, in_figure=True,
    ),
    Metric(
        "balanced_accuracy", "Balanced accuracy", _macro(_sensitivity),
        headline=True, in_subgroups=True, in_figure=True,
    ),
    Metric(
        "auroc", "AUROC (macro)", _mean_of_defined(_auroc_of_class),
        headline=True, in_subgroups=True, in_figure=True,
    ),
    Metric(
        "average_precision", "Average precision (macro)",
        _mean_of_defined(_average_precision_of_class),
    ),
    Metric("f1_macro", "F1 (macro)", _macro(_f1), headline=True, in_figure=True),
    Metric("f1_weighted", "F1 (weighted)", _weighted(_f1)),
    Metric("precision_macro", "Precision (macro)", _macro(_precision)),
    Metric("precision_weighted", "Precision (weighted)", _weighted(_precision)),
    Metric("recall_macro", "Recall (macro)", _macro(_sensitivity)),
    Metric("recall_weighted", "Recall (weighted)", _weighted(_sensitivity), proportion=True),
    Metric(
        "mcc", "Matthews correlation", _matthews,
        bounds=(-1.0, 1.0), headline=True, in_figure=True,
    ),
    Metric("cohen_kappa", "Cohen's kappa", _cohen, bounds=(-1.0, 1.0)),
    Metric("quadratic_kappa", "Quadratic kappa", _quadratic, bounds=(-1.0, 1.0)),
    Metric(
        "brier", "Brier score", lambda r: r.mean(_squared_distance),
        bounds=(0.0, 2.0), in_figure=True,
    ),
    Metric(
        "nll", "Negative log-likelihood (nats)", lambda r: r.mean(_surprise),
        bounds=(0.0, float(-np.log(SMALLEST_PROBABILITY))), in_figure=True,
    ),
    Metric(
        "ece", "Calibration (ECE)", lambda r: np.abs(r.mean(_gap_by_bin)).sum(1),
        reflected=True, headline=True, in_subgroups=True, in_figure=True,
    ),
    Metric("sensitivity", "Sensitivity", _sensitivity, by_class=True, proportion=True),
    Metric("specificity", "Specificity", _specificity, by_class=True, proportion=True),
    Metric("precision", "Precision", _precision, by_class=True),
    Metric("f1", "F1", _f1, by_class=True),
    Metric("auroc_of_class", "AUROC", _auroc_of_class, by_class=True),
    Metric(
        "average_precision_of_class", "Average precision", _average_precision_of_class,
        by_class=True,
    ),
)  # fmt: skip

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ENTRIES}
"""Name -> metric, in the order of reports."""


def scalars() -> tuple[Metric, ...]:
    """The metrics of a whole task, in the order of reports."""
    return tuple(metric for metric in METRICS.values() if not metric.by_class)
