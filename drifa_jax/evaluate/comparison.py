"""Is one network better than another on the same records? Paired tests of two predictions.

- The areas under their ROC curves: DeLong's test, by the influence of each record on each area.
  Influences are summed within groups (patients) first, as Obuchowski does, so that many images
  of one patient are not many patients; with one record a group it is DeLong's own.
- Their errors: McNemar's exact test of the records that only one of them gets right. It takes
  records as independent.
- Any metric: the bootstrap of the difference, whose resamples draw the same groups for both.

Sources: DeLong et al., Biometrics 1988; Sun and Xu, IEEE SPL 2014 (in n log n); Obuchowski,
Biometrics 1997 (clusters); McNemar, 1947; Holm, 1979 (several tests).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest, norm, rankdata

from drifa_jax.evaluate.intervals import (
    NUM_RESAMPLES,
    Interval,
    bootstrap,
    group_numbers,
    percentile,
    why_undefined,
)
from drifa_jax.evaluate.metrics import measured, scalars
from drifa_jax.evaluate.resamples import ScoredRecords


@dataclass(frozen=True)
class DeLong:
    """Two areas, their difference (second minus first), its 95 % interval and p-value.

    Everything but the areas is None where the difference cannot be tested; `reason` says why.
    """

    first: float | None
    second: float | None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class McNemar:
    """Records that only the first or only the second gets right, and the exact p-value."""

    only_first: int
    only_second: int
    p_value: float


@dataclass(frozen=True)
class Difference:
    """Second minus first of one metric, with the paired bootstrap's interval and p-value."""

    interval: Interval
    p_value: float | None


@dataclass(frozen=True)
class TaskComparison:
    """All paired tests of one task."""

    num_records: int
    num_groups: int
    differences: Mapping[str, Difference]
    delong: DeLong
    mcnemar: McNemar

    def to_json(self) -> dict[str, Any]:
        return {
            "num_records": self.num_records,
            "num_groups": self.num_groups,
            "differences": {
                name: found.interval.to_json() | {"p_value": found.p_value}
                for name, found in self.differences.items()
            },
            "delong": asdict(self.delong),
            "mcnemar": asdict(self.mcnemar),
        }


def auroc_influence(scores: np.ndarray, positive: np.ndarray) -> tuple[float, np.ndarray]:
    """The area under one ROC curve and the influence of each record on it, `[n]`.

    Influences add up to zero, and the sum of their squares is DeLong's variance of the area:
    a record's share of the area, less the area, over the records of its kind.
    """
    scores, positive = np.asarray(scores, np.float64), np.asarray(positive, bool)
    m, n = int(positive.sum()), int((~positive).sum())
    if not m or not n:
        raise ValueError("An area needs positive and negative records.")
    ranks = rankdata(scores)
    below_positive = (ranks[positive] - rankdata(scores[positive])) / n
    above_negative = 1 - (ranks[~positive] - rankdata(scores[~positive])) / m
    area = float(below_positive.mean())
    influence = np.empty(len(scores))
    # A single record of a kind has no variance of its own to estimate.
    influence[positive] = (below_positive - area) / np.sqrt(m * max(m - 1, 1))
    influence[~positive] = (above_negative - area) / np.sqrt(n * max(n - 1, 1))
    return area, influence


