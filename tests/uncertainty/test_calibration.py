"""Claims about calibration: errors, as simulation and scikit-learn have them, and their cures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss, log_loss

from drifa_jax.uncertainty.calibration import (
    METHODS,
    Calibrator,
    brier_score,
    calibration_metrics,
    classwise_calibration_error,
    expected_calibration_error,
    fit_calibrator,
    negative_log_likelihood,
    reliability,
)


def draw(seed, n=20_000, k=4, sharpening=1.0):
    """Probabilities, and labels that come true with them raised to `1 / sharpening`."""
    generator = np.random.default_rng(seed)
    honest = generator.dirichlet(np.full(k, 0.6), n)
    labels = (generator.random(n)[:, None] > np.cumsum(honest, 1)).sum(1).clip(max=k - 1)
    return softmax(sharpening * np.log(honest), 1), labels


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_honest_probabilities_have_little_calibration_error(binning):
    p, y = draw(0)
    assert expected_calibration_error(p, y, binning=binning) < 0.015
    assert classwise_calibration_error(p, y, binning=binning) < 0.015


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_overconfidence_shows_as_its_gap(binning):
    generator = np.random.default_rng(1)
    right = generator.random(20_000) < 0.7
    p = np.tile([0.9, 0.1], (20_000, 1))
    error = expected_calibration_error(p, np.where(right, 0, 1), binning=binning, num_bins=10)
    if binning == "width":
        np.testing.assert_allclose(error, 0.9 - right.mean(), rtol=1e-9)
    # Equal-mass bins add the chance of each bin's own share of right records.
    np.testing.assert_allclose(error, 0.2, atol=0.02)


@pytest.mark.parametrize(("binning", "strategy"), [("width", "uniform"), ("mass", "quantile")])
def test_the_curve_of_two_classes_is_that_of_scikit_learn(binning, strategy):
    """Confidences from 0.5 on; scikit-learn bins the same numbers as a class's probability."""
    p, y = draw(2, n=3_000, k=2)
    confidence, right = p.max(1), p.argmax(1) == y
    expected = calibration_curve(right, confidence, n_bins=10, strategy=strategy)
    curve = reliability(p, y, num_bins=10, binning=binning)
    np.testing.assert_allclose(curve.accuracy, expected[0], atol=0.01 * (binning == "mass") + 1e-9)
    np.testing.assert_allclose(
        curve.confidence, expected[1], atol=0.003 * (binning == "mass") + 1e-9
    )
    assert curve.count.sum() == 3_000


def test_scores_agree_with_scikit_learn():
    p, y = draw(3, n=500)
    np.testing.assert_allclose(negative_log_likelihood(p, y), log_loss(y, p), rtol=1e-9)
    two, z = draw(4, n=500, k=2)
    np.testing.assert_allclose(brier_score(two, z), 2 * brier_score_loss(z, two[:, 1]), rtol=1e-9)


def test_records_without_a_label_do_not_count():
    p, y = draw(5, n=300)
    gaps = np.where(np.arange(300) % 3 == 0, -1, y)
    assert calibration_metrics(p, gaps) == calibration_metrics(p[gaps >= 0], y[gaps >= 0])


@pytest.mark.parametrize("method", ["temperature", "vector", "isotonic"])
@pytest.mark.parametrize("sharpening", [0.5, 2.5])
def test_calibration_mends_new_records(method, sharpening):
    calibrator = fit_calibrator(method, *draw(6, sharpening=sharpening))
    p, y = draw(7, sharpening=sharpening)
    mended = calibrator(p)
    np.testing.assert_allclose(mended.sum(1), 1.0, rtol=1e-9)
    before = expected_calibration_error(p, y)
    assert before > 0.08
    # Isotonic curves see one class at a time, so they cannot undo a softmax exactly.
    share_left = 0.25 if method == "isotonic" else 0.1
    assert expected_calibration_error(mended, y) < share_left * before
    assert negative_log_likelihood(mended, y) < negative_log_likelihood(p, y)


@pytest.mark.parametrize("sharpening", [0.5, 2.5])
def test_the_temperature_is_that_which_sharpened(sharpening):
    found = fit_calibrator("temperature", *draw(8, sharpening=sharpening)).constants
    np.testing.assert_allclose(found["temperature"], sharpening, rtol=0.03)


