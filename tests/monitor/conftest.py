"""A made-up run: validation records, their post-processing, and deployments of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from drifa_jax.monitor.reference import Reference
from drifa_jax.post_processing.out_of_distribution import DistanceScores
from drifa_jax.post_processing.saved import PostProcessing
from drifa_jax.post_processing.task import PostProcessingOptions, fit_task
from drifa_jax.predictions.table import Predictions, Provenance, task_predictions
from drifa_jax.uncertainty.measures import from_samples

CLASSES = ("glioma", "meningioma", "none")
IDENTITY = "0123456789abcdef0123456789abcdef"


def answers(
    count: int,
    seed: int,
    *,
    fitted=None,
    classes=(0.4, 0.3, 0.3),
    sureness: float = 6.0,
    unlike: float = 0.05,
    missing: float = 0.0,
    name: str = "record",
    identity: str = IDENTITY,
) -> Predictions:
    """Answers to `count` records with their labels.

    Args:
      classes: shares of the true classes.
      sureness: of the samples in the truth; less is more uncertain and more often wrong.
      unlike: share of records flagged as out of distribution.
      missing: share of records without CT.
    """
    draw = np.random.default_rng(seed)
    truth = draw.choice(len(CLASSES), count, p=classes)
    weight = np.ones((count, len(CLASSES)))
    weight[np.arange(count), truth] += sureness * draw.gamma(1.0, 1.0, count)
    samples = np.stack([draw.dirichlet(3 * row, 8) for row in weight], 1)[None]
    far = draw.random(count) < unlike
    p_value = np.where(far, draw.uniform(0.001, 0.05, count), draw.uniform(0.051, 1, count))
    found = task_predictions(CLASSES, from_samples(samples), fitted)
    return Predictions(
        tuple(f"{name}-{k}" for k in range(count)),
        {"tumour": dataclasses.replace(found, truth=truth)},
        Provenance(runs=("runs/brain",), identity=identity, num_samples=8),
        DistanceScores(1 / p_value, p_value),
        present={"mri": np.ones(count, bool), "ct": draw.random(count) >= missing},
    )


@pytest.fixture(scope="session")
def deployment():
    """`answers` of this run, with its post-processing."""
    validation = answers(200, 1)
    fitted = _fitted(validation)
    return lambda count, seed, **shift: answers(count, seed, fitted=fitted, **shift)


@pytest.fixture(scope="session")
def reference() -> Reference:
    validation = answers(200, 1)
    fitted = _fitted(validation)
    whole = answers(200, 1, fitted=fitted, name="validation")
    return Reference(
        whole, PostProcessing({"tumour": fitted}, None, "validation split", IDENTITY), "brain"
    )


def _fitted(validation: Predictions):
    found = validation["tumour"]
    return fit_task(found.uncertainty, found.truth, PostProcessingOptions(), CLASSES)
