"""Prediction sets that hold the truth at least 1 - alpha of the time, whatever the network.

Split conformal prediction: a score says how badly a class fits a record; the sets hold all
classes whose score does not exceed a quantile of the validation records' true scores. If
validation and new records are exchangeable,

    1 - alpha <= P(truth in set) <= 1 - alpha + 1 / (n + 1),

the upper bound where scores do not tie. The promise is an average over records: it says nothing
about one record, and nothing at all about another hospital's.

Sources: Sadinle et al., JASA 2019 (LAC); Romano et al., NeurIPS 2020 (APS); Angelopoulos et al.,
ICLR 2021 (RAPS); Vovk, 2012 (class-conditional); Angelopoulos and Bates, 2021 (the quantile).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from drifa_jax.uncertainty.calibration import labelled

METHODS = ("lac", "aps", "raps")
PENALTIES = (0.001, 0.01, 0.1, 0.2, 0.5)
"""Of RAPS, to choose from."""
FEWEST_FOR_RAPS = 20


@dataclass(frozen=True)
class ConformalSets:
    """Frozen thresholds that turn probabilities into sets.

    Attributes:
      method: "lac", "aps" or "raps".
      alpha: rate of sets that may miss the truth.
      thresholds: `[k]`; all equal unless class-conditional; infinite where too few records were
        seen to promise anything, and then every set holds the class.
      num_records: labelled validation records that they were fitted on.
      penalty, free_classes: of RAPS: added to the score for each class beyond the first
        `free_classes`.
      randomised: whether they were fitted with `uniform`, and so need it.
    """

    method: str
    alpha: float
    thresholds: tuple[float, ...]
    num_records: int
    penalty: float = 0.0
    free_classes: int = 0
    randomised: bool = False

    def __call__(self, probabilities: np.ndarray, uniform: np.ndarray | None = None) -> np.ndarray:
        """Membership `[n, k]` bool.

        Args:
          probabilities: `[n, k]`.
          uniform: `[n]` in [0, 1), for the exact coverage of APS and RAPS, where they were
            fitted with it; without, sets are larger, never smaller, and repeatable.

        Raises:
          ValueError: for other classes, or where sets fitted with `uniform` are asked for without:
            they would miss the truth more often than promised.
        """
        if self.randomised and uniform is None:
            raise ValueError("The sets were fitted with uniform numbers and need them.")
        p = np.asarray(probabilities, np.float64)
        if p.ndim != 2 or p.shape[1] != len(self.thresholds):
            raise ValueError(
                f"probabilities are {p.shape}; the sets were fitted for {len(self.thresholds)} "
                "classes."
            )
        return self._scores(p, uniform) <= np.asarray(self.thresholds)

    def _scores(self, p, uniform):
        return scores(
            p, self.method, uniform=uniform, penalty=self.penalty, free_classes=self.free_classes
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; JSON knows no infinity, so None stands for it."""
        finite = [t if math.isfinite(t) else None for t in self.thresholds]
        return asdict(self) | {"thresholds": finite}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], num_classes: int | None = None) -> ConformalSets:
        """Raises ValueError where the values are not those of sets of `num_classes`."""
        try:
            thresholds = tuple(math.inf if t is None else float(t) for t in values["thresholds"])
            sets = cls(**{**values, "thresholds": thresholds})
            _check(sets.method, sets.alpha)
            if num_classes not in (None, len(thresholds)):
                raise ValueError(f"there are {len(thresholds)} thresholds, not {num_classes}")
            # Rounding leaves -1e-16 where the truth had all; no comparison holds of NaN.
            if not all(t > -1e-9 for t in thresholds) or not 0 <= sets.penalty < math.inf:
                raise ValueError("a threshold or the penalty is negative")
            if not (sets.num_records >= 1 and 0 <= sets.free_classes <= len(thresholds)):
                raise ValueError("num_records or free_classes is impossible")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"these are no conformal sets: {error}") from error
        return sets


def scores(
    probabilities: np.ndarray,
    method: str,
    *,
    uniform: np.ndarray | None = None,
    penalty: float = 0.0,
    free_classes: int = 0,
) -> np.ndarray:
    """How badly each class fits each record, `[n, k]`.

    LAC: one minus the probability. APS: the probability of all classes that are more probable,
    plus `uniform` times its own (its whole own where `uniform` is None). RAPS: APS plus
    `penalty * max(rank - free_classes, 0)`, rank counted from 1.
    """
    _check(method, 0.5)
    p = np.asarray(probabilities, np.float64)
    if method == "lac":
        return 1.0 - p
    order = np.argsort(-p, axis=1, kind="stable")
    descending = np.take_along_axis(p, order, 1)
    before = np.cumsum(descending, 1) - descending
    own = descending if uniform is None else descending * np.asarray(uniform)[:, None]
    ranked = before + own
    if method == "raps":
        ranked = ranked + penalty * np.maximum(np.arange(1, p.shape[1] + 1) - free_classes, 0)
    result = np.empty_like(ranked)
    np.put_along_axis(result, order, ranked, 1)
    return result