def test_the_temperature_has_the_best_likelihood():
    p, y = draw(9, n=400, sharpening=3.0)
    found = fit_calibrator("temperature", p, y).constants["temperature"]

    def loss(temperature):
        return -log_softmax(np.log(p) / temperature, 1)[np.arange(400), y].mean()

    assert loss(found) <= min(loss(t) for t in np.geomspace(0.1, 20, 500)) + 1e-9


def test_a_temperature_never_changes_the_prediction():
    for seed in range(5):
        p, y = draw(10 + seed, n=200, sharpening=2.0)
        mended = fit_calibrator("temperature", p, y)(p)
        np.testing.assert_array_equal(mended.argmax(1), p.argmax(1))


def test_vector_scaling_finds_the_shift_of_a_class():
    p, y = draw(11)
    shifted = softmax(np.log(p) + np.array([0.0, 1.0, 0.0, -1.0]), 1)
    found = fit_calibrator("vector", shifted, y).constants
    shift = np.array(found["shift"]) - np.mean(found["shift"])
    np.testing.assert_allclose(shift, [0, -1, 0, 1], atol=0.1)
    np.testing.assert_allclose(found["scale"], 1.0, atol=0.1)


def test_isotonic_curves_are_those_of_scikit_learn():
    p, y = draw(12, n=400, k=2, sharpening=2.0)
    raw = [
        IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        .fit(p[:, k], y == k)
        .predict(p[:, k])
        for k in range(2)
    ]
    expected = np.stack(raw, 1) / np.sum(raw, 0)[:, None]
    np.testing.assert_allclose(fit_calibrator("isotonic", p, y)(p), expected, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_calibrator_survives_json(method):
    p, y = draw(13, n=200, sharpening=2.0)
    calibrator = fit_calibrator(method, p, y)
    again = Calibrator.from_json(json.loads(json.dumps(calibrator.to_json())))
    np.testing.assert_array_equal(again(p), calibrator(p))


@pytest.mark.parametrize("method", METHODS)
def test_certain_predictions_stay_probabilities(method):
    p, y = np.eye(3)[[0, 1, 2, 0]], np.array([0, 1, 2, 1])
    mended = fit_calibrator(method, p, y)(p)
    assert np.isfinite(mended).all()
    np.testing.assert_allclose(mended.sum(1), 1.0)


def test_a_validation_split_of_one_class_is_refused():
    p, _ = draw(14, n=10)
    with pytest.raises(ValueError, match="of class 2; a calibration needs two classes"):
        fit_calibrator("temperature", p, np.full(10, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(labels=np.full(3, -1)), "No record has a label"),
        (dict(labels=np.array([0, 1, 2])), "there are 2 classes"),
        (dict(probabilities=np.array([[0.5, 0.5], [np.nan, 1], [1, 0]])), "not finite"),
        (dict(labels=np.zeros(2, int)), r"\[n, k\] and \[n\]"),
        (dict(num_bins=0), "num_bins is 0"),
        (dict(binning="depth"), "binning is 'depth'"),
    ],
    ids=["no label", "label", "nan", "shape", "bins", "binning"],
)
def test_bad_input_is_refused(change, message):
    good = dict(probabilities=np.full((3, 2), 0.5), labels=np.array([0, 1, 0]))
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(**(good | change))


@pytest.mark.parametrize("values", [{}, {"method": "x"}, {"method": "vector", "constants": {}}])
def test_what_is_no_calibration_is_refused(values):
    with pytest.raises(ValueError, match="calibration"):
        Calibrator.from_json(values)


def test_few_records_pull_the_fit_towards_no_change():
    """All right at 0.7: likelihood alone would make them certain."""
    p = np.tile([[0.7, 0.3], [0.3, 0.7]], (5, 1))
    mended = fit_calibrator("temperature", p, np.arange(10) % 2)(p)
    assert 0.7 < mended.max() < 0.9
    many = np.tile(p, (40, 1))
    assert fit_calibrator("temperature", many, np.arange(400) % 2)(many).max() > 0.999
