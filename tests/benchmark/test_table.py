"""Differences over folds, against formulas written out."""

import math

import numpy as np
import pytest
from scipy import stats

from drifa_jax.benchmark.table import difference

OURS, THEIRS = [0.9, 0.8, 0.85, 0.95], [0.8, 0.81, 0.8, 0.84]


def test_without_shared_training_records_it_is_the_paired_t_test():
    found = difference(OURS, THEIRS, 0.0)
    expected = stats.ttest_rel(OURS, THEIRS)
    interval = expected.confidence_interval(0.95)
    assert found["p"] == pytest.approx(expected.pvalue)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))


def test_shared_training_records_widen_the_interval_as_nadeau_and_bengio_say():
    plain, corrected = difference(OURS, THEIRS, 0.0), difference(OURS, THEIRS, 0.25)
    assert corrected["difference"] == plain["difference"] == pytest.approx(0.0625)
    widened = math.sqrt((1 / 4 + 0.25) / (1 / 4))
    reach = plain["high"] - plain["difference"]
    assert corrected["high"] - corrected["difference"] == pytest.approx(reach * widened)


def test_a_single_fold_has_no_interval():
    assert difference([0.9], [0.8], 0.25)["low"] is None


def test_equal_methods_have_no_p():
    found = difference(OURS, OURS, 0.25)
    assert found["p"] is None and np.isclose(found["low"], 0)
