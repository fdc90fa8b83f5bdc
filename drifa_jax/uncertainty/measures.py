"""How uncertain a prediction is, and of which kind: measures of samples `[e, s, b, k]`.

All are in nats and computed in float64 on the host. Every sample of every member is one draw
from the posterior predictive distribution; members and samples are averaged alike. For each
record

    0 <= mutual information <= predictive entropy <= log k,
    predictive entropy = expected entropy + mutual information.

Source: Dhar et al., WACV 2025, section 3.4 (which averages and takes the entropy); Houlsby et
al., 2011 and Depeweg et al., ICML 2018 (the decomposition); Gal, 2016, section 3.3 (variation
ratio); Kendall and Gal, NeurIPS 2017 (aleatoric and epistemic).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

SUM_TOLERANCE = 1e-3
"""Rows of probabilities may miss a sum of 1 by this much: room for bfloat16 and calibration."""


class RunningMoments(Protocol):
    """Sums over samples, as `uncertainty.mc_dropout.Moments`."""

    num_samples: np.ndarray
    probability_sum: np.ndarray
    square_sum: np.ndarray
    entropy_sum: np.ndarray
    votes: np.ndarray


@dataclass(frozen=True)
class Uncertainty:
    """The measures of one task, each `[b]`, of `probabilities` `[b, k]`.

    Larger means less certain, but for `margin` and `confidence`, where smaller does.

    Attributes:
      probabilities: mean over members and samples.
      predictive_entropy: total uncertainty, in [0, log k].
      expected_entropy: aleatoric part, mean entropy of the samples.
      mutual_information: epistemic part, what the samples disagree about.
      predictive_variance: variance over samples, summed over classes, in [0, 1].
      variation_ratio: share of samples that vote for another class than most, in [0, 1).
      margin: most probable class over the second, in [0, 1].
      confidence: probability of the most probable class.
      normalised_entropy: predictive entropy / log k, in [0, 1].
      normalised_mutual_information: mutual information / log k, in [0, 1].
    """

    probabilities: np.ndarray
    predictive_entropy: np.ndarray
    expected_entropy: np.ndarray
    mutual_information: np.ndarray
    predictive_variance: np.ndarray
    variation_ratio: np.ndarray
    margin: np.ndarray
    confidence: np.ndarray
    normalised_entropy: np.ndarray
    normalised_mutual_information: np.ndarray

    def measures(self) -> dict[str, np.ndarray]:
        """Name -> `[b]`, all but the probabilities."""
        names = [field.name for field in fields(self) if field.name != "probabilities"]
        return {name: getattr(self, name) for name in names}


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Shannon entropy in nats over the last axis: `[..., k] -> [...]`, in [0, log k]."""
    p = np.asarray(probabilities, np.float64)
    logs = np.log(np.where(p > 0, p, 1.0))
    # Rounding leaves -1e-16 where one class has all; no entropy is negative.
    return np.maximum(-np.sum(p * logs, -1), 0.0)


def predictive_mean(samples: np.ndarray) -> np.ndarray:
    """Mean probabilities over members and samples: `[e, s, b, k] -> [b, k]`."""
    return np.mean(_checked(samples), (0, 1))


def predictive_entropy(samples: np.ndarray) -> np.ndarray:
    """Entropy of the mean: total uncertainty. `[e, s, b, k] -> [b]`, in [0, log k]."""
    return entropy(predictive_mean(samples))


def expected_entropy(samples: np.ndarray) -> np.ndarray:
    """Mean of the samples' entropies: the aleatoric part. `[e, s, b, k] -> [b]`."""
    return np.mean(entropy(_checked(samples)), (0, 1))


def mutual_information(samples: np.ndarray) -> np.ndarray:
    """Predictive minus expected entropy: the epistemic part. `[e, s, b, k] -> [b]`, >= 0.

    Zero where all samples agree. Also called BALD or the generalised Jensen-Shannon divergence
    of the samples.
    """
    return np.maximum(predictive_entropy(samples) - expected_entropy(samples), 0.0)


def predictive_variance(samples: np.ndarray) -> np.ndarray:
    """Variance of each class's probability over samples, summed over classes, `[b]`.

    The variance is that of the draws themselves (divided by their number, not by one less). The
    sum lies in [0, 1): it is the mean squared length of the samples minus that of their mean.
    """
    return np.sum(np.var(_checked(samples), (0, 1)), -1)


