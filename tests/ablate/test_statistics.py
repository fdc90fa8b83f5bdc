import numpy as np
import pytest
from sklearn import metrics

from drifa_jax.ablate.scores import Scores
from drifa_jax.ablate.statistics import (
    aligned,
    draws,
    interval,
    permutation_p,
)


def scores(right, *, labels=None, groups=None, num_classes=2):
    """Scores that call the true class where `right`."""
    right = np.asarray(right, bool)
    labels = np.arange(len(right)) % num_classes if labels is None else np.asarray(labels)
    called = np.where(right, labels, (labels + 1) % num_classes)
    ids = np.array([f"r{i:04d}" for i in range(len(right))])
    return Scores(
        ids,
        ids if groups is None else np.asarray(groups, str),
        labels.astype(np.int32),
        0.8 * np.eye(num_classes, dtype=np.float32)[called] + 0.2 / num_classes,
    )


def test_metrics_on_all_records_are_those_of_scikit_learn():
    draw = np.random.default_rng(0)
    labels = draw.integers(3, size=80)
    # Rounded, so that there are ties.
    probabilities = np.round(draw.dirichlet(np.ones(3), 80), 1).astype(np.float32)
    one = Scores(np.arange(80).astype(str), np.arange(80).astype(str), labels, probabilities)
    found = draws([one], num_resamples=2).per_seed
    called = probabilities.argmax(-1)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, called))
    assert found["balanced_accuracy"] == pytest.approx(
        metrics.balanced_accuracy_score(labels, called)
    )
    areas = [metrics.roc_auc_score(labels == k, probabilities[:, k]) for k in range(3)]
    assert found["auroc"] == pytest.approx(np.mean(areas))


def test_large_groups_widen_the_interval():
    """Twenty images of a patient that are right or wrong together are one piece of evidence."""
    right = np.repeat(np.random.default_rng(0).random(20) < 0.7, 20)
    labels = np.repeat(np.arange(20) % 2, 20)
    alone = draws([scores(right, labels=labels)])
    together = draws([scores(right, labels=labels, groups=np.repeat(np.arange(20), 20))])
    width = [np.diff(interval(of.replicates["accuracy"]))[0] for of in (alone, together)]
    # The theory says sqrt(20) = 4.5.
    assert 3 < width[1] / width[0] < 6


def test_seeds_that_disagree_widen_the_interval():
    draw = np.random.default_rng(0)
    equal = [scores(draw.random(400) < 0.7) for _ in range(4)]
    apart = [scores(draw.random(400) < share) for share in (0.5, 0.6, 0.8, 0.9)]
    width = [np.diff(interval(draws(of).replicates["accuracy"]))[0] for of in (equal, apart)]
    assert width[1] > 3 * width[0]
    assert draws(apart).deviation("accuracy") > 0.1
    assert draws(apart[:1]).deviation("accuracy") is None


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    draw = np.random.default_rng(0)
    covered = 0
    for study in range(200):
        low, high = interval(
            draws([scores(draw.random(100) < 0.7)], num_resamples=400, seed=study).replicates[
                "accuracy"
            ]
        )
        covered += low <= 0.7 <= high
    # 95% of 200, less three standard deviations.
    assert covered >= 180


def test_permutation_p_is_small_for_a_real_difference_and_uniform_for_none():
    draw = np.random.default_rng(0)
    assert permutation_p([scores(draw.random(200) < 0.9)], [scores(draw.random(200) < 0.6)]) < 0.001
    p = [
        permutation_p(
            [scores(draw.random(60) < 0.7)], [scores(draw.random(60) < 0.7)], num=400, seed=seed
        )
        for seed in range(200)
    ]
    # A test at 5% may reject 10 of 200, plus three standard deviations.
    assert np.mean(np.array(p) <= 0.05) <= 0.1
    same = [scores(draw.random(50) < 0.7)]
    assert permutation_p(same, same) == 1.0


def test_a_class_without_test_records_leaves_auroc_undefined_and_the_rest_defined():
    one_class = draws([scores([True, False, True], labels=[0, 0, 0])], num_resamples=5)
    assert np.isnan(one_class.per_seed["auroc"]).all()
    assert one_class.mean("balanced_accuracy") == pytest.approx(2 / 3)


def test_seeds_of_different_records_are_refused():
    with pytest.raises(ValueError, match="different records"):
        aligned([scores([True, False]), scores([True, False, True])])
    with pytest.raises(ValueError, match="different records"):
        permutation_p([scores([True, False])], [scores([True, False, True])])
