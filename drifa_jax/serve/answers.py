"""Answers and explanations as plain JSON values; every number is that of `drifa predict`."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from drifa_jax.console import RESEARCH_NOTE
from drifa_jax.predict.predictor import Predictor
from drifa_jax.predictions.files import MEASURES
from drifa_jax.predictions.table import Predictions, TaskPredictions
from drifa_jax.serve.cases import Answered
from drifa_jax.serve.engine import AnyPredictor, Explained
from drifa_jax.serve.reading_case import png


def answer_json(answered: Answered, lacks: list[str]) -> dict[str, Any]:
    """The answer to one case.

    Args:
      answered: the case.
      lacks: what this network cannot say, in words.
    """
    case, predictions = answered.case, answered.predictions
    scores, provenance = predictions.out_of_distribution, predictions.provenance
    return {
        "notice": RESEARCH_NOTE,
        "synthetic": provenance.synthetic,
        "record_id": case.record_id,
        "tasks": tasks_json(predictions),
        "out_of_distribution": None
        if scores is None
        else {
            "distance": float(scores.distance[0]),
            "p_value": float(scores.p_value[0]),
            "flagged": bool(scores.flagged[0]),
        },
        "modalities": {
            name: {"present": held} | case.facts.get(name, {})
            for name, held in case.present.items()
        },
        "rows": case.rows,
        "lacks": lacks,
        "model": {
            "identity": provenance.identity,
            "num_members": provenance.num_members,
            "num_samples": provenance.num_samples,
            "seed": provenance.seed,
            "post_processing": provenance.post_processing,
        },
        "seconds": answered.seconds,
    }


def tasks_json(predictions: Predictions) -> dict[str, Any]:
    """Task -> its answer to the first record."""
    return {task: _task(found) for task, found in predictions.tasks.items()}


def _task(found: TaskPredictions) -> dict[str, Any]:
    def by_class(values: np.ndarray) -> dict[str, float]:
        return {name: float(value) for name, value in zip(found.classes, values, strict=True)}

    in_set = found.set_of(0)
    return {
        "predicted": found.labels[0],
        "probabilities": by_class(found.probabilities[0]),
        "uncalibrated": by_class(found.uncertainty.probabilities[0]),
        "calibration": found.calibration,
        "uncertainty": {
            name: float(getattr(found.uncertainty, name)[0])
            for name in (*MEASURES, "normalised_entropy", "normalised_mutual_information")
        },
        "prediction_set": None if in_set is None else list(in_set),
        "refer": None if found.refer is None else bool(found.refer[0]),
        "notes": list(found.notes),
    }


def explanation_json(explained: Explained) -> dict[str, Any]:
    """Maps, contributions and answers without each modality."""
    return {
        "extrapolates": explained.extrapolates,
        "tasks": {
            task: {
                "class": explanation.predicted,
                "contributions": explanation.contributions(),
                "factors": dict(explanation.factors),
                "maps": {
                    name: {
                        "shape": list(heat_map.mean.shape),
                        "png": None if heat_map.mean.ndim > 2 else _grey_png(heat_map.mean),
                        "hottest": heat_map.hottest,
                    }
                    for name, heat_map in explanation.maps.items()
                    if heat_map.mean.max() > 0
                },
            }
            for task, explanation in explained.tasks.items()
        },
        "without": {
            name: {"tasks": tasks_json(found)} for name, found in explained.without.items()
        },
    }


def what_lacks(predictor: AnyPredictor, predictions: Predictions, reason: str) -> list[str]:
    """What a network cannot say, and why, in sentences.

    Args:
      predictor: what answers.
      predictions: one of its answers.
      reason: why there is no post-processing, where it is known.
    """
    told = []
    if predictor.post_processing is None:
        told.append(
            "There is no post-processing: probabilities are not calibrated, and there are no "
            f"prediction sets and no referral. {reason}".strip()
        )
    elif predictions.out_of_distribution is None:
        told.append(
            "Nothing tells how like the training data a case is: there were too few validation "
            "records for it, or folds share no measure of it."
        )
    if not isinstance(predictor, Predictor):
        told.append(
            "An exported file answers and cannot explain: serve the run itself for Grad-CAM, the "
            "contribution of each modality and the answers without one."
        )
    return told


def _grey_png(heat: np.ndarray) -> str:
    """A map in 0..1 at the size of the network's image, as 8 bits."""
    packed = png((heat * 255).round().astype(np.uint8))
    return base64.b64encode(packed).decode()