def variation_ratio(samples: np.ndarray) -> np.ndarray:
    """Share of samples whose class is not the most voted one, `[b]`, in [0, 1 - 1/k]."""
    p = _checked(samples)
    votes = np.sum(np.argmax(p, -1)[..., None] == np.arange(p.shape[-1]), (0, 1))
    return 1.0 - np.max(votes, -1) / (p.shape[0] * p.shape[1])


def margin(probabilities: np.ndarray) -> np.ndarray:
    """Largest minus second largest probability: `[..., k] -> [...]`, in [0, 1]; k >= 2."""
    ordered = np.sort(np.asarray(probabilities, np.float64), -1)
    return ordered[..., -1] - ordered[..., -2]


def normalised(entropies: np.ndarray, num_classes: int) -> np.ndarray:
    """Entropies, or mutual information, divided by log k: comparable between tasks, in [0, 1]."""
    return np.asarray(entropies, np.float64) / np.log(num_classes)


def from_samples(samples: np.ndarray) -> Uncertainty:
    """All measures of one task from samples `[e, s, b, k]`."""
    p = _checked(samples)
    return assemble(
        np.mean(p, (0, 1)),
        np.mean(entropy(p), (0, 1)),
        predictive_variance(p),
        variation_ratio(p),
    )


def from_moments(moments: RunningMoments) -> Uncertainty:
    """All measures of one task from running sums `[e, b, k]`; equal to `from_samples`.

    The variance is a difference of float32 sums, exact to about 1e-6.
    """
    total = float(np.sum(moments.num_samples))
    mean = np.sum(np.asarray(moments.probability_sum, np.float64), 0) / total
    squares = np.sum(np.asarray(moments.square_sum, np.float64), 0) / total
    expected = np.sum(np.asarray(moments.entropy_sum, np.float64), 0) / total
    votes = np.sum(np.asarray(moments.votes, np.float64), 0)
    _checked(mean[None, None])
    return assemble(
        mean,
        expected,
        np.sum(np.maximum(squares - mean**2, 0.0), -1),
        1.0 - np.max(votes, -1) / total,
    )


def concatenated(parts: Sequence[Uncertainty]) -> Uncertainty:
    """The measures of several blocks of records as those of one."""
    names = [field.name for field in fields(Uncertainty)]
    return Uncertainty(*[np.concatenate([getattr(part, n) for part in parts]) for n in names])


def assemble(
    mean: np.ndarray, expected: np.ndarray, variance: np.ndarray, variation: np.ndarray
) -> Uncertainty:
    """All measures from the mean `[b, k]` and the three that need the samples, `[b]` each."""
    num_classes = mean.shape[-1]
    total = entropy(mean)
    information = np.maximum(total - expected, 0.0)
    return Uncertainty(
        probabilities=mean,
        predictive_entropy=total,
        expected_entropy=expected,
        mutual_information=information,
        predictive_variance=variance,
        variation_ratio=variation,
        margin=margin(mean),
        confidence=np.max(mean, -1),
        normalised_entropy=normalised(total, num_classes),
        normalised_mutual_information=normalised(information, num_classes),
    )


def _checked(samples: np.ndarray) -> np.ndarray:
    """Samples as float64 that add up to exactly 1, or an error that names what is wrong."""
    p = np.asarray(samples, np.float64)
    if p.ndim != 4:
        raise ValueError(f"Samples have the axes [e, s, b, k]; got the shape {p.shape}.")
    if 0 in p.shape[:2]:
        raise ValueError(f"There is no sample to measure: [e, s, b, k] is {p.shape}.")
    if p.shape[3] < 2:
        raise ValueError("Uncertainty needs at least two classes.")
    if not np.isfinite(p).all():
        rows = np.unique(np.nonzero(~np.isfinite(p))[2]).tolist()
        raise ValueError(f"Probabilities of the records {rows[:10]} are not finite.")
    sums = np.sum(p, -1, keepdims=True)
    if (p < 0).any() or np.abs(sums - 1).max(initial=0.0) > SUM_TOLERANCE:
        raise ValueError("Probabilities must be at least 0 and add up to 1 over the last axis.")
    return p / sums
