"""Control limits that hold one false-alarm rate over everything that a page shows.

Each cell of a page (a statistic of a period, of all records or of one site) is a difference of
two means: of its records and of the validation records. It is divided by its standard error,

    z = (m - m_validation) / sqrt(v * d * (1 / n + 1 / n_validation)),

where `v` is the variance of both sets of records together (of a share with half a record added to
each outcome, so that what validation never showed is no certain alarm when it is seen once) and
`d` the design effect: how much more the mean of validation records varies because records come in
groups (patients). It is measured anew in every history, because of few groups it is badly known.

An alarm is any |z| above one threshold for the whole page: the quantile of the largest |z| in
histories without any shift. A history draws groups of validation records with replacement: into
periods of the sizes observed, and into validation records of its own, for these were drawn once
as well and limits around them would be too narrow. Cells of sites are drawn apart from those of
all records, which errs on the side of fewer alarms.

Source of the idea: Westfall and Young, "Resampling-based multiple testing", 1993 (the largest
standardised statistic holds the rate of a family whatever its dependence).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_HISTORIES = 2000
HISTORIES_A_PASS = 250
"""Drawn at once, which bounds the memory."""


@dataclass(frozen=True)
class Series:
    """Records to be judged over time: all of them, or those of one site.

    Attributes:
      name: of the series.
      reference: values `[n, s]` of the validation records, a column a statistic; NaN where a
        record has none.
      groups: of those records, `[n]` integers from 0.
      periods: values `[m, s]` of each period's records, likewise.
      smallest: records below which a period is shown but not judged.
    """

    name: str
    reference: np.ndarray
    groups: np.ndarray
    periods: Sequence[np.ndarray]
    smallest: int = 1


@dataclass(frozen=True)
class Judged:
    """The cells of one series; NaN where nothing can be told, `z` also where nothing is judged.

    Attributes:
      count, mean: records and their mean, `[t, s]`.
      reference: mean of the validation records, `[s]`.
      z: `[t, s]`.
      reach: how far a mean may be from the reference before it is an alarm, `[t, s]`.
      alarm: `[t, s]` bool.
    """

    count: np.ndarray
    mean: np.ndarray
    reference: np.ndarray
    z: np.ndarray
    reach: np.ndarray
    alarm: np.ndarray


@dataclass(frozen=True)
class Family:
    """Every cell of a page.

    Attributes:
      series: as judged, in the order given.
      threshold: of |z|, for all of them.
      num_cells: cells that could have alarmed.
      rate: of pages without any shift on which at least one cell alarms.
    """

    series: tuple[Judged, ...]
    threshold: float
    num_cells: int
    rate: float


@dataclass(frozen=True)
class _Sums:
    """Sums over records: values, squares and numbers, `[..., s]` each."""

    values: np.ndarray
    squares: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class _Groups:
    """Of each group `[g, s]`: sums over its records, and products of those, for design effects."""

    sums: _Sums
    values_values: np.ndarray
    values_counts: np.ndarray
    counts_counts: np.ndarray

    def drawn(self, weights: np.ndarray) -> _Sums:
        """Sums of groups that count `weights` `[..., g]` times."""
        sums = self.sums
        return _Sums(weights @ sums.values, weights @ sums.squares, weights @ sums.counts)

    def effect(self, weights: np.ndarray, sums: _Sums) -> np.ndarray:
        """Variance of the mean over that of as many records that are all apart, at least 1."""
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = sums.values / sums.counts
            apart = (
                weights @ self.values_values
                - 2 * mean * (weights @ self.values_counts)
                + mean**2 * (weights @ self.counts_counts)
            )
            alone = sums.squares - sums.counts * mean**2
            effect = np.where(alone > 1e-9, apart / alone, 1.0)
        return np.maximum(np.nan_to_num(effect, nan=1.0), 1.0)


def judge(
    series: Sequence[Series],
    is_share: np.ndarray,
    *,
    rate: float = 0.05,
    num_histories: int = NUM_HISTORIES,
    seed: int = 0,
) -> Family:
    """Judges all cells of all series at once.

    Args:
      series: each with the same statistics.
      is_share: `[s]` bool, of statistics that are shares (of values 0 and 1).
      rate: of false alarms over the whole page.
      num_histories: drawn to find the threshold.
      seed: of the histories.

    Test: tests/monitor/test_limits.py.
    """
    draw = np.random.default_rng(seed)
    largest = np.zeros(num_histories)
    cells = []
    for history in series:
        groups = _grouped(history)
        every = np.ones(len(groups.sums.counts))
        reference = groups.drawn(every)
        effect = groups.effect(every, reference)
        z_of = [_standardised(_sums(v), reference, effect, is_share) for v in history.periods]
        z_of = [
            (z if len(v) >= history.smallest else np.full_like(z, np.nan), error)
            for v, (z, error) in zip(history.periods, z_of, strict=True)
        ]
        cells.append((history, reference, z_of))
        can_alarm = [np.isfinite(z) for z, _ in z_of]
        for start in range(0, num_histories, HISTORIES_A_PASS):
            part = slice(start, min(start + HISTORIES_A_PASS, num_histories))
            count = part.stop - part.start
            weights = _weights(groups, len(history.reference), count, draw)
            known = groups.drawn(weights)
            effect = groups.effect(weights, known)
            for values, possible in zip(history.periods, can_alarm, strict=True):
                period = groups.drawn(_weights(groups, len(values), count, draw))
                z, _ = _standardised(period, known, effect, is_share)
                z = np.where(possible & np.isfinite(z), np.abs(z), 0.0)
                np.maximum(largest[part], z.max(-1, initial=0.0), out=largest[part])
    rank = min(math.ceil((num_histories + 1) * (1 - rate)), num_histories)
    threshold = float(np.sort(largest)[rank - 1])
    judged = tuple(
        _judged(history, reference, z_of, threshold, is_share) for history, reference, z_of in cells
    )
    return Family(judged, threshold, sum(int(np.isfinite(j.z).sum()) for j in judged), rate)


def _judged(
    history: Series,
    reference: _Sums,
    z_of: Sequence[tuple[np.ndarray, np.ndarray]],
    threshold: float,
    is_share: np.ndarray,
) -> Judged:
    shape = (len(history.periods), len(is_share))
    sums = [_sums(values) for values in history.periods]
    count = np.array([s.counts for s in sums]).reshape(shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.array([s.values / s.counts for s in sums]).reshape(shape)
        of_reference = reference.values / reference.counts
    z = np.array([z for z, _ in z_of]).reshape(shape)
    error = np.array([error for _, error in z_of]).reshape(shape)
    return Judged(count, mean, of_reference, z, threshold * error, np.abs(z) > threshold)


def _standardised(
    period: _Sums, reference: _Sums, effect: np.ndarray, is_share: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Z and its standard error, `[..., s]`; NaN where one side holds no value."""
    count = period.counts + reference.counts
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = period.values / period.counts - reference.values / reference.counts
        together = (period.values + reference.values + 0.5 * is_share) / (count + is_share)
        spread = np.where(
            is_share,
            together * (1 - together),
            (period.squares + reference.squares) / count - together**2,
        )
        # Equal numbers differ in their last digits; that is no spread.
        floor = 1e-12 * np.maximum(1.0, together**2)
        error = np.sqrt(
            np.maximum(spread, floor) * effect * (1 / period.counts + 1 / reference.counts)
        )
        return difference / error, error


def _grouped(history: Series) -> _Groups:
    """The validation records by group."""
    num_groups = int(history.groups.max()) + 1

    def summed(values: np.ndarray) -> np.ndarray:
        found = np.zeros((num_groups, values.shape[1]))
        np.add.at(found, history.groups, values)
        return found

    known = np.isfinite(history.reference)
    filled = np.where(known, history.reference, 0.0)
    values, counts = summed(filled), summed(known.astype(float))
    sums = _Sums(values, summed(filled**2), counts)
    return _Groups(sums, values**2, values * counts, counts**2)


def _weights(
    groups: _Groups, num_records: int, count: int, draw: np.random.Generator
) -> np.ndarray:
    """How often each group is drawn, `[count, g]`, for about `num_records` records."""
    num_groups = len(groups.sums.counts)
    # Of whatever statistic most records have.
    a_group = max(groups.sums.counts.sum(0).max() / num_groups, 1.0)
    num_drawn = max(round(num_records / a_group), 1)
    return draw.multinomial(num_drawn, np.full(num_groups, 1 / num_groups), count).astype(float)


def _sums(values: np.ndarray) -> _Sums:
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    return _Sums(filled.sum(0), (filled**2).sum(0), known.sum(0).astype(float))
