"""What is fitted for one task on the validation split, frozen, and kept with a run.

The conformal sets and the referral threshold read the uncalibrated mean probabilities, so that
no map fitted on the same records stands between them and their promise. What too few records
cannot support is not fitted, and the answer says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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

SMALLEST_CLASS = 5
"""Labelled validation records of a class below which nothing is calibrated on it: a temperature
needs two classes of this size, the maps of single classes need all of them."""

SMALLEST_REFERRED = 1
"""Validation records that a referral threshold must leave above it, to be one."""


@dataclass(frozen=True)
class PostProcessingOptions:
    """How post-processing is fitted.

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
class TaskPostProcessing:
    """The frozen post-processing of one task.

    Attributes:
      calibrator: from mean probabilities to those shown.
      sets: from mean probabilities to prediction sets.
      referral: records with a larger predictive entropy (nats) are referred; None where there
        were too few validation records for a threshold.
      num_validation: labelled validation records that all of it was fitted on.
      validation: calibration metrics before ("raw") and after ("calibrated"), on those same
        records, hence a little too good.
      notes: what the validation records were too few for, in words.
    """

    calibrator: Calibrator
    sets: ConformalSets
    referral: float | None
    num_validation: int
    validation: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...] = ()

    def refers(self, uncertainty: Uncertainty) -> np.ndarray | None:
        """Whether a human should look first, `[b]`; None without a threshold."""
        if self.referral is None:
            return None
        return getattr(uncertainty, REFERRAL_MEASURE) > self.referral

    def to_json(self) -> dict[str, Any]:
        return {
            "calibration": self.calibrator.to_json(),
            "conformal": self.sets.to_json(),
            "referral": {"measure": REFERRAL_MEASURE, "threshold": self.referral},
            "num_validation": self.num_validation,
            "validation": {key: dict(values) for key, values in self.validation.items()},
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], num_classes: int) -> TaskPostProcessing:
        """Raises ValueError where the values are not those of a task of `num_classes`."""
        try:
            threshold, count = values["referral"]["threshold"], values["num_validation"]
            if values["referral"]["measure"] != REFERRAL_MEASURE:
                raise ValueError("the referral measure is unknown.")
            if threshold is not None and not 0 <= float(threshold) <= math.log(num_classes) + 1e-6:
                raise ValueError(
                    f"the referral threshold is {threshold}; an entropy of {num_classes} classes "
                    "is at least 0 and at most their logarithm."
                )
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"num_validation is {count!r}; it must be at least 1.")
            return cls(
                Calibrator.from_json(values["calibration"], num_classes),
                ConformalSets.from_json(values["conformal"], num_classes),
                None if threshold is None else float(threshold),
                count,
                values["validation"],
                tuple(str(note) for note in values["notes"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the post-processing lacks or misstates {error}.") from error


def fit_task(
    uncertainty: Uncertainty,
    labels: np.ndarray,
    options: PostProcessingOptions,
    classes: Sequence[str] | None = None,
) -> TaskPostProcessing:
    """Post-processing of one task from its validation records.

    Args:
      uncertainty: of validation records, `[b]`.
      labels: `[b]`, negative where missing; those records are left out.
      options: how.
      classes: names, for the notes.

    Raises:
      ValueError: where there are no labels or, with a calibration, only one class.
    """
    p, y = uncertainty.probabilities, np.asarray(labels)
    known = y >= 0
    names = [str(k) for k in range(p.shape[1])] if classes is None else list(classes)
    calibrator, notes = _calibrated(options.calibration, p, y, names)
    count = int(known.sum())
    referral = None
    if math.floor(round(options.referred_share * count, 9)) < SMALLEST_REFERRED:
        notes.append(
            f"no referral threshold: {options.referred_share:.0%} of {count} labelled validation "
            "records is not one record"
        )
    else:
        referral = referral_threshold(
            getattr(uncertainty, REFERRAL_MEASURE)[known], options.referred_share
        )
    sets = fit_conformal(
        p,
        y,
        alpha=options.alpha,
        method=options.conformal,
        class_conditional=options.class_conditional,
    )
    if not np.isfinite(sets.thresholds).all():
        lacking = [n for n, t in zip(names, sets.thresholds, strict=True) if not math.isfinite(t)]
        notes.append(
            f"prediction sets always hold {', '.join(lacking)}: too few validation records to "
            f"promise {1 - options.alpha:.0%}"
        )
    return TaskPostProcessing(
        calibrator,
        sets,
        referral,
        count,
        {"raw": calibration_metrics(p, y), "calibrated": calibration_metrics(calibrator(p), y)},
        tuple(notes),
    )


def _calibrated(
    method: str, p: np.ndarray, y: np.ndarray, names: Sequence[str]
) -> tuple[Calibrator, list[str]]:
    """The calibrator, or none where the records are too few for it; and what to say of it."""
    calibrator = fit_calibrator(method, p, y)
    if method == "none":
        return calibrator, []
    counts = np.bincount(y[y >= 0], minlength=len(names))
    wanted = 2 if method == "temperature" else len(names)
    why = ""
    if np.sum(counts >= SMALLEST_CLASS) < wanted:
        listed = ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))
        why = (
            f"{SMALLEST_CLASS} labelled validation records of "
            f"{'two classes' if wanted == 2 else 'each class'} are needed ({listed})"
        )
    elif calibrator.at_its_bound:
        why = (
            f"the best temperature, {calibrator.constants['temperature']:.3g}, is the end of the "
            "range that is searched"
        )
    if not why:
        return calibrator, []
    return Calibrator("none", {}), [f"probabilities are not calibrated: {why}"]
