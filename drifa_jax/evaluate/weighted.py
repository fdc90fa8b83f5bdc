"""All metrics of many resamples at once: a resample is an integer weight for each group.

Nothing is predicted, counted or sorted again for a resample. Confusion matrices, likelihoods,
Brier scores and the gaps of the calibration bins are sums over records, so one product of
weights `[r, g]` and sums of each group `[g, columns]` gives them for every resample. AUROC and
average precision are running sums of the weights along scores that were sorted once.

Definitions are scikit-learn's (`metrics_of` calls it; tests compare the two resample by
resample). Macro figures average over the classes that occur among the labels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from drifa_jax.uncertainty.calibration import SMALLEST_PROBABILITY, labelled

NUM_BINS = 15
"""Bins of equal width of the calibration error, as in `uncertainty.calibration`."""

COUNTED = (
    "accuracy",
    "balanced_accuracy",
    "precision_macro",
    "precision_weighted",
    "recall_macro",
    "recall_weighted",
    "f1_macro",
    "f1_weighted",
    "mcc",
    "cohen_kappa",
    "quadratic_kappa",
)
"""Of the called classes."""
RANKED = ("auroc", "average_precision")
"""Of the order of the probabilities, one class against the rest, macro."""
PROBABILISTIC = ("brier", "nll", "ece")
SCALARS = COUNTED + RANKED + PROBABILISTIC
PER_CLASS = ("sensitivity", "specificity", "precision", "f1")
PER_CLASS_RANKED = ("auroc_of_class", "average_precision_of_class")


class WeightedMetrics:
    """The metrics of one task as a function of weights.

    Args:
      probabilities: `[n, k]`, rows adding up to 1.
      labels: `[n]`, all of them at least 0.
      groups: `[n]` integers from 0, the group of each record.
      ranking: whether AUROC and average precision, which cost the most, are wanted.

    Raises:
      ValueError: where shapes do not fit or a label is missing.

    Test: tests/evaluate/test_weighted.py.
    """

    def __init__(
        self,
        probabilities: np.ndarray,
        labels: np.ndarray,
        groups: np.ndarray,
        *,
        ranking: bool = True,
    ):
        p, y = labelled(probabilities, labels)
        if len(y) != len(labels) or len(groups) != len(y):
            raise ValueError("Leave records without a label out, and name the group of each.")
        self.num_classes = p.shape[1]
        self.num_groups = int(groups.max()) + 1
        self._columns = _columns(p, y, groups, self.num_groups)
        self._rankings = (
            [_Ranking(p[:, k], y == k, groups) for k in range(self.num_classes)] if ranking else []
        )

    @property
    def names(self) -> tuple[str, ...]:
        return SCALARS if self._rankings else COUNTED + PROBABILISTIC

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Each scalar `[r]` and each figure by class `[r, k]`; NaN where it is undefined.

        Args:
          weights: `[r, g]`, how many times each group counts; at least one of them above 0.
        """
        weights = np.asarray(weights, np.float64)
        k = self.num_classes
        sums = weights @ self._columns
        confusion = sums[:, : k * k].reshape(-1, k, k)
        found = from_confusion(confusion)
        total = confusion.sum((1, 2))
        nll, brier, gaps = sums[:, k * k], sums[:, k * k + 1], sums[:, k * k + 2 :]
        found |= {
            "brier": brier / total,
            "nll": nll / total,
            "ece": np.abs(gaps).sum(1) / total,
        }
        if self._rankings:
            by_group = np.ascontiguousarray(weights.T.astype(np.float32))
            pairs = [ranking(by_group) for ranking in self._rankings]
            for name, values in zip(PER_CLASS_RANKED, zip(*pairs, strict=True), strict=True):
                found[name] = np.stack(values, 1)
                found[name.removesuffix("_of_class")] = _mean_of_finite(found[name])
        return found


