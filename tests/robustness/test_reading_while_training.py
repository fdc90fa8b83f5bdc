"""Whoever predicts with a run that trains gets answers, and the run ends as if left alone."""

from __future__ import annotations

import numpy as np
import pytest

from drifa_jax.errors import UserError
from drifa_jax.predict.predictor import load
from drifa_jax.train.metrics_log import read_metrics
from tests.train import toy  # noqa: F401  (it enters its parts into the registry)
from tests.train.attempts import Attempts

TRAIN = {"checkpoint_every_steps": 1, "num_epochs": 3}


@pytest.fixture(scope="module")
def attempts(tmp_path_factory):
    server = Attempts(tmp_path_factory.mktemp("outputs"))
    yield server
    server.close()


def files(workdir):
    names = ("metrics.json", "predictions.csv", "config.json", "preprocessing.json")
    return {name: (workdir / name).read_text() for name in names}


def test_predicting_in_a_loop_changes_nothing_in_a_run_that_trains(attempts, tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 1), np.uint8)
    alone, read = tmp_path / "alone", tmp_path / "read"
    attempts.run(alone, train=TRAIN)
    attempt = attempts.start(read, train=TRAIN)
    predicted = 0
    while attempt.code() is None:
        try:
            predictor = load(read, num_samples=1, post_processing=False)
            found = predictor({"mri": pictures, "ct": pictures}, record_ids=["a", "b"])
        except UserError as error:
            # Before its first epoch ends.
            assert any(word in str(error) for word in ("no checkpoint", "not a run")), error
        else:
            predicted += 1
            assert np.isfinite(found["tumour"].probabilities).all()
    assert attempt.wait() == 0, attempt.said()
    assert predicted
    assert read_metrics(read) == read_metrics(alone)
    assert files(read) == files(alone)
    assert load(read, num_samples=1, post_processing=False).restored.model_identity == (
        load(alone, num_samples=1, post_processing=False).restored.model_identity
    )
