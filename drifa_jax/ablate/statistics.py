"""Means over seeds with intervals, and paired tests between variants on the same records.

Two things vary when a study is repeated: who is tested, and what training happened to find. The
bootstrap here resamples both: groups (patients, lesions), so that images of one patient stay
together, and seeds. The permutation test asks a narrower question, of these trained networks
alone: whether they answer the tested groups differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drifa_jax.ablate.scores import Scores

METRICS = ("accuracy", "balanced_accuracy", "auroc")
BLOCK = 250
"""Resamples computed together, to bound memory."""


@dataclass(frozen=True)
class Draws:
    """Bootstrap replicates of one variant's metrics, averaged over seeds.

    Attributes:
      per_seed: metric -> `[s]`, on all records.
      replicates: metric -> `[r]`.
    """

    per_seed: Mapping[str, np.ndarray]
    replicates: Mapping[str, np.ndarray]

    def mean(self, metric: str) -> float:
        """Over the seeds, on all records."""
        return float(np.mean(self.per_seed[metric]))

    def deviation(self, metric: str) -> float | None:
        """Standard deviation between seeds; None of a single seed."""
        values = self.per_seed[metric]
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


def aligned(seeds: Sequence[Scores]) -> tuple[Scores, np.ndarray]:
    """Records that all seeds share, and all probabilities `[s, n, k]`.

    Raises:
      ValueError: if they tested different records or disagree about a label.
    """
    first = seeds[0]
    for other in seeds[1:]:
        if not np.array_equal(first.record_ids, other.record_ids):
            raise ValueError("the seeds were tested on different records")
        if not np.array_equal(first.labels, other.labels):
            raise ValueError("the seeds disagree about the labels")
    return first, np.stack([scores.probabilities for scores in seeds])


def group_weights(groups: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
    """`[r, n]` how often each record occurs when groups are drawn with replacement.

    The draw of a group depends on its name's place among the sorted names and on `seed`, so two
    variants tested on the same records get the same resamples, which makes them paired.
    """
    names, number = np.unique(groups, return_inverse=True)
    generator = np.random.default_rng([seed, len(names)])
    size = len(names)
    drawn = generator.multinomial(size, np.full(size, 1 / size), num_resamples)
    return drawn[:, number].astype(np.float32)


def draws(
    seeds: Sequence[Scores], *, num_resamples: int = 2000, seed: int = 0, stream: int = 0
) -> Draws:
    """Bootstrap of the metrics of one variant.

    Args:
      seeds: the scores of each trained network, on the same records.
      num_resamples: `r`.
      seed: of the resampling of groups, the same for all variants.
      stream: number of the variant: the seeds of each are drawn for themselves, since equal
        seeds of two networks have nothing in common.
    """
    records, probabilities = aligned(seeds)
    weights = group_weights(records.groups, num_resamples, seed)
    everything = _metrics(records.labels, probabilities, np.ones((1, len(records.labels))))
    chosen = np.random.default_rng([seed, 1, stream]).integers(
        len(seeds), size=(num_resamples, len(seeds))
    )
    replicates: dict[str, list[np.ndarray]] = {metric: [] for metric in METRICS}
    for start in range(0, num_resamples, BLOCK):
        block = _metrics(records.labels, probabilities, weights[start : start + BLOCK])
        for metric, values in block.items():
            of_seeds = np.take_along_axis(values, chosen[start : start + BLOCK], axis=1)
            replicates[metric].append(of_seeds.mean(axis=1))
    return Draws(
        {metric: values[0] for metric, values in everything.items()},
        {metric: np.concatenate(parts) for metric, parts in replicates.items()},
    )


def interval(replicates: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval; replicates in which the metric is undefined are left out."""
    low, high = np.nanquantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def permutation_p(
    variant: Sequence[Scores], reference: Sequence[Scores], *, num: int = 10000, seed: int = 0
) -> float:
    """Two-sided p of equal balanced accuracy, by exchanging the two variants' answers.

    Under the hypothesis that both answer alike, the answers of a group could as well have come
    from the other variant. Balanced accuracy is a sum over groups, so exchanging is a change of
    sign; the share of random exchanges with a difference at least as large is p.

    Args:
      variant, reference: scores of each seed; both on the same records.
      num: random exchanges.
      seed: of the exchanges.
    """
    records, theirs = aligned(variant)
    other, ours = aligned(reference)
    if not np.array_equal(records.record_ids, other.record_ids):
        raise ValueError("the variants were tested on different records")
    labels = records.labels
    right = [(p.argmax(-1) == labels).mean(axis=0) for p in (theirs, ours)]
    occurring, counts = np.unique(labels, return_counts=True)
    size = counts[np.searchsorted(occurring, labels)] * len(occurring)
    _, number = np.unique(records.groups, return_inverse=True)
    difference = np.bincount(number, (right[0] - right[1]) / size)
    difference = difference[difference != 0]
    if not len(difference):
        return 1.0
    signs = np.random.default_rng([seed, 2]).choice([-1.0, 1.0], (num, len(difference)))
    # Sums that are equal but for rounding count as equal.
    as_large = np.abs(signs @ difference) >= abs(difference.sum()) - 1e-12
    return float((1 + as_large.sum()) / (1 + num))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction for several tests: p-values that keep the family-wise error."""
    corrected, running = {}, 0.0
    for place, name in enumerate(sorted(p, key=p.__getitem__)):
        running = max(running, min(1.0, p[name] * (len(p) - place)))
        corrected[name] = running
    return {name: corrected[name] for name in p}


def _metrics(labels, probabilities, weights) -> dict[str, np.ndarray]:
    """Metric -> `[r, s]` for weights `[r, n]` of the records."""
    num_seeds, _, num_classes = probabilities.shape
    correct = (probabilities.argmax(-1) == labels).astype(np.float64)
    weights = weights.astype(np.float64)
    classes = [k for k in range(num_classes) if (labels == k).any()]
    with np.errstate(invalid="ignore", divide="ignore"):
        recalls = np.stack(
            [
                (weights[:, labels == k] @ correct[:, labels == k].T)
                / weights[:, labels == k].sum(1, keepdims=True)
                for k in classes
            ]
        )
    areas = np.full((len(classes), len(weights), num_seeds), np.nan)
    if len(classes) > 1:
        for place, k in enumerate(classes):
            for s in range(num_seeds):
                areas[place, :, s] = weighted_auroc(probabilities[s, :, k], labels == k, weights)
    return {
        "accuracy": weights @ correct.T / weights.sum(1, keepdims=True),
        "balanced_accuracy": _mean_where_defined(recalls),
        "auroc": _mean_where_defined(areas),
    }


def _mean_where_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis without NaN; NaN where all are."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(defined, values, 0).sum(0) / defined.sum(0)


def weighted_auroc(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve for many weightings at once, `[r]`; NaN where undefined.

    Args:
      score: `[n]`, higher for positive; ties count half.
      positive: `[n]` bool.
      weights: `[r, n]`.
    """
    order = np.argsort(score, kind="stable")
    score, positive, weights = score[order], positive[order], weights[:, order]
    starts = np.flatnonzero(np.r_[True, score[1:] != score[:-1]])
    of_positive = np.add.reduceat(weights * positive, starts, axis=1)
    of_negative = np.add.reduceat(weights * ~positive, starts, axis=1)
    below = np.cumsum(of_negative, axis=1) - of_negative / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        pairs = of_positive.sum(1) * of_negative.sum(1)
        return (of_positive * below).sum(1) / pairs
