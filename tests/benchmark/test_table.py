"""Differences over folds, against formulas written out."""

import math

import numpy as np
import pytest
from scipy import stats

from drifa_jax.benchmark.running import COMPLETE, Answers
from drifa_jax.benchmark.table import difference, subgroups_of

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


def test_a_subgroup_is_measured_on_its_records_of_all_folds_and_a_small_one_is_not():
    draw = np.random.default_rng(0)
    folds = []
    for fold in range(2):
        labels = np.arange(60) % 2
        p = np.full((2, 60, 2), 0.5, np.float32)
        p[:, :25, 1] = np.where(labels[:25] == 1, 0.8, 0.2)  # women are told apart
        p[:, 25:50, 1] = draw.uniform(0.4, 0.6, 25)  # men are not
        p[..., 0] = 1 - p[..., 1]
        sex = ["female"] * 25 + ["male"] * 25 + ["other"] * 10
        groups = tuple(f"{fold}-{k}" if k < 50 else f"rare-{k % 5}" for k in range(60))
        ids = tuple(f"{fold}-{k}" for k in range(60))
        folds.append(Answers(ids, groups, labels, {COMPLETE: p}, {}, {"sex": sex}))
    female, male, other = subgroups_of(folds)["sex"]
    assert (female["name"], female["num_records"]) == ("female", 50)
    assert female["figures"]["auroc"] == 1.0 and male["figures"]["auroc"] < 0.8
    assert other["figures"] is None and other["num_records"] is None
