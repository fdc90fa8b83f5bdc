"""Does a probability of 0.8 come true eight times in ten? Measuring it, and mending it.

Probabilities are `[n, k]`, labels `[n]` with a negative number where there is none; records
without a label are left out. Maps are fitted on a validation split and then frozen.

Sources: Naeini et al., AAAI 2015 (ECE); Nixon et al., CVPR workshops 2019 (equal-mass bins,
class-wise error); Brier, 1950; Guo et al., ICML 2017 (temperature and vector scaling); Zadrozny
and Elkan, KDD 2002 (isotonic regression, one class against the rest).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import log_softmax, softmax

BINNINGS = ("width", "mass")
LARGEST_LOG_TEMPERATURE = 4.0
PSEUDO_RECORDS, ENOUGH_RECORDS = 10.0, 200
"""Weight of what the network says itself beside few records; none beside `ENOUGH_RECORDS`."""
SMALLEST_PROBABILITY = 1e-12
"""Logarithms are taken of no less: a certain error costs 27.6 nats, not infinity."""


@dataclass(frozen=True)
class Reliability:
    """A reliability curve; bins that hold no record are left out.

    Attributes:
      confidence: mean confidence of each bin, increasing.
      accuracy: share of each bin's records that were right.
      count: records in each bin.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    @property
    def expected_error(self) -> float:
        """Mean gap between confidence and accuracy, weighed by the bins' records, in [0, 1]."""
        gap = np.abs(self.confidence - self.accuracy)
        return float(np.sum(gap * self.count) / np.sum(self.count))


def reliability(
    probabilities: np.ndarray, labels: np.ndarray, *, num_bins: int = 15, binning: str = "width"
) -> Reliability:
    """The reliability curve of the most probable class.

    Args:
      probabilities: `[n, k]`.
      labels: `[n]`.
      num_bins: at least 1.
      binning: "width" for bins `(i / num_bins, (i + 1) / num_bins]`, "mass" for bins with
        equally many records (to within one), which equal confidences do not straddle on purpose.
    """
    p, y = labelled(probabilities, labels)
    return _curve(np.max(p, 1), np.argmax(p, 1) == y, num_bins, binning)


def expected_calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, *, num_bins: int = 15, binning: str = "width"
) -> float:
    """ECE: the mean gap between confidence and accuracy, in [0, 1]."""
    return reliability(probabilities, labels, num_bins=num_bins, binning=binning).expected_error


def classwise_calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, *, num_bins: int = 15, binning: str = "width"
) -> float:
    """Mean over classes of the calibration error of that class's probability, in [0, 1]."""
    p, y = labelled(probabilities, labels)
    errors = [_curve(p[:, k], y == k, num_bins, binning).expected_error for k in range(p.shape[1])]
    return float(np.mean(errors))


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance to the one-hot truth, summed over classes, in [0, 2]."""
    p, y = labelled(probabilities, labels)
    return float(np.mean(np.sum((p - np.eye(p.shape[1])[y]) ** 2, 1)))


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log p(truth), in nats."""
    p, y = labelled(probabilities, labels)
    return float(-np.mean(np.log(np.maximum(p[np.arange(len(y)), y], SMALLEST_PROBABILITY))))


