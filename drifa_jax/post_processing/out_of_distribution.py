"""Is this the kind of record that the network knows? A distance, and how rare it is.

The distance is that of a record's fused features from those of validation records (Lee et al.,
NeurIPS 2018, see `uncertainty.ood`). How rare it is among them is a conformal p-value: for a
record that is drawn as the validation records were, `p <= a` happens in a share of at most about
`a` (Bates et al., "Testing for outliers with conformal p-values", Annals of Statistics 2023). A
small value says "unlike anything seen", never why; a large one is no proof of the contrary.

Departure from Lee et al.: one mean for records of each set of present modalities instead of one
a class, because a record may answer several tasks and absent modalities have features of zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drifa_jax.uncertainty.ood import Mahalanobis, fit_mahalanobis

FLAGGED_BELOW = 0.05
"""A record with no larger p-value is flagged as out of distribution."""

NUM_FOLDS = 5
SMALLEST = 20
"""Validation records below which no distance is fitted."""


@dataclass(frozen=True)
class DistanceScores:
    """How far `b` records are from what the network knows.

    Attributes:
      distance: `[b]`, squared distance a feature, mean over members; about 1 for known records.
      p_value: `[b]`, conformal: share of validation records that are as far, in (0, 1].
    """

    distance: np.ndarray
    p_value: np.ndarray

    @property
    def flagged(self) -> np.ndarray:
        """Whether each record is out of distribution, `[b]` bool."""
        return self.p_value <= FLAGGED_BELOW


@dataclass(frozen=True)
class DistanceDetector:
    """Distances of a network, or of each member of an ensemble, and those of known records.

    Attributes:
      members: a distance each.
      known: `[n]`, distances of validation records, each from a fit that did not see its group,
        sorted.
    """

    members: tuple[Mahalanobis, ...]
    known: np.ndarray

    def __call__(self, features: np.ndarray) -> DistanceScores:
        """Scores of fused features `[e, b, d]`."""
        distance = _distance(self.members, features)
        return DistanceScores(distance, self.p_value(distance))

    def p_value(self, distance: np.ndarray) -> np.ndarray:
        """Share of validation records, and of the record itself, that are as far: `[b]`."""
        as_far = len(self.known) - np.searchsorted(self.known, distance, side="left")
        return (as_far + 1) / (len(self.known) + 1)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """To be saved; float32 halves the file and moves a distance by 1e-6 of itself."""
        arrays = {"known": self.known}
        for number, member in enumerate(self.members):
            arrays[f"means_{number}"] = member.means.astype(np.float32)
            arrays[f"whitening_{number}"] = member.whitening.astype(np.float32)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> DistanceDetector:
        """Raises ValueError or KeyError where the arrays are not those of a detector."""
        count = sum(name.startswith("means_") for name in arrays)
        known = np.asarray(arrays["known"], np.float64)
        if not count or known.ndim != 1 or len(known) < 1 or not (np.diff(known) >= 0).all():
            raise ValueError("the distances of validation records are not sorted numbers")
        members = []
        for e in range(count):
            means = arrays[f"means_{e}"].astype(np.float64)
            whitening = arrays[f"whitening_{e}"].astype(np.float64)
            if means.ndim != 2 or whitening.shape != (means.shape[1],) * 2:
                raise ValueError(f"means {means.shape} and whitening {whitening.shape} do not fit")
            members.append(Mahalanobis(means, whitening))
        if not all(np.isfinite(x).all() for x in arrays.values()) or known[0] < 0:
            raise ValueError("a distance is negative or not finite")
        return cls(tuple(members), known)


def fit_detector(
    features: np.ndarray,
    present: Mapping[str, np.ndarray],
    groups: Sequence[Sequence[str]] | None = None,
    *,
    num_folds: int = NUM_FOLDS,
) -> DistanceDetector | None:
    """A detector from validation records; None where there are too few of them, or one group.

    Distances of records from a fit that saw them would be too small, so the distances that
    p-values count come from `num_folds` fits, each of which leaves out its part. Whole groups are
    left out: the next patient is as far from the fit as one that it did not see, not as a further
    slice of one that it saw.

    Args:
      features: `[e, n, d]`, of each member.
      present: modality -> `[n]` bool.
      groups: of each record (patient, lesion), one for each stranger that it was put together
        from; each record is its own when None.
      num_folds: parts.
    """
    known = left_out_distances(features, present, groups, num_folds=num_folds)
    if known is None:
        return None
    return DistanceDetector(_fit(features, _kinds(present)), np.sort(known))


def left_out_distances(
    features: np.ndarray,
    present: Mapping[str, np.ndarray],
    groups: Sequence[Sequence[str]] | None = None,
    *,
    num_folds: int = NUM_FOLDS,
) -> np.ndarray | None:
    """The distance `[n]` of each record from a fit that did not see its group, see `fit_detector`.

    None where there are too few records, or one group.
    """
    count = features.shape[1]
    fold_of = np.arange(count) if groups is None else _ranks(groups)
    num_folds = min(num_folds, int(fold_of.max(initial=0)) + 1)
    if count < SMALLEST or num_folds < 2:
        return None
    kinds = _kinds(present)
    known = np.empty(count)
    for fold in range(num_folds):
        left_out = fold_of % num_folds == fold
        members = _fit(features[:, ~left_out], kinds[~left_out])
        known[left_out] = _distance(members, features[:, left_out])
    return known


def left_out_scores(known: np.ndarray) -> DistanceScores:
    """Scores of the very records that p-values count, each among the others."""
    order = np.sort(known)
    as_far = len(known) - np.searchsorted(order, known, side="left")
    return DistanceScores(known, as_far / len(known))


def _kinds(present: Mapping[str, np.ndarray]) -> np.ndarray:
    """Number of each record's set of present modalities, `[n]`."""
    masks = np.stack([present[name] for name in sorted(present)], 1)
    return np.unique(masks, axis=0, return_inverse=True)[1].reshape(-1)


def _ranks(groups: Sequence[Sequence[str]]) -> np.ndarray:
    """Number of each record's group, `[n]`; of several, of the one that holds most records."""
    sizes = Counter(name for names in groups for name in names)
    largest = [max(names, key=sizes.__getitem__) for names in groups]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(largest))}
    return np.array([numbers[name] for name in largest])


def _fit(features: np.ndarray, kinds: np.ndarray) -> tuple[Mahalanobis, ...]:
    return tuple(fit_mahalanobis(x, kinds) for x in features)


def _distance(members: tuple[Mahalanobis, ...], features: np.ndarray) -> np.ndarray:
    if len(members) != len(features):
        raise ValueError(f"There are {len(members)} distances but {len(features)} members.")
    squared = [member(x) for member, x in zip(members, features, strict=True)]
    return np.mean(squared, 0) / features.shape[-1]
