"""A deployment over time against the validation records of its run: every cell, and the alarms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drifa_jax.evaluate.intervals import exact_proportion, group_numbers, resampled_weights
from drifa_jax.monitor.limits import NUM_HISTORIES, Family, Series, judge
from drifa_jax.monitor.periods import SMALLEST_PERIOD
from drifa_jax.monitor.reference import SMALLEST_REFERENCE, Reference
from drifa_jax.monitor.statistics import LABELLED, Statistic, statistics_of, values_of
from drifa_jax.monitor.tables import SITE_COLUMNS, Monitored
from drifa_jax.predictions.table import Predictions
from drifa_jax.uncertainty.calibration import expected_calibration_error

RATE = 0.05
FEW_GROUPS = 40
"""Groups of validation records below which limits are known to be too narrow."""
NUM_RESAMPLES = 500
ALL = "all records"


@dataclass(frozen=True)
class Place:
    """One series in words: all records, or those of one site.

    Attributes:
      column, value: by which it is told apart; "" and `ALL` for all records.
      held_against: whose validation records it is held against, in words.
      counts: records of each period, `[t]`.
    """

    column: str
    value: str
    held_against: str
    counts: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.column} {self.value}" if self.column else self.value


@dataclass(frozen=True)
class Labelled:
    """What labels say of one task, period by period; NaN where there are none.

    Attributes:
      counts: labelled records `[t]`.
      accuracy, calibration_error, coverage: `[t, 3]`, value with its 95 % interval.
      of_validation: the same three figures of the validation records.
      promised: coverage that the sets promise; None without sets.
    """

    counts: np.ndarray
    accuracy: np.ndarray
    calibration_error: np.ndarray
    coverage: np.ndarray
    of_validation: tuple[float, float, float]
    promised: float | None


@dataclass(frozen=True)
class Monitoring:
    """A whole page."""

    reference: Reference
    monitored: Monitored
    statistics: tuple[Statistic, ...]
    places: tuple[Place, ...]
    family: Family
    labelled: Mapping[str, Labelled]
    seed: int
    num_histories: int
    notes: tuple[str, ...]

    @property
    def alarms(self) -> list[tuple[int, int, int]]:
        """(series, period, statistic) of each alarm, the furthest first."""
        found = [
            (abs(float(judged.z[t, s])), k, int(t), int(s))
            for k, judged in enumerate(self.family.series)
            for t, s in np.argwhere(judged.alarm)
        ]
        return [cell for _, *cell in sorted(found, key=lambda cell: -cell[0])]

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not known is null."""
        predictions = self.reference.predictions
        return {
            "alarm": bool(self.alarms),
            "alarms": [self._cell(*cell) for cell in self.alarms],
            "false_alarm_rate": self.family.rate,
            "threshold": self.family.threshold,
            "num_cells": self.family.num_cells,
            "num_histories": self.num_histories,
            "seed": self.seed,
            "run": self.reference.run,
            "identity": predictions.provenance.identity,
            "synthetic": predictions.provenance.synthetic,
            "validation_records": len(predictions),
            "records": len(self.monitored.predictions),
            "periods": list(self.monitored.periods),
            "statistics": {s.key: s.what for s in self.statistics},
            "series": [
                {
                    "name": place.name,
                    "held_against": place.held_against,
                    "records": place.counts.tolist(),
                    "cells": {
                        s.key: {
                            "validation": _plain(judged.reference[k]),
                            "mean": _plain(judged.mean[:, k]),
                            "reach": _plain(judged.reach[:, k]),
                            "z": _plain(judged.z[:, k]),
                        }
                        for k, s in enumerate(self.statistics)
                    },
                }
                for place, judged in zip(self.places, self.family.series, strict=True)
            ],
            "labels": {
                task: {
                    "records": found.counts.tolist(),
                    "accuracy": _plain(found.accuracy),
                    "calibration_error": _plain(found.calibration_error),
                    "coverage": _plain(found.coverage),
                    "validation": _plain(np.array(found.of_validation)),
                    "promised_coverage": found.promised,
                }
                for task, found in self.labelled.items()
            },
            "notes": list(self.notes),
        }

    def _cell(self, series: int, period: int, statistic: int) -> dict[str, Any]:
        judged = self.family.series[series]
        return {
            "series": self.places[series].name,
            "period": self.monitored.periods[period],
            "statistic": self.statistics[statistic].key,
            "mean": _plain(judged.mean[period, statistic]),
            "validation": _plain(judged.reference[statistic]),
            "reach": _plain(judged.reach[period, statistic]),
            "z": _plain(judged.z[period, statistic]),
        }


