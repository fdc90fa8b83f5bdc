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
from drifa_jax.evaluate.intervals import NUM_RESAMPLES, bootstrap, group_numbers, percentile
from drifa_jax.evaluate.metrics import METRICS as EVERY_METRIC
from drifa_jax.evaluate.metrics import measured
from drifa_jax.evaluate.resamples import ScoredRecords

METRICS = ("accuracy", "balanced_accuracy", "auroc")


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


def draws(
    seeds: Sequence[Scores], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0, stream: int = 0
) -> Draws:
    """Bootstrap of the metrics of one variant.

    Two variants tested on the same groups get the same resamples of them, which makes them
    paired.

    Args:
      seeds: the scores of each trained network, on the same records.
      num_resamples: `r`.
      seed: of the resampling of groups, the same for all variants.
      stream: number of the variant: the seeds of each are drawn for themselves, since equal
        seeds of two networks have nothing in common.
    """
    records, probabilities = aligned(seeds)
    groups = group_numbers(records.groups)
    networks = [ScoredRecords(p, records.labels, groups) for p in probabilities]
    metrics = tuple(EVERY_METRIC[name] for name in METRICS)

    def by_seed(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = [measured(network(weights), metrics) for network in networks]
        return {name: np.stack([values[name] for values in found], 1) for name in METRICS}

    num_groups = networks[0].num_groups
    everything = by_seed(np.ones((1, num_groups)))
    drawn = bootstrap(by_seed, num_groups, num_resamples=num_resamples, seed=seed)
    chosen = np.random.default_rng([seed, 1, stream]).integers(
        len(seeds), size=(num_resamples, len(seeds))
    )
    return Draws(
        {name: values[0] for name, values in everything.items()},
        {
            name: np.take_along_axis(values, chosen, axis=1).mean(axis=1)
            for name, values in drawn.items()
        },
    )


def interval(replicates: np.ndarray) -> tuple[float, float]:
    """Percentile interval; replicates in which the metric is undefined are left out."""
    return percentile(replicates[~np.isnan(replicates)])


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