def delong(first: np.ndarray, second: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> DeLong:
    """Compares the areas of two predictions, one class against the rest, macro.

    Args:
      first, second: probabilities `[n, k]` of the same records.
      labels: `[n]`, all known.
      groups: `[n]` integers, the group of each record.

    Test: tests/evaluate/test_comparison.py.
    """
    classes = np.unique(labels)
    if len(classes) < 2:
        return DeLong(None, None, reason="only one class occurs among the labels")
    areas, total = np.zeros(2), np.zeros(len(labels))
    for k in classes:
        for place, probabilities in enumerate((first, second)):
            area, influence = auroc_influence(probabilities[:, k], labels == k)
            areas[place] += area / len(classes)
            total += (2 * place - 1) * influence / len(classes)
    sums = np.bincount(groups, total)
    num_groups = len(sums)
    single = num_groups == len(labels)
    # DeLong's variances already divide by one less than the records of each kind.
    variance = np.sum(sums**2) * (1.0 if single else num_groups / max(num_groups - 1, 1))
    difference = float(areas[1] - areas[0])
    if variance <= 1e-18:
        same = "both rank the records alike" if difference == 0 else "no record speaks against it"
        return DeLong(*areas.tolist(), difference, reason=f"the difference has no variance: {same}")
    deviation = float(np.sqrt(variance))
    reach = norm.ppf(0.975) * deviation
    return DeLong(
        *areas.tolist(),
        difference,
        difference - reach,
        difference + reach,
        float(2 * norm.sf(abs(difference) / deviation)),
    )


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> McNemar:
    """The exact two-sided test of `[n]` bools."""
    only_first = int(np.sum(first_right & ~second_right))
    only_second = int(np.sum(~first_right & second_right))
    disagree = only_first + only_second
    p_value = binomtest(only_first, disagree, 0.5).pvalue if disagree else 1.0
    return McNemar(only_first, only_second, float(p_value))


def compare_task(
    first: np.ndarray,
    second: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[str],
    classes: Sequence[str],
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> TaskComparison:
    """All paired tests of two predictions `[n, k]` of the same records.

    Args:
      labels: `[n]`, negative where missing; those records are left out.
      groups: the group of each record.
    """
    labels = np.asarray(labels)
    known = labels >= 0
    a, b, y = first[known], second[known], labels[known]
    number = group_numbers(np.asarray(groups, dtype=str)[known])
    both = ScoredRecords(a, y, number), ScoredRecords(b, y, number)
    points = [measured(records.everything(), scalars()) for records in both]
    num_groups = both[0].num_groups
    drawn: dict[str, np.ndarray] = {}
    if num_groups > 1 and num_resamples:

        def second_minus_first(weights):
            before, after = (measured(records(weights), scalars()) for records in both)
            return {name: after[name] - before[name] for name in before}

        drawn = bootstrap(second_minus_first, num_groups, num_resamples=num_resamples, seed=seed)
    why = why_undefined(both[0].everything(), classes)
    differences = {
        metric.name: _difference(
            float(points[1][metric.name][0] - points[0][metric.name][0]),
            drawn.get(metric.name),
            why,
        )
        for metric in scalars()
    }
    return TaskComparison(
        len(y),
        num_groups,
        differences,
        delong(a, b, y, number),
        mcnemar(a.argmax(1) == y, b.argmax(1) == y),
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values adjusted for being several, by Holm's steps; None stays None."""
    places = [i for i, p in enumerate(p_values) if p is not None]
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(places, key=lambda i: p_values[i])):
        largest = max(largest, min((len(places) - rank) * p_values[i], 1.0))
        adjusted[i] = largest
    return adjusted


def _difference(value: float, drawn: np.ndarray | None, reason: str) -> Difference:
    if not np.isfinite(value):
        return Difference(Interval(None, reason=reason or "undefined"), None)
    known = np.array([]) if drawn is None else drawn[np.isfinite(drawn)]
    if not len(known):
        return Difference(Interval(value, reason="there is only one group to resample"), None)
    missing = len(drawn) - len(known)
    if np.ptp(known) == 0:
        why = "all resamples give the same difference"
        return Difference(Interval(value, reason=why, num_undefined=missing), None)
    # One more is counted so that no p-value claims more than the resamples can show.
    lower, upper = np.sum(known <= 0), np.sum(known >= 0)
    p_value = min(2 * (min(lower, upper) + 1) / (len(known) + 1), 1.0)
    interval = Interval(value, *percentile(known), "percentile", "", missing)
    return Difference(interval, float(p_value))
