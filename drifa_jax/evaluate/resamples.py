"""Labelled records under many weightings at once: a resample is an integer weight for each group.

Nothing is predicted, counted or sorted again for a resample. Confusion matrices, likelihoods,
Brier scores and the gaps of the calibration bins are sums over records, so a product of weights
`[r, g]` and sums of each group `[g, columns]` gives them for every resample. AUROC and average
precision are running sums of the weights along scores that were sorted once. What is made of
these numbers is in `evaluate.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from drifa_jax.uncertainty.calibration import labelled

OfRecord = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Probabilities `[n, k]` and labels `[n]` to what is summed of each record, `[n]` or `[n, c]`."""


class ScoredRecords:
    """The labelled records of one task, as a function of weights.

    Args:
      probabilities: `[n, k]`, rows adding up to 1.
      labels: `[n]`, all of them at least 0.
      groups: `[n]` integers from 0, the group of each record.

    Raises:
      ValueError: where shapes do not fit or a label is missing.

    Test: tests/evaluate/test_metrics.py.
    """

    def __init__(self, probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray):
        p, y = labelled(probabilities, labels)
        if len(y) != len(labels) or len(groups) != len(y):
            raise ValueError("Leave records without a label out, and name the group of each.")
        self.probabilities, self.labels, self.groups = p, y, np.asarray(groups)
        self.num_classes = p.shape[1]
        self.num_groups = int(self.groups.max()) + 1
        self._sums: dict[OfRecord, np.ndarray] = {}

    def __call__(self, weights: np.ndarray) -> Resamples:
        """The resamples of weights `[r, g]`: how many times each group counts, not all 0."""
        return Resamples(self, np.asarray(weights, np.float64))

    def everything(self) -> Resamples:
        """One resample in which every group counts once: the records as they are."""
        return self(np.ones((1, self.num_groups)))

    def sums(self, of_record: OfRecord) -> np.ndarray:
        """Sums over the records of each group, `[g, ...]`, made once."""
        if of_record not in self._sums:
            values = np.asarray(of_record(self.probabilities, self.labels), np.float64)
            sums = np.zeros((self.num_groups, *values.shape[1:]))
            np.add.at(sums, self.groups, values)
            self._sums[of_record] = sums
        return self._sums[of_record]

    @cached_property
    def rankings(self) -> list[_Ranking]:
        return [
            _Ranking(self.probabilities[:, k], self.labels == k, self.groups)
            for k in range(self.num_classes)
        ]


class Resamples:
    """`r` weightings of the same records; every array below has the leading axis `r`."""

    def __init__(self, records: ScoredRecords, weights: np.ndarray):
        self.records, self.weights = records, weights
        self.num_classes = records.num_classes

    def mean(self, of_record: OfRecord) -> np.ndarray:
        """Weighted mean over records, `[r, ...]`."""
        found = self.weights @ self.records.sums(of_record)
        return found / self.total.reshape(-1, *[1] * (found.ndim - 1))

    @cached_property
    def confusion(self) -> np.ndarray:
        """`[r, k, k]`, `[i, j]` counting records of class i called class j."""
        k = self.num_classes
        return (self.weights @ self.records.sums(_cell)).reshape(-1, k, k)

    @cached_property
    def total(self) -> np.ndarray:
        """Records, `[r]`."""
        return self.confusion.sum((1, 2))

    @cached_property
    def support(self) -> np.ndarray:
        """Records of each class, `[r, k]`."""
        return self.confusion.sum(2)

    @cached_property
    def called(self) -> np.ndarray:
        """Records called each class, `[r, k]`."""
        return self.confusion.sum(1)

    @cached_property
    def right(self) -> np.ndarray:
        """Records of each class that were called so, `[r, k]`."""
        return np.einsum("rkk->rk", self.confusion)

    @cached_property
    def ranked(self) -> tuple[np.ndarray, np.ndarray]:
        """AUROC and average precision of each class against the rest, `[r, k]` each."""
        by_group = np.ascontiguousarray(self.weights.T.astype(np.float32))
        pairs = [ranking(by_group) for ranking in self.records.rankings]
        areas, precisions = (np.stack(values, 1) for values in zip(*pairs, strict=True))
        return areas, precisions


def _cell(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Where each record stands in the confusion matrix, `[n, k * k]` zeros and a one."""
    n, k = probabilities.shape
    cells = np.zeros((n, k * k))
    cells[np.arange(n), labels * k + probabilities.argmax(1)] = 1
    return cells


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
