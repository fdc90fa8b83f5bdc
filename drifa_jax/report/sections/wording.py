"""Words that several sections share."""

from __future__ import annotations

from drifa_jax.evaluate.evaluated import Evaluated
from drifa_jax.evaluate.evaluation import TaskEvaluation
from drifa_jax.evaluate.intervals import Interval
from drifa_jax.report.blocks import (
    Number,
    figure,
    interval_text,
)


def described_records(evaluated: Evaluated, found: TaskEvaluation) -> str:
    count = f"{found.metrics.num_records:,} labelled test records"
    if evaluated.data.leakage.single_groups:
        return f"{count}, each its own group"
    return f"{count} of {found.metrics.num_groups:,} {groups(evaluated)}"


def groups(evaluated: Evaluated) -> str:
    """What a group is called: they are patients only where someone said so."""
    return "records" if evaluated.data.leakage.single_groups else "groups (patients, lesions)"


def calibrated(evaluated: Evaluated) -> str:
    methods = {t.answer.calibration for t in evaluated.tasks.values()}
    named = sorted(methods - {"none"})
    return f"calibrated by {' and '.join(named)}" if named else "uncalibrated"


def several(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count != 1)


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:,.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def number(label: str, interval: Interval) -> Number:
    return Number(label, figure(interval.value), interval_text(interval), bar(interval))


def bar(interval: Interval) -> tuple[float, float, float] | None:
    if interval.low is None or not 0 <= interval.low <= interval.high <= 1:
        return None
    return interval.low, interval.value, interval.high
