"""Error bars: a bootstrap that draws groups (patients, lesions), never single images of them.

Images of one patient resemble each other, so a resample takes or leaves whole patients.
Intervals are quantiles of the resampled values, corrected for their bias and skewness (BCa) and,
since few groups vary less among themselves than patients do, taken further out by Student's t
(Hesterberg's expansion), with two exceptions. Resampling adds noise to every calibration bin and
so always raises ECE; its interval is reflected about the estimate, as it is (the basic bootstrap)
and in squares, where noise adds up, and reaches as far as either. And where all resamples agree,
as for a class without a single error, they know nothing of what more patients would show:
proportions then get the exact binomial interval with the groups as trials, other figures none.
How often the intervals hold the truth: `benchmarks/interval_coverage.py`.

Sources: Efron and Tibshirani, 1993 (BCa and basic bootstrap); Hesterberg, American Statistician
2015 (the expansion); Field and Welsh, JRSS B
2007 (resampling clusters); Clopper and Pearson, 1934 (exact interval).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import beta, norm
from scipy.stats import t as student

from drifa_jax.evaluate.metrics import METRICS, Metric, measured
from drifa_jax.evaluate.resamples import Resamples, ScoredRecords
from drifa_jax.uncertainty.calibration import labelled

LEVEL = 0.95
NUM_RESAMPLES = 2000
JACKKNIFE_BLOCKS = 60
"""Parts that are left out in turn to see the skewness; groups themselves where there are fewer."""

FEWEST_GROUPS = 25
"""Below this many, reports say that intervals are rough."""

RESAMPLES_A_CHUNK = 32
"""Drawn and measured together; small enough for the processor's cache. Part of the result: each
chunk has a random stream of its own, so that any number of threads draws the same resamples."""


@dataclass(frozen=True)
class Interval:
    """A figure with its error bar.

    Attributes:
      value: the estimate; None where it is undefined.
      low, high: of the interval; None where there is none.
      method: "bca", "percentile" (of differences), "basic", "exact" or "none".
      reason: why there is no value or no interval; "" otherwise.
      num_undefined: resamples in which the figure was undefined, left out.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    method: str = "none"
    reason: str = ""
    num_undefined: int = 0

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value not in ("", 0, None)} | {
            key: getattr(self, key) for key in ("value", "low", "high")
        }


@dataclass(frozen=True)
class TaskMetrics:
    """All metrics of one task with their intervals.

    Attributes:
      classes: names.
      num_records: labelled records.
      num_groups: groups (patients, lesions) that they belong to.
      scalars: name -> figure.
      per_class: name -> one figure for each class.
      support: labelled records of each class.
      confusion: `[k][k]`, row: truth, column: call.
      num_resamples: behind the intervals.
    """

    classes: tuple[str, ...]
    num_records: int
    num_groups: int
    scalars: dict[str, Interval]
    per_class: dict[str, list[Interval]]
    support: list[int]
    confusion: list[list[int]]
    num_resamples: int

    def to_json(self) -> dict[str, Any]:
        return {
            "classes": list(self.classes),
            "num_records": self.num_records,
            "num_groups": self.num_groups,
            "level": LEVEL,
            "num_resamples": self.num_resamples,
            "metrics": {name: found.to_json() for name, found in self.scalars.items()},
            "per_class": {
                name: {c: found.to_json() for c, found in zip(self.classes, values, strict=True)}
                for name, values in self.per_class.items()
            },
            "support": dict(zip(self.classes, self.support, strict=True)),
            "confusion_matrix": self.confusion,
        }


def group_numbers(groups: Sequence[str]) -> np.ndarray:
    """`[n]` integers from 0, equal where the names of the groups are."""
    return np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1].reshape(-1)


