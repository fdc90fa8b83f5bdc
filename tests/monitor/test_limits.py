"""One threshold for a whole page, which holds its rate of false alarms and sees shifts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from drifa_jax.monitor.limits import Series, judge

IS_SHARE = np.array([True, True, False, False])


def records(draw: np.random.Generator, count: int, *, shift: float = 0.0, size: int = 1):
    """A usual share, a rare one, a number, and a number that half of the records lack."""
    own, shared = draw.normal(size=count), draw.normal(size=count // size + 1)
    number = own + shared[np.arange(count) // size] * (size > 1) + shift
    lacking = np.where(draw.random(count) < 0.5, np.nan, number**2)
    return np.stack([number > 1, draw.random(count) < 0.01, number, lacking], 1).astype(float)


def judged(values, periods, groups=None, **options):
    groups = np.arange(len(values)) if groups is None else groups
    return judge([Series("all", values, groups, periods)], IS_SHARE, **options)


@pytest.mark.parametrize(("size", "num_groups"), [(1, 120), (4, 60)])
def test_pages_without_a_shift_alarm_at_the_stated_rate(size, num_groups):
    """20 % is stated, so that 150 histories tell it from 10 % and from 30 %."""
    draw = np.random.default_rng(0)
    hits = 0
    for history in range(150):
        known = records(draw, size * num_groups, size=size)
        periods = [records(draw, 40, size=size) for _ in range(4)]
        groups = np.arange(len(known)) // size
        found = judged(known, periods, groups, rate=0.2, num_histories=200, seed=history)
        hits += bool(found.series[0].alarm.any())
    assert binomtest(hits, 150, 0.2).pvalue > 0.01


def test_a_shift_alarms_in_its_period_and_by_its_statistic():
    draw = np.random.default_rng(0)
    periods = [records(draw, 60, shift=shift) for shift in (0, 0, 1.5)]
    found = judged(records(draw, 200), periods).series[0]
    assert found.alarm[2, 2] and not found.alarm[:2].any() and not found.alarm[:, 1].any()
    np.testing.assert_array_equal(found.alarm, np.abs(found.mean - found.reference) > found.reach)


def test_what_validation_never_showed_is_no_alarm_when_it_is_seen_once():
    draw = np.random.default_rng(0)
    known = records(draw, 200)
    known[:, 1] = 0
    once, often = records(draw, 100), records(draw, 100)
    once[:, 1], often[:, 1] = np.arange(100) < 1, np.arange(100) < 15
    alarm = judged(known, [once, often]).series[0].alarm
    assert not alarm[0, 1] and alarm[1, 1]


def test_a_number_that_never_varies_alarms_only_when_it_does():
    known, period = np.ones((80, 4)), np.ones((30, 4))
    assert not judged(known, [period]).series[0].alarm.any()
    assert judged(known, [period + 1]).series[0].alarm[0, 2]


def test_cells_without_a_value_are_not_judged():
    draw = np.random.default_rng(0)
    unlabelled = records(draw, 50)
    unlabelled[:, 3] = np.nan
    found = judged(records(draw, 100), [unlabelled, unlabelled[:0]])
    assert np.isnan(found.series[0].z[0, 3]) and np.isnan(found.series[0].z[1]).all()
    assert found.num_cells == 3 and not found.series[0].alarm[1].any()


def test_records_of_few_patients_widen_the_limits():
    draw = np.random.default_rng(0)
    known = records(draw, 240, size=6)
    periods = [records(draw, 60, size=6)]
    alone = judged(known, periods).series[0].reach[0, 2]
    assert judged(known, periods, np.arange(240) // 6).series[0].reach[0, 2] > 1.3 * alone


def test_the_same_seed_is_the_same_page():
    draw = np.random.default_rng(0)
    known, periods = records(draw, 100), [records(draw, 30)]
    first, again = (judged(known, periods, seed=3) for _ in range(2))
    assert first.threshold == again.threshold
