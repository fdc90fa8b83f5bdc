"""What would be said without a modality: that modality decides nothing, the masks are the same."""

from __future__ import annotations

import numpy as np

from drifa_jax.explain.without import without_each


def test_each_answer_is_that_to_the_record_without_the_modality(predictor, records):
    pixels = {m: x[:1] for m, x in records[0].items()}
    present = {m: np.ones(1, bool) for m in pixels}
    found = without_each(predictor, "a", pixels, present)
    assert set(found) == {"mri", "ct"}
    # Whatever the absent image shows, the answer is the same.
    changed = pixels | {"mri": 255 - pixels["mri"]}
    again = without_each(predictor, "a", changed, present)
    first, second = found["mri"]["lesion"], again["mri"]["lesion"]
    np.testing.assert_array_equal(first.probabilities, second.probabilities)
    assert (found["ct"]["lesion"].probabilities != again["ct"]["lesion"].probabilities).any()


def test_nothing_can_be_taken_from_a_record_of_one_modality(predictor, records):
    pixels = {m: x[:1] for m, x in records[0].items()}
    present = {"mri": np.ones(1, bool), "ct": np.zeros(1, bool)}
    assert without_each(predictor, "a", pixels, present) == {}