def fit_conformal(
    probabilities: np.ndarray,
    labels: np.ndarray,
    *,
    alpha: float = 0.1,
    method: str = "lac",
    class_conditional: bool = False,
    penalty: float | None = None,
    free_classes: int = 0,
    uniform: np.ndarray | None = None,
) -> ConformalSets:
    """Thresholds from validation records.

    Args:
      probabilities: `[n, k]`, of records that were not trained on.
      labels: `[n]`, negative where missing.
      alpha: in (0, 1); 0.1 promises 90 %.
      method: "lac" (smallest sets), "aps" (adapts to hard records) or "raps".
      class_conditional: promise the rate within each class, at the price of larger sets.
      penalty, free_classes: of RAPS; where the penalty is None, both are chosen on a third of
        the records (`choose_raps`), which then have no part in the thresholds.
      uniform: `[n]` in [0, 1), if sets will be randomised too.

    Raises:
      ValueError: for an unknown method, an impossible alpha, or no labelled record.
    """
    _check(method, alpha)
    known = np.asarray(labels) >= 0
    p, y = labelled(probabilities, labels)
    u = None if uniform is None else np.asarray(uniform)[known]
    if method == "raps" and penalty is None:
        chooses = np.arange(len(y)) % 3 == 2
        penalty, free_classes = choose_raps(p[chooses], y[chooses], alpha)
        p, y, u = p[~chooses], y[~chooses], None if u is None else u[~chooses]
    penalty = penalty or 0.0
    all_scores = scores(p, method, uniform=u, penalty=penalty, free_classes=free_classes)
    own = all_scores[np.arange(len(y)), y]
    if class_conditional:
        thresholds = [conformal_quantile(own[y == k], alpha) for k in range(p.shape[1])]
    else:
        thresholds = [conformal_quantile(own, alpha)] * p.shape[1]
    return ConformalSets(
        method, alpha, tuple(thresholds), len(y), penalty, free_classes, uniform is not None
    )


def choose_raps(probabilities: np.ndarray, labels: np.ndarray, alpha: float) -> tuple[float, int]:
    """Penalty and free classes of RAPS that make sets small, from records kept for it.

    The smallest sets on one half of the records, with thresholds from the other, win among
    `PENALTIES` and one or two free classes, or as many as hold the truth of `1 - alpha` of the
    records when classes are ranked by probability (Angelopoulos et al., appendix E).

    Args:
      probabilities: `[n, k]`.
      labels: `[n]`, all known; of fewer than `FEWEST_FOR_RAPS`, a middling choice is returned.
    """
    if len(labels) < FEWEST_FOR_RAPS:
        return 0.1, 1
    own = np.take_along_axis(probabilities, labels[:, None], 1)
    rank = np.sum(probabilities >= own, 1)
    free = int(min(conformal_quantile(rank, alpha), probabilities.shape[1]))
    half = np.arange(len(labels)) % 2 == 0
    sizes = {}
    for choice in itertools.product(PENALTIES, sorted({1, 2, free})):
        penalty, free_classes = choice
        sets = fit_conformal(
            probabilities[half],
            labels[half],
            alpha=alpha,
            method="raps",
            penalty=penalty,
            free_classes=free_classes,
        )
        sizes[choice] = mean_size(sets(probabilities[~half]))
    return min(sizes, key=sizes.__getitem__)


def conformal_quantile(values: np.ndarray, alpha: float) -> float:
    """The `ceil((n + 1) (1 - alpha))`-th smallest value; infinite where n is too small."""
    # Rounded before the ceiling: 10 * (1 - 0.1) is 9.000000000000002 to a computer.
    rank = math.ceil(round((len(values) + 1) * (1 - alpha), 9))
    return math.inf if rank > len(values) else float(np.sort(values)[rank - 1])


def coverage(sets: np.ndarray, labels: np.ndarray) -> float:
    """Share of labelled records whose set `[n, k]` holds the truth."""
    sets, y = labelled(sets, labels)
    return float(np.mean(sets[np.arange(len(y)), y]))


def mean_size(sets: np.ndarray) -> float:
    """Mean number of classes in a set."""
    return float(np.mean(np.sum(sets, 1)))


def _check(method: str, alpha: float) -> None:
    if method not in METHODS:
        raise ValueError(f"conformal method is {method!r}; choose one of {METHODS}.")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; it must be in (0, 1).")
