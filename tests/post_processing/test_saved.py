"""Post-processing: honest about few records, and never that of other weights or changed values."""

from __future__ import annotations

import json

import numpy as np
import pytest

from drifa_jax.digests import sha256
from drifa_jax.errors import UserError
from drifa_jax.post_processing import saved
from drifa_jax.post_processing.task import PostProcessingOptions, fit_task
from drifa_jax.uncertainty.measures import from_samples

CLASSES = {"tumour": ("no", "yes", "late")}


def drawn(count, seed=0, signal=1.0, num_classes=3):
    draw = np.random.default_rng(seed)
    y = draw.integers(0, num_classes, count)
    logits = signal * np.eye(num_classes)[y] + draw.normal(size=(1, 4, count, num_classes))
    p = np.exp(logits)
    return from_samples(p / p.sum(-1, keepdims=True)), y


def fitted(count=80, identity="one"):
    uncertainty, y = drawn(count)
    draw = np.random.default_rng(1)
    return saved.fit(
        {"tumour": uncertainty},
        {"tumour": y},
        CLASSES,
        draw.normal(size=(2, count, 6)),
        {"mri": np.ones(count, bool)},
        [(f"r{i}",) for i in range(count)],
        PostProcessingOptions(),
        fitted_on="validation",
        identity=identity,
    )


def test_three_records_calibrate_nothing_and_the_answer_says_so():
    uncertainty, y = drawn(3)
    y[:] = [0, 1, 1]
    found = fit_task(uncertainty, y, PostProcessingOptions(), CLASSES["tumour"])
    assert found.calibrator.method == "none"
    np.testing.assert_array_equal(
        found.calibrator(uncertainty.probabilities), uncertainty.probabilities
    )
    assert found.referral is None and found.refers(uncertainty) is None
    assert "5 labelled validation records of two classes are needed" in found.notes[0]
    assert "no 1, yes 2, late 0" in found.notes[0] and "no referral threshold" in found.notes[1]
    assert found.sets(uncertainty.probabilities).all() and "always hold" in found.notes[2]


def test_maps_of_single_classes_need_records_of_each():
    uncertainty, y = drawn(60)
    y[y == 2] = 1
    y[:2] = 2
    for method, calibrated in (("temperature", True), ("vector", False), ("isotonic", False)):
        found = fit_task(uncertainty, y, PostProcessingOptions(calibration=method))
        assert (found.calibrator.method == method) == calibrated
        assert bool(found.notes) == (not calibrated)


def test_a_temperature_at_the_end_of_its_range_is_refused():
    """Certain and wrong half of the time: the best temperature is infinite."""
    p = np.full((1, 1, 400, 2), 1e-9)
    p[..., 0] = 1 - 1e-9
    found = fit_task(from_samples(p), np.arange(400) % 2, PostProcessingOptions())
    assert found.calibrator.method == "none"
    assert "is the end of the range" in found.notes[0]


def test_what_is_read_is_what_was_saved(tmp_path):
    whole = fitted()
    saved.save(whole, tmp_path / "p.json")
    again = saved.read(tmp_path / "p.json", CLASSES, "one")
    assert again.tasks == whole.tasks and again.fitted_on == "validation"
    np.testing.assert_array_equal(again.detector.known, whole.detector.known)


def test_that_of_other_weights_is_never_read(tmp_path):
    saved.save(fitted(), tmp_path / "p.json")
    assert saved.read(tmp_path / "p.json", CLASSES, "another") is None
    options = PostProcessingOptions()
    names = {saved.path_in(tmp_path, identity, 5, 0, options) for identity in ("one", "another")}
    assert len(names) == 2


def test_a_flipped_bit_of_either_file_is_refused(tmp_path):
    draw = np.random.default_rng(0)
    for suffix in (".json", ".npz"):
        saved.save(fitted(), tmp_path / "p.json")
        path = (tmp_path / "p.json").with_suffix(suffix)
        data = path.read_bytes()
        for place in draw.integers(0, len(data), 60):
            flipped = bytearray(data)
            flipped[place] ^= 1 << int(draw.integers(8))
            path.write_bytes(flipped)
            # A flip within white space changes nothing that is read.
            try:
                found = saved.read(tmp_path / "p.json", CLASSES, "one")
                assert found is not None and found.tasks == fitted().tasks
            except UserError as error:
                assert "is damaged" in str(error) and "fitted anew" in str(error)


def change(values, path, value):
    *parents, last = path
    for key in parents:
        values = values[key]
    values[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("calibration", "constants", "temperature"), 0, "the temperature is 0"),
        (("calibration", "constants", "temperature"), -1, "the temperature is -1"),
        (("calibration", "constants", "temperature"), float("nan"), "the temperature is nan"),
        (("conformal", "thresholds"), [0.5], "1 thresholds, not 3"),
        (("conformal", "thresholds"), [0.5, -1, 0.5], "negative"),
        (("conformal", "alpha"), 2, "alpha is 2"),
        (("referral", "threshold"), 9.0, "the referral threshold is 9.0"),
        (("num_validation",), 0, "num_validation is 0"),
    ],
)
def test_impossible_values_are_refused_whatever_the_digest_says(path, value, message, tmp_path):
    saved.save(fitted(), tmp_path / "p.json")
    document = json.loads((tmp_path / "p.json").read_text())
    change(document["tasks"]["tumour"], path, value)
    del document["sha256"]
    document["sha256"] = sha256(document)
    (tmp_path / "p.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=message):
        saved.read(tmp_path / "p.json", CLASSES, "one")