def calibration_metrics(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """All of the above, by name."""
    return {
        "ece": expected_calibration_error(probabilities, labels),
        "ece_equal_mass": expected_calibration_error(probabilities, labels, binning="mass"),
        "ece_classwise": classwise_calibration_error(probabilities, labels),
        "brier": brier_score(probabilities, labels),
        "nll": negative_log_likelihood(probabilities, labels),
    }


@dataclass(frozen=True)
class Calibrator:
    """A frozen map from probabilities to better calibrated ones.

    Attributes:
      method: "none", "temperature", "vector" or "isotonic".
      constants: plain numbers: `temperature`; `scale` and `shift` `[k]`; or `knots`, a pair
        `(x, y)` of lists per class.
    """

    method: str
    constants: Mapping[str, Any]

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, shaped as the input `[..., k]`.

        Applied to the mean over samples and members. A temperature never changes which class is
        the most probable; the other maps may.
        """
        return METHODS[self.method].apply(np.asarray(probabilities, np.float64), self.constants)

    def to_json(self) -> dict[str, Any]:
        return {"method": self.method, "constants": dict(self.constants)}

    @property
    def at_its_bound(self) -> bool:
        """Whether the fit ended where its search had to stop: its optimum is unknown then."""
        if self.method != "temperature":
            return False
        return abs(np.log(self.constants["temperature"])) > LARGEST_LOG_TEMPERATURE - 1e-3

    @classmethod
    def from_json(cls, values: Mapping[str, Any], num_classes: int | None = None) -> Calibrator:
        """Raises ValueError where the values are not those of a calibrator of `num_classes`."""
        method, constants = values.get("method"), values.get("constants")
        if method not in METHODS or not isinstance(constants, Mapping):
            raise ValueError(f"{dict(values)!r} does not describe a calibration.")
        if missing := [name for name in METHODS[method].names if name not in constants]:
            raise ValueError(f"the calibration {method!r} lacks {', '.join(missing)}.")
        try:
            METHODS[method].check(constants, num_classes)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the calibration {method!r} is impossible: {error}") from error
        return cls(method, dict(constants))


def fit_calibrator(
    method: str,
    probabilities: np.ndarray,
    labels: np.ndarray,
) -> Calibrator:
    """A calibrator fitted on validation records.

    Of few records the fit is shrunk towards no change: beside them it sees up to
    `PSEUDO_RECORDS` that come true exactly as often as the network says.

    Args:
      method: "none", "temperature", "vector" or "isotonic".
      probabilities: `[n, k]`, of records that were not trained on.
      labels: `[n]`; classes that do not occur keep what the method can give them.

    Raises:
      ValueError: for an unknown method, no labelled record, or labels of one class only, from
        which nothing can be learnt.
    """
    if method not in METHODS:
        raise ValueError(f"calibration method is {method!r}; choose one of {tuple(METHODS)}.")
    p, y = labelled(probabilities, labels)
    if method != "none" and len(np.unique(y)) < 2:
        raise ValueError(
            f"All {len(y)} labelled validation records are of class {int(y[0])}; a calibration "
            "needs two classes."
        )
    share = PSEUDO_RECORDS * max(1 - len(y) / ENOUGH_RECORDS, 0.0) / len(y)
    truth = (np.eye(p.shape[1])[y] + share * p) / (1 + share)
    return Calibrator(method, METHODS[method].fit(p, truth))


class _Nothing:
    names = ()

    @staticmethod
    def fit(p, truth):
        return {}

    @staticmethod
    def apply(p, constants):
        return p

    @staticmethod
    def check(constants, num_classes):
        pass


class _Temperature:
    """`softmax(log p / T)`: one number, chosen by likelihood."""

    names = ("temperature",)

    @staticmethod
    def fit(p, truth):
        logs = _log(p)

        def loss(log_temperature):
            return -np.mean(np.sum(truth * log_softmax(logs / np.exp(log_temperature), 1), 1))

        # Bounds far beyond any real network, so that separable validation data stays finite.
        # Imported where something is fitted: an answer waits a second for it otherwise.
        from scipy.optimize import minimize_scalar

        found = minimize_scalar(
            loss,
            bounds=(-LARGEST_LOG_TEMPERATURE, LARGEST_LOG_TEMPERATURE),
            method="bounded",
            options={"xatol": 1e-6},
        )
        return {"temperature": float(np.exp(found.x))}

    @staticmethod
    def apply(p, constants):
        return softmax(_log(p) / constants["temperature"], -1)

    @staticmethod
    def check(constants, num_classes):
        low, high = np.exp([-LARGEST_LOG_TEMPERATURE, LARGEST_LOG_TEMPERATURE])
        if not low <= float(constants["temperature"]) <= high:
            raise ValueError(
                f"the temperature is {constants['temperature']}, not from {low:.3f} to {high:.1f}"
            )


class _Vector:
    """`softmax(scale * log p + shift)`: two numbers a class, chosen by likelihood.

    A quadratic pull of weight 1 / n towards no change keeps few records from saying too much.
    """

    names = ("scale", "shift")

    @staticmethod
    def fit(p, truth):
        logs, (n, k) = _log(p), p.shape

        def loss(theta):
            scale, shift = theta[:k], theta[k:]
            logits = scale * logs + shift
            pull = np.sum((scale - 1) ** 2) + np.sum(shift**2)
            residual = (softmax(logits, 1) - truth) / n
            gradient = np.concatenate(
                [np.sum(residual * logs, 0) + 2 * (scale - 1) / n, residual.sum(0) + 2 * shift / n]
            )
            return -np.sum(truth * log_softmax(logits, 1)) / n + pull / n, gradient

        start = np.concatenate([np.ones(k), np.zeros(k)])
        from scipy.optimize import minimize

        found = minimize(loss, start, jac=True, method="L-BFGS-B")
        return {"scale": found.x[:k].tolist(), "shift": found.x[k:].tolist()}

    @staticmethod
    def apply(p, constants):
        return softmax(
            np.asarray(constants["scale"]) * _log(p) + np.asarray(constants["shift"]), -1
        )

    @staticmethod
    def check(constants, num_classes):
        scale, shift = (np.asarray(constants[name], float) for name in ("scale", "shift"))
        if scale.ndim != 1 or scale.shape != shift.shape or num_classes not in (None, len(scale)):
            raise ValueError("scale and shift need one number for each class")
        if not np.isfinite([scale, shift]).all():
            raise ValueError("scale and shift must be finite")


class _Isotonic:
    """Each class's probability through its own increasing curve, then shares of their sum."""

    names = ("knots",)

    @staticmethod
    def fit(p, truth):
        from sklearn.isotonic import IsotonicRegression

        knots = []
        for k in range(p.shape[1]):
            curve = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
            curve.fit(p[:, k], truth[:, k])
            knots.append([curve.X_thresholds_.tolist(), curve.y_thresholds_.tolist()])
        return {"knots": knots}

    @staticmethod
    def apply(p, constants):
        curves = [np.interp(p[..., k], x, y) for k, (x, y) in enumerate(constants["knots"])]
        raw = np.stack(curves, -1)
        total = np.sum(raw, -1, keepdims=True)
        # Where every curve says zero, what went in is the best that is known.
        return np.where(total > 0, raw / np.where(total > 0, total, 1.0), p)

    @staticmethod
    def check(constants, num_classes):
        knots = constants["knots"]
        if num_classes not in (None, len(knots)):
            raise ValueError("a curve for each class is needed")
        for x, y in knots:
            both = np.asarray([x, y], float)
            inside = (both >= -1e-9) & (both <= 1 + 1e-9)
            if not both.size or not inside.all() or (np.diff(both) < 0).any():
                raise ValueError("the knots of a curve must increase within 0 and 1")


METHODS = {"none": _Nothing, "temperature": _Temperature, "vector": _Vector, "isotonic": _Isotonic}
"""Name -> how it is fitted and applied."""


def labelled(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The records that have a label, as float64 and int64.

    Raises:
      ValueError: when shapes do not fit, there is no label, or values are not finite.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels)
    if p.ndim != 2 or y.shape != p.shape[:1]:
        raise ValueError(f"probabilities {p.shape} and labels {y.shape} must be [n, k] and [n].")
    known = y >= 0
    if not known.any():
        raise ValueError("No record has a label.")
    if y.max() >= p.shape[1]:
        raise ValueError(f"A label is {y.max()} but there are {p.shape[1]} classes.")
    if not np.isfinite(p[known]).all():
        raise ValueError("Some probabilities are not finite.")
    return p[known], y[known].astype(np.int64)


def _log(p: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(p, SMALLEST_PROBABILITY))


def _curve(confidence, right, num_bins: int, binning: str) -> Reliability:
    if num_bins < 1:
        raise ValueError(f"num_bins is {num_bins}; it must be at least 1.")
    if binning not in BINNINGS:
        raise ValueError(f"binning is {binning!r}; choose one of {BINNINGS}.")
    if binning == "width":
        place = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    else:
        rank = np.empty(len(confidence), int)
        rank[np.argsort(confidence, kind="stable")] = np.arange(len(confidence))
        place = rank * num_bins // len(confidence)
    count = np.bincount(place, minlength=num_bins)
    held = count > 0

    def mean(values):
        return np.bincount(place, values, num_bins)[held] / count[held]

    return Reliability(mean(confidence), mean(right.astype(float)), count[held])
