"""Claims about the uncertainty measures: their order, their limits, and an independent library."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from drifa_jax.uncertainty import measures
from drifa_jax.uncertainty.mc_dropout import Moments

ROUNDING = 1e-12


def draw(seed, shape=(3, 7, 50, 4), concentration=None):
    """Samples `[e, s, b, k]`, from nearly certain to nearly uniform."""
    generator = np.random.default_rng(seed)
    concentration = concentration or 10 ** generator.uniform(-1.5, 1.5)
    return generator.dirichlet(np.full(shape[-1], concentration), shape[:-1])


@pytest.mark.parametrize("seed", range(10))
def test_information_entropy_and_log_k_are_in_order(seed):
    u = measures.from_samples(draw(seed))
    assert (u.mutual_information >= 0).all()
    assert (u.mutual_information <= u.predictive_entropy + ROUNDING).all()
    assert (u.predictive_entropy <= np.log(4) + ROUNDING).all()


@pytest.mark.parametrize("seed", range(10))
def test_total_uncertainty_is_aleatoric_plus_epistemic(seed):
    u = measures.from_samples(draw(seed))
    np.testing.assert_allclose(
        u.predictive_entropy, u.expected_entropy + u.mutual_information, atol=ROUNDING
    )


@pytest.mark.parametrize("seed", range(3))
def test_every_measure_stays_in_its_range(seed):
    u = measures.from_samples(draw(seed))
    for name in ("normalised_entropy", "normalised_mutual_information", "margin", "confidence"):
        value = getattr(u, name)
        assert (value >= 0).all() and (value <= 1 + ROUNDING).all(), name
    assert (u.predictive_variance >= 0).all() and (u.predictive_variance < 1).all()
    assert (u.variation_ratio >= 0).all() and (u.variation_ratio <= 0.75).all()


def test_entropies_agree_with_scipy():
    samples = draw(0)
    np.testing.assert_allclose(
        measures.expected_entropy(samples),
        scipy.stats.entropy(samples, axis=-1).mean((0, 1)),
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        measures.predictive_entropy(samples),
        scipy.stats.entropy(samples.mean((0, 1)), axis=-1),
        rtol=1e-12,
    )


def test_mutual_information_is_the_mean_divergence_from_the_mean():
    samples = draw(1)
    mean = samples.mean((0, 1))
    divergence = scipy.stats.entropy(samples, np.broadcast_to(mean, samples.shape), axis=-1)
    np.testing.assert_allclose(
        measures.mutual_information(samples), divergence.mean((0, 1)), atol=1e-12
    )


def test_samples_that_agree_hold_no_epistemic_uncertainty():
    samples = np.broadcast_to(draw(2, (1, 1, 9, 3)), (2, 5, 9, 3))
    u = measures.from_samples(samples)
    for name in ("mutual_information", "predictive_variance", "variation_ratio"):
        np.testing.assert_allclose(getattr(u, name), 0.0, atol=ROUNDING)
    assert (u.expected_entropy > 1e-3).all()


def test_certain_samples_that_disagree_hold_only_epistemic_uncertainty():
    samples = np.eye(2)[[0, 1, 0, 1]].reshape(2, 2, 1, 2)
    u = measures.from_samples(samples)
    assert u.expected_entropy == 0.0
    np.testing.assert_allclose(u.mutual_information, np.log(2))
    np.testing.assert_allclose(u.variation_ratio, 0.5)
    np.testing.assert_allclose(u.predictive_variance, 0.5)
    np.testing.assert_allclose(u.normalised_mutual_information, 1.0)


def test_variation_ratio_counts_votes_and_margin_the_two_best():
    votes = np.array([0, 0, 0, 2, 1])
    samples = (0.1 + 0.7 * np.eye(3)[votes]).reshape(1, 5, 1, 3)
    u = measures.from_samples(samples)
    np.testing.assert_allclose(u.variation_ratio, 0.4)
    np.testing.assert_allclose(u.margin, 0.7 * 3 / 5 - 0.7 / 5)


def test_the_order_of_members_and_samples_does_not_matter():
    samples = draw(3)
    flat = samples.reshape(21, 50, 4)[np.random.default_rng(0).permutation(21)]
    expected = measures.from_samples(samples).measures()
    for name, value in measures.from_samples(flat.reshape(7, 3, 50, 4)).measures().items():
        np.testing.assert_allclose(value, expected[name], atol=ROUNDING, err_msg=name)


def test_moments_give_the_measures_of_the_samples():
    samples = draw(4)
    votes = np.eye(4)[samples.argmax(-1)].sum(1)
    moments = Moments(
        np.full(3, 7),
        samples.sum(1),
        (samples**2).sum(1),
        scipy.stats.entropy(samples, axis=-1).sum(1),
        votes,
    )
    expected = measures.from_samples(samples).measures()
    for name, value in measures.from_moments(moments).measures().items():
        np.testing.assert_allclose(value, expected[name], atol=ROUNDING, err_msg=name)


def test_functions_agree_with_the_whole():
    samples = draw(5)
    u = measures.from_samples(samples)
    for name in (
        "predictive_entropy",
        "expected_entropy",
        "mutual_information",
        "predictive_variance",
        "variation_ratio",
    ):
        np.testing.assert_allclose(getattr(measures, name)(samples), getattr(u, name), atol=1e-12)
    np.testing.assert_array_equal(measures.predictive_mean(samples), u.probabilities)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.ones((2, 3)), r"axes \[e, s, b, k\]"),
        (np.ones((0, 3, 2, 2)), "no sample"),
        (np.ones((2, 0, 2, 2)), "no sample"),
        (np.ones((1, 1, 2, 1)), "two classes"),
        (np.array([[[[0.5, 0.5], [np.nan, 0.5]]]]), r"records \[1\] are not finite"),
        (np.full((1, 1, 1, 2), 0.6), "add up to 1"),
        (np.array([[[[-0.5, 1.5]]]]), "at least 0"),
    ],
    ids=["axes", "no member", "no sample", "one class", "nan", "sum", "negative"],
)
def test_what_is_no_sample_is_refused(samples, message):
    with pytest.raises(ValueError, match=message):
        measures.from_samples(samples)
