"""Claims about out-of-distribution scores: definitions by hand, and agreement with SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import roc_curve

from drifa_jax.uncertainty import ood


def features(seed, n=400, d=6):
    """Two classes under one correlated covariance."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    mixing = np.random.default_rng(99).normal(size=(d, d))
    return generator.normal(size=(n, d)) @ mixing + 4.0 * labels[:, None], labels


def test_scores_by_hand():
    np.testing.assert_allclose(ood.max_softmax_score([[0.7, 0.3], [0.5, 0.5]]), [0.3, 0.5])
    np.testing.assert_allclose(ood.energy_score([[0.0, 0.0]]), [-np.log(2)])
    np.testing.assert_allclose(ood.energy_score([[0.0, 0.0]], 3.0), [-3 * np.log(2)])


def test_energy_tells_sizes_that_a_softmax_forgets():
    logits = np.array([[9.0, 5.0], [4.0, 0.0]])
    large, small = ood.energy_score(logits)
    assert large < small


def test_mahalanobis_agrees_with_scipy():
    x, y = features(0)
    fitted = ood.fit_mahalanobis(x, y)
    means = np.stack([x[y == k].mean(0) for k in (0, 1)])
    covariance, _ = ledoit_wolf(x - means[y], assume_centered=True)
    precision = np.linalg.inv(covariance)
    new, _ = features(1, n=20)
    expected = [min(mahalanobis(row, mean, precision) ** 2 for mean in means) for row in new]
    np.testing.assert_allclose(fitted(new), expected, rtol=1e-8)


def test_mahalanobis_of_known_features_is_about_their_number():
    fitted = ood.fit_mahalanobis(*features(2, n=4000))
    np.testing.assert_allclose(fitted(features(3, n=4000)[0]).mean(), 6, rtol=0.1)


def test_mahalanobis_finds_what_lies_off_the_plane_of_training():
    x, y = features(4)
    x = np.concatenate([x, x[:, :2] @ np.ones((2, 3))], 1)
    fitted = ood.fit_mahalanobis(x, y)
    off = x + np.concatenate([np.zeros(6), [2.0, -2.0, 0.0]])
    assert ood.detection_auroc(fitted(x), fitted(off)) > 0.99


def test_more_features_than_records_still_gives_finite_distances():
    x, y = features(5, n=10, d=40)
    fitted = ood.fit_mahalanobis(x, y)
    assert np.isfinite(fitted(features(6, n=10, d=40)[0])).all()


def test_records_without_a_label_are_left_out():
    x, y = features(7)
    gaps = np.where(np.arange(400) < 100, -1, y)
    expected = ood.fit_mahalanobis(x[100:], y[100:])
    np.testing.assert_allclose(ood.fit_mahalanobis(x, gaps)(x), expected(x))


def test_detection_figures_by_hand():
    known, foreign = np.arange(20.0), np.array([5.0, 18.0, 19.5, 30.0])
    # 95 % of the known lie at 18 or below; two of the four foreign images do too.
    assert ood.fpr_at_95_tpr(known, foreign) == 0.5
    pairs = np.mean((foreign[:, None] > known) + 0.5 * (foreign[:, None] == known))
    np.testing.assert_allclose(ood.detection_auroc(known, foreign), pairs)


def test_fpr95_agrees_with_the_roc_curve():
    generator = np.random.default_rng(0)
    known, foreign = generator.normal(size=200), generator.normal(1.0, 1.0, 300)
    # Seen from the known images: they are the positives, and low scores speak for them.
    false, true, _ = roc_curve(
        np.repeat([1, 0], [200, 300]), -np.concatenate([known, foreign]), drop_intermediate=False
    )
    np.testing.assert_allclose(ood.fpr_at_95_tpr(known, foreign), false[true >= 0.95].min())


@pytest.mark.parametrize(
    ("known", "foreign", "message"),
    [([], [1.0], "Both known and foreign"), ([1.0], [np.inf], "not finite")],
)
def test_bad_scores_are_refused(known, foreign, message):
    with pytest.raises(ValueError, match=message):
        ood.detection_auroc(known, foreign)


def test_bad_features_are_refused():
    x, y = features(8)
    with pytest.raises(ValueError, match="at least two labelled"):
        ood.fit_mahalanobis(x, np.full(400, -1))
    with pytest.raises(ValueError, match=r"expected \[n, 6\]"):
        ood.fit_mahalanobis(x, y)(x[:, :3])