def resampled_weights(num_groups: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Chunks of resamples `[r, g]` float64: how often each of the groups was drawn."""
    starts = range(0, num_resamples, RESAMPLES_A_CHUNK)
    streams = np.random.SeedSequence(seed).spawn(len(starts))
    for start, stream in zip(starts, streams, strict=True):
        count = min(RESAMPLES_A_CHUNK, num_resamples - start)
        draw = np.random.Generator(np.random.Philox(stream))
        drawn = draw.integers(0, num_groups, (count, num_groups))
        drawn += np.arange(count)[:, None] * num_groups
        counts = np.bincount(drawn.reshape(-1), minlength=count * num_groups)
        yield counts.reshape(count, num_groups).astype(np.float64)


def bootstrap(
    statistic: Callable[[np.ndarray], dict[str, np.ndarray]],
    num_groups: int,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """The statistics of every resample, `[num_resamples, ...]`, in the order of the draws.

    Args:
      statistic: weights `[r, g]` to values `[r, ...]` by name; called from several threads.
      num_groups: g.
    """
    chunks = resampled_weights(num_groups, num_resamples, seed)
    workers = min(len(os.sched_getaffinity(0)), 8)
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(statistic, chunks))
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def task_metrics(
    probabilities: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[str],
    classes: Sequence[str],
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    metrics: Sequence[Metric] | None = None,
) -> TaskMetrics:
    """The metrics of one task with grouped intervals.

    Args:
      probabilities: `[n, k]`.
      labels: `[n]`, negative where missing; those records are left out.
      groups: the group of each record.
      classes: names of the columns.
      num_resamples: 0 leaves the intervals out.
      seed: of the resamples.
      metrics: which; all of `METRICS` when None.

    Raises:
      ValueError: where no record has a label.

    Test: tests/evaluate/test_intervals.py.
    """
    known = np.asarray(labels) >= 0
    p, y = labelled(probabilities, labels)
    records = ScoredRecords(p, y, group_numbers(np.asarray(groups, dtype=str)[known]))
    everything = records.everything()
    metrics = tuple(METRICS.values() if metrics is None else metrics)
    values = measured(everything, metrics)
    drawn: dict[str, np.ndarray] = {}
    without: dict[str, np.ndarray] = {}
    if num_resamples and records.num_groups > 1:
        without = measured(records(_leaving_out(records.num_groups)), metrics)
        drawn = bootstrap(
            lambda weights: measured(records(weights), metrics),
            records.num_groups,
            num_resamples=num_resamples,
            seed=seed,
        )
    scalars, by_class = {}, {}
    for metric in metrics:
        of_metric, resampled = values[metric.name][0], drawn.get(metric.name)
        if not metric.by_class:
            why = why_undefined(everything, classes)
            scalars[metric.name] = _interval(
                metric,
                of_metric,
                resampled,
                without.get(metric.name),
                records.num_groups,
                records.num_groups,
                why,
            )
            continue
        trials = _trials(records, others=metric.name == "specificity")
        by_class[metric.name] = [
            _interval(
                metric,
                value,
                None if resampled is None else resampled[:, k],
                None if resampled is None else without[metric.name][:, k],
                records.num_groups,
                trials[k],
                _why_undefined_of_class(metric, everything, k),
            )
            for k, value in enumerate(of_metric)
        ]
    return TaskMetrics(
        classes=tuple(classes),
        num_records=len(y),
        num_groups=records.num_groups,
        scalars=scalars,
        per_class=by_class,
        support=everything.support[0].astype(int).tolist(),
        confusion=everything.confusion[0].astype(int).tolist(),
        num_resamples=num_resamples if records.num_groups > 1 else 0,
    )


def why_undefined(everything: Resamples, classes: Sequence[str]) -> str:
    """Why a figure of agreement or ranking is undefined; "" where several classes occur."""
    occurring = np.flatnonzero(everything.support[0])
    if len(occurring) > 1:
        return ""
    count = int(everything.total[0])
    return f"only the class {classes[occurring[0]]!r} occurs among the {count} labels"


def percentile(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The middle `level` of the values."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def exact_proportion(value: float, trials: int, level: float = LEVEL) -> tuple[float, float]:
    """Clopper and Pearson's interval of `value * trials` successes in `trials`."""
    successes, tail = round(value * trials), (1 - level) / 2
    low = beta.ppf(tail, successes, trials - successes + 1) if successes else 0.0
    high = beta.ppf(1 - tail, successes + 1, trials - successes) if successes < trials else 1.0
    return float(low), float(high)


def _interval(
    metric: Metric,
    value: float,
    drawn: np.ndarray | None,
    without: np.ndarray | None,
    num_groups: int,
    trials: int,
    reason: str,
) -> Interval:
    if not np.isfinite(value):
        return Interval(None, reason=reason or "undefined")
    value = float(value)
    if drawn is None:
        why = "there is only one group to resample" if num_groups < 2 else ""
        return Interval(value, reason=why)
    known = drawn[np.isfinite(drawn)]
    missing = len(drawn) - len(known)
    if len(known) < len(drawn) / 2:
        why = f"undefined in {missing} of {len(drawn)} resamples"
        return Interval(value, reason=why, num_undefined=missing)
    low, high = percentile(known)
    if low == high:
        if metric.proportion and value in (0.0, 1.0):
            return Interval(value, *exact_proportion(value, trials), "exact", "", missing)
        return Interval(value, reason="all resamples give the same value", num_undefined=missing)
    reach = _expanded(num_groups)
    if metric.reflected:
        ends = np.quantile(known, norm.cdf([reach, -reach]))
        squared = np.sqrt(np.maximum(2 * value**2 - ends**2, 0.0))
        both = np.clip([2 * value - ends, squared], *metric.bounds)
        low, high = float(both[:, 0].min()), max(float(both[:, 1].max()), value)
        return Interval(value, low, high, "basic", "", missing)
    return Interval(value, *_bca(value, known, without, reach), "bca", "", missing)


def _expanded(num_groups: int) -> float:
    """How many deviations out an interval ends: 1.96 of many groups, more of few."""
    spread = np.sqrt(num_groups / (num_groups - 1))
    return float(spread * student.ppf((1 + LEVEL) / 2, num_groups - 1))


def _leaving_out(num_groups: int) -> np.ndarray:
    """Weights `[b, g]` that leave out each group or, of many, each of `JACKKNIFE_BLOCKS` parts."""
    blocks = min(num_groups, JACKKNIFE_BLOCKS)
    return (np.arange(num_groups) % blocks != np.arange(blocks)[:, None]).astype(np.float64)


def _bca(value: float, drawn: np.ndarray, without: np.ndarray, reach: float) -> tuple[float, float]:
    """The bias-corrected and accelerated interval that ends `reach` deviations out."""
    below = np.mean(drawn < value) + np.mean(drawn == value) / 2
    limit = 1 / (2 * len(drawn))
    bias = norm.ppf(np.clip(below, limit, 1 - limit))
    pull = np.nanmean(without) - without[np.isfinite(without)]
    spread = np.sum(pull**2) ** 1.5
    acceleration = np.sum(pull**3) / (6 * spread) if spread > 0 else 0.0
    ends = bias + np.array([-reach, reach])
    places = norm.cdf(bias + ends / np.maximum(1 - acceleration * ends, 0.1))
    low, high = np.quantile(drawn, places)
    return min(float(low), value), max(float(high), value)


def _why_undefined_of_class(metric: Metric, everything: Resamples, k: int) -> str:
    if metric.name == "precision" and not everything.called[0, k]:
        return "the class is never called"
    if not everything.support[0, k]:
        return "the class does not occur among the labels"
    return "no other class occurs among the labels"


def _trials(records: ScoredRecords, *, others: bool) -> list[int]:
    """Groups that hold each class or, for `others`, that hold another."""
    return [
        len(np.unique(records.groups[(records.labels == k) != others]))
        for k in range(records.num_classes)
    ]
