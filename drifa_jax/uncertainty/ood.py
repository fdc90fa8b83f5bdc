"""Is this the kind of image that the network was trained on? Scores, larger where it is not.

None of them is a guarantee: a network can be certain about an image of another organ. The scores
are compared by how well they tell known from foreign images.

Sources: Hendrycks and Gimpel, ICLR 2017 (maximum softmax probability); Liu et al., NeurIPS 2020
(energy); Lee et al., NeurIPS 2018 (Mahalanobis distance). Mutual information, the fourth score,
is in `uncertainty.measures`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp


def max_softmax_score(probabilities: np.ndarray) -> np.ndarray:
    """One minus the largest probability: `[n, k] -> [n]`, in [0, 1 - 1/k]."""
    return 1.0 - np.max(np.asarray(probabilities, np.float64), -1)


def energy_score(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Free energy `-T log sum exp(logits / T)`: `[n, k] -> [n]`, any real number.

    Unlike a softmax it keeps the size of the logits, which is what a foreign image lacks.
    """
    return -temperature * logsumexp(np.asarray(logits, np.float64) / temperature, -1)


@dataclass(frozen=True)
class Mahalanobis:
    """Squared distance to the nearest class of the training records, in feature space.

    Attributes:
      means: `[k, d]`, of each class that occurred.
      whitening: `[d, d]`; distances are Euclidean after it.
    """

    means: np.ndarray
    whitening: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Scores of fused features (the intermediate "pooled"): `[n, d] -> [n]`, >= 0."""
        x = np.asarray(features, np.float64)
        if x.ndim != 2 or x.shape[1] != self.means.shape[1]:
            raise ValueError(f"features are {x.shape}; expected [n, {self.means.shape[1]}].")
        white = x @ self.whitening
        centres = self.means @ self.whitening
        return np.min(np.sum((white[:, None] - centres[None]) ** 2, -1), 1)


def fit_mahalanobis(features: np.ndarray, labels: np.ndarray) -> Mahalanobis:
    """Class means and one shared covariance of training features.

    The covariance is shrunk by the rule of Ledoit and Wolf (2004), because there are often more
    features than records.

    Args:
      features: `[n, d]`.
      labels: `[n]`, negative where missing.
    """
    x = np.asarray(features, np.float64)
    y = np.asarray(labels)
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise ValueError(f"features {x.shape} and labels {y.shape} must be [n, d] and [n].")
    known = y >= 0
    if known.sum() < 2:
        raise ValueError("A covariance needs at least two labelled records.")
    x, y = x[known], y[known]
    # Imported where something is fitted: an answer waits two seconds for it otherwise.
    from sklearn.covariance import ledoit_wolf

    classes, place = np.unique(y, return_inverse=True)
    means = np.stack([x[y == k].mean(0) for k in classes])
    covariance, _ = ledoit_wolf(x - means[place], assume_centered=True)
    values, vectors = np.linalg.eigh(covariance)
    # A direction in which training features never move says nothing; it gets no infinite weight.
    floor = max(values.max() * 1e-10, np.finfo(float).tiny)
    return Mahalanobis(means, vectors / np.sqrt(np.maximum(values, floor)))


def detection_auroc(known: np.ndarray, foreign: np.ndarray) -> float:
    """Probability that a foreign image scores higher than a known one; ties count half."""
    from sklearn.metrics import roc_auc_score

    truth, score = _both(known, foreign)
    return float(roc_auc_score(truth, score))


def fpr_at_95_tpr(known: np.ndarray, foreign: np.ndarray) -> float:
    """Share of foreign images that pass when 95 % of the known ones do (FPR95), in [0, 1]."""
    _both(known, foreign)
    threshold = np.quantile(known, 0.95, method="inverted_cdf")
    return float(np.mean(np.asarray(foreign) <= threshold))


def _both(known, foreign) -> tuple[np.ndarray, np.ndarray]:
    known, foreign = np.asarray(known, np.float64), np.asarray(foreign, np.float64)
    if not known.size or not foreign.size:
        raise ValueError("Both known and foreign images are needed.")
    score = np.concatenate([known, foreign])
    if not np.isfinite(score).all():
        raise ValueError("Some scores are not finite.")
    return np.repeat([0, 1], [len(known), len(foreign)]), score
