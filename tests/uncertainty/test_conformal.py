"""Claims about conformal sets: the promised coverage, by simulation, and what it costs."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.special import softmax

from drifa_jax.uncertainty.conformal import (
    ConformalSets,
    conformal_quantile,
    coverage,
    fit_conformal,
    mean_size,
    scores,
)

RAPS = dict(penalty=0.05, free_classes=1)


def draw(generator, n, k=5):
    """A network that is wrong about its own certainty: probabilities to the power of three."""
    honest = generator.dirichlet(np.full(k, 0.7), n)
    labels = (generator.random(n)[:, None] > np.cumsum(honest, 1)).sum(1).clip(max=k - 1)
    return softmax(3 * np.log(honest + 1e-9), 1), labels


@pytest.mark.parametrize("alpha", [0.05, 0.2])
@pytest.mark.parametrize("method", ["lac", "aps", "raps"])
def test_coverage_is_as_promised(method, alpha):
    """Mean coverage over 400 fits on 99 records: 1 - alpha up to 1 / 100, and no less."""
    generator = np.random.default_rng(0)
    extra = RAPS if method == "raps" else {}
    covered = []
    for _ in range(400):
        p, y = draw(generator, 99)
        fitted = fit_conformal(
            p, y, alpha=alpha, method=method, uniform=generator.random(99), **extra
        )
        p, y = draw(generator, 100)
        covered.append(coverage(fitted(p, generator.random(100)), y))
    error = 3 * np.std(covered) / math.sqrt(400)
    assert 1 - alpha - error <= np.mean(covered) <= 1 - alpha + 0.01 + error


@pytest.mark.parametrize("method", ["lac", "aps", "raps"])
def test_without_randomisation_coverage_is_not_below(method):
    generator = np.random.default_rng(1)
    extra = RAPS if method == "raps" else {}
    covered = []
    for _ in range(300):
        fitted = fit_conformal(*draw(generator, 99), alpha=0.1, method=method, **extra)
        p, y = draw(generator, 100)
        covered.append(coverage(fitted(p), y))
    assert np.mean(covered) >= 0.9 - 3 * np.std(covered) / math.sqrt(300)


def test_class_conditional_sets_keep_the_promise_in_a_rare_hard_class():
    generator = np.random.default_rng(2)

    def rare(n):
        y = (generator.random(n) < 0.15).astype(int)
        p = np.where(y == 1, generator.beta(2, 3, n), generator.beta(1, 8, n))
        return np.stack([1 - p, p], 1), y

    marginal, conditional = [], []
    for _ in range(200):
        validation, (p, y) = rare(400), rare(400)
        for result, by_class in ((marginal, False), (conditional, True)):
            sets = fit_conformal(*validation, alpha=0.1, class_conditional=by_class)(p)
            result.append(coverage(sets[y == 1], y[y == 1]))
    assert np.mean(marginal) < 0.8
    assert 0.9 - 0.01 <= np.mean(conditional) <= 0.9 + 0.03


def test_sets_grow_with_the_promise():
    generator = np.random.default_rng(3)
    validation, (p, _) = draw(generator, 500), draw(generator, 200)
    sizes = [mean_size(fit_conformal(*validation, alpha=a)(p)) for a in (0.3, 0.1, 0.02)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[2]


def test_raps_makes_sets_smaller_than_aps_where_there_are_many_classes():
    generator = np.random.default_rng(4)
    validation, (p, _) = draw(generator, 1000, k=20), draw(generator, 500, k=20)
    aps = fit_conformal(*validation, method="aps", alpha=0.05)(p)
    raps = fit_conformal(*validation, method="raps", alpha=0.05, penalty=0.1, free_classes=2)(p)
    assert raps.sum(1).max() < aps.sum(1).max()


def test_scores_of_one_record_by_hand():
    p = np.array([[0.2, 0.5, 0.3]])
    np.testing.assert_allclose(scores(p, "lac"), [[0.8, 0.5, 0.7]])
    np.testing.assert_allclose(scores(p, "aps"), [[1.0, 0.5, 0.8]])
    np.testing.assert_allclose(scores(p, "aps", uniform=np.array([0.5])), [[0.9, 0.25, 0.65]])
    np.testing.assert_allclose(scores(p, "raps", penalty=0.1, free_classes=1), [[1.2, 0.5, 0.9]])


def test_the_quantile_is_an_order_statistic():
    values = np.arange(1.0, 10.0)
    assert conformal_quantile(values, 0.1) == 9.0
    assert conformal_quantile(values, 0.5) == 5.0
    assert conformal_quantile(values, 0.05) == math.inf
    assert conformal_quantile(values[:0], 0.1) == math.inf


def test_a_class_never_seen_is_in_every_set():
    """Nothing can be promised about it, so nothing is excluded."""
    generator = np.random.default_rng(5)
    p, y = draw(generator, 200)
    fitted = fit_conformal(p, np.where(y == 3, -1, y), class_conditional=True)
    assert fitted(p)[:, 3].all()


def test_sets_survive_json():
    generator = np.random.default_rng(6)
    p, y = draw(generator, 100)
    fitted = fit_conformal(
        p, np.where(y == 3, -1, y), class_conditional=True, method="raps", **RAPS
    )
    again = ConformalSets.from_json(json.loads(json.dumps(fitted.to_json(), allow_nan=False)))
    assert again == fitted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(alpha=0.0), "alpha is 0.0"),
        (dict(alpha=1.0), "alpha is 1.0"),
        (dict(method="bayes"), "method is 'bayes'"),
        (dict(labels=np.full(3, -1)), "No record has a label"),
    ],
)
def test_bad_input_is_refused(change, message):
    good = dict(probabilities=np.full((3, 2), 0.5), labels=np.array([0, 1, 0]))
    with pytest.raises(ValueError, match=message):
        fit_conformal(**(good | change))


def test_probabilities_of_another_task_are_refused():
    fitted = fit_conformal(np.full((30, 2), 0.5), np.arange(30) % 2)
    with pytest.raises(ValueError, match="fitted for 2 classes"):
        fitted(np.full((4, 3), 1 / 3))


def test_what_are_no_sets_is_refused():
    with pytest.raises(ValueError, match="conformal"):
        ConformalSets.from_json({"method": "lac"})


def test_raps_chooses_its_penalty_on_records_that_have_no_part_in_the_thresholds():
    generator = np.random.default_rng(7)
    validation, (p, _) = draw(generator, 900, k=20), draw(generator, 500, k=20)
    fitted = fit_conformal(*validation, method="raps", alpha=0.05)
    assert fitted.penalty > 0 and fitted.free_classes >= 1 and fitted.num_records == 600
    aps = fit_conformal(*validation, method="aps", alpha=0.05)
    assert fitted(p).sum(1).max() <= aps(p).sum(1).max()


def test_chosen_raps_covers_as_promised():
    generator = np.random.default_rng(8)
    covered = []
    for _ in range(300):
        fitted = fit_conformal(*draw(generator, 150), alpha=0.1, method="raps")
        p, y = draw(generator, 100)
        covered.append(coverage(fitted(p), y))
    assert np.mean(covered) >= 0.9 - 3 * np.std(covered) / math.sqrt(300)


def test_sets_fitted_with_uniform_numbers_cannot_be_asked_for_without():
    """Coverage would be 0.80 of 0.90 promised."""
    generator = np.random.default_rng(9)
    p, y = draw(generator, 99)
    fitted = fit_conformal(p, y, method="aps", uniform=generator.random(99))
    with pytest.raises(ValueError, match="fitted with uniform numbers and need them"):
        fitted(p)
    again = ConformalSets.from_json(json.loads(json.dumps(fitted.to_json())))
    assert again.randomised and again(p, generator.random(99)).shape == p.shape
