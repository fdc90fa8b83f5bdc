"""Claims about referral: curves by hand, areas by theory, thresholds that stay frozen."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import precision_score, recall_score, roc_auc_score

from drifa_jax.uncertainty import selective


def draw(seed, n=300, ties=False):
    generator = np.random.default_rng(seed)
    uncertainty = generator.random(n)
    wrong = generator.random(n) < 0.5 * uncertainty
    return (np.round(uncertainty, 1) if ties else uncertainty), wrong


def test_the_curve_of_four_records_by_hand():
    curve = selective.risk_coverage([0.4, 0.1, 0.3, 0.2], [1, 0, 0, 1])
    np.testing.assert_allclose(curve.coverage, [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(curve.risk, [0, 1 / 2, 1 / 3, 2 / 4])
    np.testing.assert_allclose(curve.generalised_risk, [0, 1 / 4, 1 / 4, 2 / 4])
    np.testing.assert_allclose(
        selective.aurc([0.4, 0.1, 0.3, 0.2], [1, 0, 0, 1]), (0 + 1 / 2 + 1 / 3 + 1 / 2) / 4
    )


def test_equally_uncertain_records_stay_together():
    curve = selective.risk_coverage([0.1, 0.1, 0.5, 0.5], [1, 0, 1, 1])
    np.testing.assert_allclose(curve.coverage, [0.5, 1.0])
    np.testing.assert_allclose(curve.risk, [0.5, 0.75])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_augrc_is_the_area_that_error_detection_predicts(seed, ties):
    """Traub et al., 2024: `(1 - AUROC) a r + r^2 / 2`, exactly."""
    u, w = draw(seed, ties=ties)
    r = w.mean()
    expected = (1 - roc_auc_score(w, u)) * (1 - r) * r + r**2 / 2
    np.testing.assert_allclose(selective.augrc(u, w), expected, rtol=1e-9)


def test_tied_records_count_as_in_random_order():
    u, w = draw(0, n=40, ties=True)
    generator = np.random.default_rng(0)
    # Breaking ties at random is what the expectation averages over.
    areas = [selective.aurc(u + 1e-6 * generator.random(40), w) for _ in range(3000)]
    np.testing.assert_allclose(
        selective.aurc(u, w), np.mean(areas), atol=4 * np.std(areas) / np.sqrt(3000)
    )


def test_an_oracle_has_no_excess_and_nobody_is_better():
    u, w = draw(1)
    np.testing.assert_allclose(selective.excess_aurc(w.astype(float), w), 0.0, atol=1e-12)
    assert 0 < selective.excess_aurc(u, w) < selective.excess_aurc(-u, w)


def test_constant_uncertainty_leaves_the_risk_at_the_error():
    _, w = draw(2)
    np.testing.assert_allclose(selective.aurc(np.zeros(300), w), w.mean())


def test_error_detection_is_undefined_without_errors():
    assert selective.error_detection_auroc([0.1, 0.2], [0, 0]) is None
    assert selective.error_detection_auroc([0.1, 0.2], [1, 1]) is None
    assert selective.error_detection_auroc([0.1, 0.2], [0, 1]) == 1.0


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.999, 1.0])
def test_a_threshold_refers_at_most_its_share(share, ties):
    u, w = draw(3, ties=ties)
    result = selective.refer(u, w, selective.referral_threshold(u, share))
    assert result.referred <= share
    if not ties:
        np.testing.assert_allclose(result.referred, np.floor(share * 300) / 300)


def test_referral_by_hand():
    u, w = np.arange(10.0), np.array([0, 0, 0, 0, 1, 0, 0, 0, 1, 1])
    result = selective.refer(u, w, selective.referral_threshold(u, 0.2))
    assert result.threshold == 7.0
    np.testing.assert_allclose(
        [result.referred, result.error_before, result.error_after, result.errors_caught],
        [0.2, 0.3, 1 / 8, 2 / 3],
    )


def test_what_cannot_be_counted_is_none():
    result = selective.refer([1.0, 2.0], [0, 0], -np.inf)
    assert result.error_after is None and result.errors_caught is None
    table = selective.certainty_table([1.0, 2.0], [0, 0], 5.0)
    assert table.sensitivity is None and table.precision is None


def test_the_certainty_table_agrees_with_scikit_learn():
    u, w = draw(4)
    table = selective.certainty_table(u, w, 0.6)
    uncertain = u > 0.6
    np.testing.assert_allclose(table.sensitivity, recall_score(w, uncertain))
    np.testing.assert_allclose(table.specificity, recall_score(~w, ~uncertain))
    np.testing.assert_allclose(table.precision, precision_score(w, uncertain))
    np.testing.assert_allclose(table.accuracy, np.mean(w == uncertain))


@pytest.mark.parametrize(
    ("uncertainty", "wrong", "message"),
    [
        ([], [], "no record"),
        ([np.nan], [1], "not finite"),
        ([0.1, 0.2], [1], r"both be \[n\]"),
    ],
)
def test_bad_input_is_refused(uncertainty, wrong, message):
    with pytest.raises(ValueError, match=message):
        selective.aurc(uncertainty, wrong)


def test_an_impossible_share_is_refused():
    with pytest.raises(ValueError, match=r"share is 1\.5"):
        selective.referral_threshold([0.1], 1.5)