def from_confusion(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Everything that confusion matrices tell.

    Args:
      confusion: `[r, k, k]`, `[i, j]` counting records of class i called class j.

    Returns:
      The figures of `COUNTED`, `[r]`, and of `PER_CLASS`, `[r, k]`. Those of the truth's and the
      call's agreement are undefined where the truth has one class only.
    """
    k = confusion.shape[1]
    support, called = confusion.sum(2), confusion.sum(1)
    total = support.sum(1)
    right = np.einsum("rkk->rk", confusion)
    occurs = support > 0
    recall = _ratio(right, support)
    precision = _ratio(right, called)
    # A class that is never called has no precision; in a mean it counts as 0, as in sklearn.
    counted_precision = np.nan_to_num(precision)
    f1 = _ratio(2 * right, support + called)
    accuracy = right.sum(1) / total
    found = {
        "accuracy": accuracy,
        "sensitivity": recall,
        "specificity": _ratio(total[:, None] - support - called + right, total[:, None] - support),
        "precision": precision,
        "f1": np.where(occurs, f1, np.nan),
    }
    for name, values in (("precision", counted_precision), ("recall", recall), ("f1", f1)):
        known = np.where(occurs, values, 0.0)
        found[f"{name}_macro"] = known.sum(1) / occurs.sum(1)
        found[f"{name}_weighted"] = (known * support).sum(1) / total
    found["balanced_accuracy"] = found["recall_macro"]
    several = occurs.sum(1) > 1
    chance = (support * called).sum(1)
    spread = np.sqrt((total**2 - (support**2).sum(1)) * (total**2 - (called**2).sum(1)))
    mcc = np.nan_to_num(_ratio(right.sum(1) * total - chance, spread))
    expected = chance / total**2
    distance = (np.arange(k)[:, None] - np.arange(k)) ** 2
    seen = (confusion * distance).sum((1, 2))
    by_chance = np.einsum("ri,rj,ij->r", support, called, distance) / total
    found |= {
        "mcc": np.where(several, mcc, np.nan),
        "cohen_kappa": np.where(several, _ratio(accuracy - expected, 1 - expected), np.nan),
        "quadratic_kappa": np.where(several, 1 - _ratio(seen, by_chance), np.nan),
    }
    return found


def _columns(p: np.ndarray, y: np.ndarray, groups: np.ndarray, num_groups: int) -> np.ndarray:
    """Sums over the records of each group, `[g, k * k + 2 + bins]`."""
    n, k = p.shape
    called = p.argmax(1)
    confidence = p.max(1)
    place = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    rows = np.zeros((n, k * k + 2 + NUM_BINS))
    every = np.arange(n)
    rows[every, y * k + called] = 1
    rows[every, k * k] = -np.log(np.maximum(p[every, y], SMALLEST_PROBABILITY))
    rows[every, k * k + 1] = np.sum((p - np.eye(k)[y]) ** 2, 1)
    rows[every, k * k + 2 + place] = confidence - (called == y)
    sums = np.zeros((num_groups, rows.shape[1]))
    np.add.at(sums, groups, rows)
    return sums


class _Ranking:
    """AUROC and average precision of one class, from weights along scores sorted once.

    Equal scores form a block: its records are called together. Only blocks that hold a positive
    contribute, so all but one running sum is taken over those.
    """

    def __init__(self, scores: np.ndarray, positive: np.ndarray, groups: np.ndarray):
        order = np.argsort(-scores, kind="stable")
        ordered, positive = scores[order], positive[order]
        block = np.concatenate([[0], np.cumsum(ordered[1:] != ordered[:-1])])
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        ends = np.append(starts[1:], len(order)) - 1
        held = np.unique(block[positive])
        self._groups = groups[order]
        self._ends, self._starts = ends[held], starts[held]
        rows = np.flatnonzero(positive)
        self._positive_groups = self._groups[rows]
        # Positives are in the order of their blocks: sums of runs make the blocks' sums.
        self._runs = np.flatnonzero(np.diff(block[rows], prepend=-1))

    def __call__(self, by_group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """AUROC and average precision `[r]` for weights `[g, r]` float32.

        Running sums of whole numbers are exact in float32 up to 2^24, far above any test set
        whose resamples fit into memory; products and shares are float64.
        """
        if not len(self._runs):
            nothing = np.full(by_group.shape[1], np.nan)
            return nothing, nothing
        running = by_group[self._groups]
        np.cumsum(running, axis=0, out=running)
        total = running[-1].astype(np.float64)
        until = running[self._ends].astype(np.float64)
        before = running[self._starts - 1].astype(np.float64)
        before[self._starts == 0] = 0.0
        positive = by_group[self._positive_groups].astype(np.float64)
        if len(self._runs) < len(positive):
            positive = np.add.reduceat(positive, self._runs, axis=0)
        true = np.cumsum(positive, axis=0)
        num_positive = true[-1]
        num_negative = total - num_positive
        # Negatives above a block in full, and half of those in it.
        above = (until - true + before - (true - positive)) / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            area = 1 - np.einsum("tr,tr->r", positive, above) / (num_positive * num_negative)
            shares = np.divide(true, until, out=np.zeros_like(true), where=until > 0)
            mean = np.einsum("tr,tr->r", positive, shares) / num_positive
        defined = (num_positive > 0) & (num_negative > 0)
        return np.where(defined, area, np.nan), np.where(defined, mean, np.nan)


def metrics_by_name(found: Mapping[str, np.ndarray], row: int) -> dict[str, float | list[float]]:
    """One resample's figures as plain numbers."""
    return {name: values[row].tolist() for name, values in found.items()}


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Their quotient; NaN where the whole is zero."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def _mean_of_finite(values: np.ndarray) -> np.ndarray:
    """Mean over classes of `[r, k]`, of those that are defined; NaN where none is."""
    known = np.isfinite(values)
    return _ratio(np.where(known, values, 0.0).sum(1), known.sum(1).astype(float))