def monitor(
    reference: Reference,
    found: Monitored,
    *,
    columns: Sequence[str] | None = None,
    rate: float = RATE,
    num_histories: int = NUM_HISTORIES,
    seed: int = 0,
) -> Monitoring:
    """Judges all periods of a deployment.

    Args:
      reference: validation records of the run.
      found: the records to be judged, with the run's post-processing.
      columns: by which records are shown apart; None takes `SITE_COLUMNS` where they are known.
      rate: of false alarms over the whole page.
      num_histories, seed: of the simulation, see `limits`.

    Test: tests/monitor/test_monitoring.py.
    """
    predictions, notes = found.predictions, list(found.notes)
    statistics = statistics_of(reference.predictions, predictions)
    known = values_of(statistics, reference.predictions)
    values = values_of(statistics, predictions)
    groups = group_numbers(_groups(reference.predictions))
    if (count := int(groups.max()) + 1) < FEW_GROUPS:
        notes.append(
            f"The validation records are of {count} groups; limits of fewer than {FEW_GROUPS} are "
            "too narrow, so that false alarms are more frequent than stated."
        )
    if not any(s.kind == "unlike" for s in statistics):
        notes.append("Likeness is not judged: predictions or validation records lack it.")
    everything = np.ones(len(predictions), bool)
    rows = [("", ALL, everything, np.ones(len(known), bool), f"{len(known):,} records")]
    for column in _columns(columns, predictions):
        rows += _of_column(column, predictions, reference.predictions)
    series, places = [], []
    for column, value, held, against, words in rows:
        counts = np.bincount(found.period[held], minlength=len(found.periods))
        if column and counts.max(initial=0) < SMALLEST_PERIOD:
            notes.append(f"{column} {value} has no period of {SMALLEST_PERIOD} records; not shown.")
            continue
        cells = [values[held & (found.period == t)] for t in range(len(found.periods))]
        own = np.unique(groups[against], return_inverse=True)[1].reshape(-1)
        series.append(Series(value, known[against], own, cells, SMALLEST_PERIOD))
        places.append(Place(column, value, words, counts))
    is_share = np.array([s.is_share for s in statistics])
    return Monitoring(
        reference,
        found,
        tuple(statistics),
        tuple(places),
        judge(series, is_share, rate=rate, num_histories=num_histories, seed=seed),
        {
            task: _labelled(task, reference, found, seed)
            for task in predictions.tasks
            if any(s.key == f"{task}/{LABELLED[0]}" for s in statistics)
        },
        seed,
        num_histories,
        tuple(notes),
    )


def _groups(predictions: Predictions) -> Sequence[str]:
    return predictions.group_ids or predictions.record_ids


def _columns(asked: Sequence[str] | None, predictions: Predictions) -> list[str]:
    from drifa_jax.errors import UserError

    if asked is None:
        known = predictions.attributes
        return [c for c in SITE_COLUMNS if len(set(known.get(c, ())) - {""}) > 1]
    for column in asked:
        if column not in predictions.attributes:
            listed = ", ".join(predictions.attributes) or "none"
            raise UserError(f"--by {column}: no such column of the records; they have {listed}.")
    return list(asked)


def _of_column(column: str, predictions: Predictions, reference: Predictions):
    """Each value of a column: its records, and the validation records it is held against."""
    mine = np.array(predictions.attributes[column])
    theirs = np.array(reference.attributes.get(column, ("",) * len(reference)))
    for value in sorted(set(mine) - {""}):
        own = theirs == value
        if own.sum() >= SMALLEST_REFERENCE:
            yield column, value, mine == value, own, f"its own {own.sum():,} validation records"
        else:
            everyone = np.ones(len(reference), bool)
            words = f"all {len(reference):,} validation records ({own.sum():,} are its own)"
            yield column, value, mine == value, everyone, words


def _labelled(task: str, reference: Reference, found: Monitored, seed: int) -> Labelled:
    """Accuracy, calibration error and coverage of each period with their intervals."""
    answers = found.predictions[task]
    known = answers.truth >= 0
    groups = np.array(_groups(found.predictions))
    rows = [np.flatnonzero(known & (found.period == t)) for t in range(len(found.periods))]
    figures = np.full((3, len(rows), 3), np.nan)
    for t, some in enumerate(rows):
        if len(some):
            figures[:, t] = _figures(answers.take(some), group_numbers(groups[some]), seed)
    theirs = reference.predictions[task]
    theirs = theirs.take(np.flatnonzero(theirs.truth >= 0))
    sets = reference.fitted.tasks[task].sets
    return Labelled(
        np.array([len(some) for some in rows]),
        *figures,
        tuple(float(value) for value in _values(theirs)),
        None if answers.sets is None else 1 - sets.alpha,
    )


def _values(answers: Any) -> tuple[float, float, float]:
    """Accuracy, calibration error and coverage of labelled records."""
    right = answers.probabilities.argmax(1) == answers.truth
    covered = (
        np.nan
        if answers.sets is None
        else answers.sets[np.arange(len(right)), answers.truth].mean()
    )
    error = expected_calibration_error(answers.probabilities, answers.truth)
    return float(right.mean()), float(error), float(covered)


def _figures(answers: Any, groups: np.ndarray, seed: int) -> np.ndarray:
    """`[3, 3]`: each figure with a 95 % interval over groups; shares of lone records exactly."""
    values = np.array(_values(answers))
    num_groups, count = int(groups.max()) + 1, len(groups)
    drawn = []
    for weights in resampled_weights(num_groups, NUM_RESAMPLES, seed):
        for weight in weights:
            again = np.repeat(np.arange(count), weight[groups].astype(int))
            if len(again):
                drawn.append(_values(answers.take(again)))
    low, high = np.nanquantile(np.array(drawn), [0.025, 0.975], axis=0) if drawn else (values,) * 2
    if num_groups == count:
        for place in (0, 2):
            if np.isfinite(values[place]):
                low[place], high[place] = exact_proportion(values[place], count)
    return np.stack([values, low, high], 1)


def _plain(values: Any) -> Any:
    """Nested lists of numbers, null for what is not finite."""
    if np.ndim(values):
        return [_plain(value) for value in values]
    return float(values) if np.isfinite(values) else None
