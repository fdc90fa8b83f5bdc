"""Records out of distribution: p-values mean what they say, and far records get small ones."""

from __future__ import annotations

import numpy as np
import pytest

from drifa_jax.post_processing.out_of_distribution import (
    FLAGGED_BELOW,
    DistanceDetector,
    fit_detector,
)


def drawn(count, seed, num_members=2, width=12):
    """Correlated features of two members, and who holds what: one record in four lacks ct."""
    draw = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(num_members, width, width))
    features = np.einsum("nd,edf->enf", draw.normal(size=(count, width)), mixing)
    present = {"mri": np.ones(count, bool), "ct": np.arange(count) % 4 > 0}
    features[:, ~present["ct"], width // 2 :] = 0
    return features, present


def test_known_records_are_rarely_flagged():
    """Over 40 validation sets of 60 records, 200 fresh records each."""
    shares = []
    for seed in range(40):
        detector = fit_detector(*drawn(60, seed))
        shares.append(detector(drawn(200, 1000 + seed)[0]).flagged.mean())
    # The standard error over the sets is below 0.01.
    assert np.mean(shares) < FLAGGED_BELOW + 0.02
    assert np.mean(shares) > 0.01


def test_records_seen_in_the_fit_get_no_better_distances_than_fresh_ones():
    """The point of leaving parts out: without it, known distances are about two thirds as large."""
    detector = fit_detector(*drawn(60, 0))
    fresh = detector(drawn(4000, 1)[0]).distance
    assert np.median(detector.known) == pytest.approx(np.median(fresh), rel=0.35)


def of_patients(num_patients, seed, slices=12, width=12):
    """Slices that resemble those of the same patient more than anyone else's."""
    draw = np.random.default_rng(seed)
    patients = draw.normal(size=(num_patients, 1, width))
    features = patients + 0.3 * draw.normal(size=(num_patients, slices, width))
    names = [(f"ct:{k}", f"mri:{k}-{s}") for k in range(num_patients) for s in range(slices)]
    return features.reshape(1, -1, width), {"ct": np.ones(len(names), bool)}, names


def test_slices_of_new_patients_are_rarely_flagged():
    """Leaving out slices instead of patients would call every third new patient's foreign."""
    by_patient, by_slice = [], []
    for seed in range(20):
        features, present, names = of_patients(30, seed)
        fresh = of_patients(30, 1000 + seed)[0]
        by_patient.append(fit_detector(features, present, names)(fresh).flagged.mean())
        by_slice.append(fit_detector(features, present)(fresh).flagged.mean())
    assert np.mean(by_patient) < FLAGGED_BELOW + 0.03
    assert np.mean(by_slice) > 4 * FLAGGED_BELOW


def test_one_patient_alone_has_no_detector():
    features, present, names = of_patients(1, 0, slices=40)
    assert fit_detector(features, present, names) is None


def test_far_records_are_flagged():
    detector = fit_detector(*drawn(60, 0))
    features, _ = drawn(20, 1)
    scores = detector(features + 30)
    assert scores.flagged.all() and (scores.p_value == 1 / 61).all()
    assert (scores.distance > 10).all()


def test_a_detector_survives_being_saved():
    detector = fit_detector(*drawn(60, 0))
    again = DistanceDetector.from_arrays(detector.to_arrays())
    features, _ = drawn(20, 1)
    np.testing.assert_allclose(again(features).distance, detector(features).distance, rtol=1e-4)


def test_few_records_have_no_detector():
    assert fit_detector(*drawn(19, 0)) is None


def test_another_number_of_members_is_refused():
    with pytest.raises(ValueError, match="2 distances but 1 members"):
        fit_detector(*drawn(60, 0))(drawn(5, 1)[0][:1])
