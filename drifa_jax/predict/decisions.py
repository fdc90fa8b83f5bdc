"""What is fitted on the validation split, frozen, and kept with a run: one set of rules a task.

The conformal sets and the referral threshold read the uncalibrated mean probabilities, so that
no map fitted on the same records stands between them and their promise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from drifa_jax.uncertainty.calibration import (
    Calibrator,
    calibration_metrics,
    fit_calibrator,
)
from drifa_jax.uncertainty.conformal import ConformalSets, fit_conformal
from drifa_jax.uncertainty.measures import Uncertainty
from drifa_jax.uncertainty.selective import referral_threshold

REFERRAL_MEASURE = "predictive_entropy"


@dataclass(frozen=True)
class DecisionOptions:
    """How the rules are fitted.

    Attributes:
      calibration: "none", "temperature", "vector" or "isotonic".
      conformal: "lac", "aps" or "raps".
      alpha: rate of prediction sets that may miss the truth.
      class_conditional: whether that rate holds within each class.
      referred_share: share of validation records that the threshold refers.
    """

    calibration: str = "temperature"
    conformal: str = "lac"
    alpha: float = 0.1
    class_conditional: bool = False
    referred_share: float = 0.1


@dataclass(frozen=True)
class TaskDecisions:
    """The frozen rules of one task.

    Attributes:
      calibrator: from mean probabilities to those shown.
      sets: from mean probabilities to prediction sets.
      referral: records with a larger predictive entropy (nats) are referred.
      num_validation: labelled validation records that all of it was fitted on.
      validation: calibration metrics before ("raw") and after ("calibrated"), on those same
        records, hence a little too good.
    """

    calibrator: Calibrator
    sets: ConformalSets
    referral: float
    num_validation: int
    validation: Mapping[str, Mapping[str, float]]

    def to_json(self) -> dict[str, Any]:
        return {
            "calibration": self.calibrator.to_json(),
            "conformal": self.sets.to_json(),
            "referral": {"measure": REFERRAL_MEASURE, "threshold": self.referral},
            "num_validation": self.num_validation,
            "validation": {key: dict(values) for key, values in self.validation.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TaskDecisions:
        """Raises ValueError where the values are not those of decisions."""
        try:
            threshold = float(values["referral"]["threshold"])
            if values["referral"]["measure"] != REFERRAL_MEASURE or not math.isfinite(threshold):
                raise ValueError("the referral rule is unknown.")
            return cls(
                Calibrator.from_json(values["calibration"]),
                ConformalSets.from_json(values["conformal"]),
                threshold,
                int(values["num_validation"]),
                values["validation"],
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"the decisions lack or misstate {error}.") from error


def fit_decisions(
    uncertainty: Uncertainty, labels: np.ndarray, options: DecisionOptions
) -> TaskDecisions:
    """Rules of one task from its validation records.

    Args:
      uncertainty: of validation records, `[b]`.
      labels: `[b]`, negative where missing; those records are left out.
      options: how.

    Raises:
      ValueError: where there are no labels or only one class.
    """
    p, y = uncertainty.probabilities, np.asarray(labels)
    calibrator = fit_calibrator(options.calibration, p, y)
    known = y >= 0
    return TaskDecisions(
        calibrator=calibrator,
        sets=fit_conformal(
            p,
            y,
            alpha=options.alpha,
            method=options.conformal,
            class_conditional=options.class_conditional,
        ),
        referral=referral_threshold(
            getattr(uncertainty, REFERRAL_MEASURE)[known], options.referred_share
        ),
        num_validation=int(known.sum()),
        validation={
            "raw": calibration_metrics(p, y),
            "calibrated": calibration_metrics(calibrator(p), y),
        },
    )
