"""When should the network hand over? Curves, tables and frozen thresholds for referral.

`uncertainty` is `[n]`, larger where less certain (any measure of `uncertainty.measures`, minus
the margin or the confidence); `wrong` is `[n]`, 1 where the prediction was wrong.

Sources: El-Yaniv and Wiener, JMLR 2010 (risk-coverage); Geifman et al., ICLR 2019 (AURC, excess
AURC); Traub et al., NeurIPS 2024 (AUGRC); Mobiny et al., 2021 (uncertainty accuracy and kin).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RiskCoverage:
    """What remains when only the most certain records are answered.

    Attributes:
      coverage: share of records answered, increasing to 1; one entry for each uncertainty that
        occurs, so that equally uncertain records stay together.
      risk: share of the answered records that are wrong (one minus the selective accuracy).
      generalised_risk: share of all records that are answered and wrong.
    """

    coverage: np.ndarray
    risk: np.ndarray
    generalised_risk: np.ndarray


def risk_coverage(uncertainty: np.ndarray, wrong: np.ndarray) -> RiskCoverage:
    """The risk-coverage curve; one minus `risk` against one minus `coverage` is
    accuracy-rejection.
    """
    u, w = _checked(uncertainty, wrong)
    order = np.argsort(u, kind="stable")
    u, errors = u[order], np.cumsum(w[order])
    last_of_tie = np.append(u[1:] != u[:-1], True)
    answered = np.arange(1, len(u) + 1)[last_of_tie]
    errors = errors[last_of_tie]
    return RiskCoverage(answered / len(u), errors / answered, errors / len(u))


def aurc(uncertainty: np.ndarray, wrong: np.ndarray) -> float:
    """Area under the risk-coverage curve: mean risk over all numbers of answered records.

    Among equally uncertain records the order is unknown; their errors are spread evenly.
    """
    errors = _expected_errors(*_checked(uncertainty, wrong))
    return float(np.mean(errors / np.arange(1, len(errors) + 1)))


def augrc(uncertainty: np.ndarray, wrong: np.ndarray) -> float:
    """Area under the generalised risk-coverage curve, in [0, 1/2]: lower is better.

    Traub et al. show that it is `(1 - AUROC) a r + r^2 / 2` of error rate r, accuracy a and the
    AUROC of error detection, so that no prefix of the curve dominates as in AURC.
    """
    u, w = _checked(uncertainty, wrong)
    curve = np.concatenate([[0.0], _expected_errors(u, w)]) / len(u)
    return float(np.mean((curve[1:] + curve[:-1]) / 2))


def excess_aurc(uncertainty: np.ndarray, wrong: np.ndarray) -> float:
    """AURC beyond that of an oracle that refers exactly the wrong records first, >= 0."""
    return aurc(uncertainty, wrong) - aurc(wrong, wrong)


def error_detection_auroc(uncertainty: np.ndarray, wrong: np.ndarray) -> float | None:
    """Probability that a wrong record is more uncertain than a right one; None where all are
    right or all are wrong, so that there is nothing to rank.
    """
    u, w = _checked(uncertainty, wrong)
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(w, u)) if 0 < w.sum() < len(w) else None


@dataclass(frozen=True)
class Referral:
    """What referring the least certain records does.

    Attributes:
      threshold: records that are more uncertain than this are referred.
      referred: share of records referred.
      error_before: error over all records.
      error_after: error over those that are kept; None where none is.
      errors_caught: share of all errors that were referred; None where there was none.
    """

    threshold: float
    referred: float
    error_before: float
    error_after: float | None
    errors_caught: float | None


def referral_threshold(uncertainty: np.ndarray, share: float) -> float:
    """The uncertainty that at most `share` of these (validation) records exceed."""
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; it must be in [0, 1].")
    u, _ = _checked(uncertainty, np.zeros(len(uncertainty)))
    if share == 1:
        return -np.inf
    rank = len(u) - int(np.floor(round(share * len(u), 9)))
    return float(np.sort(u)[rank - 1])


def refer(uncertainty: np.ndarray, wrong: np.ndarray, threshold: float) -> Referral:
    """What a frozen threshold does to these records."""
    u, w = _checked(uncertainty, wrong)
    kept = u <= threshold
    return Referral(
        threshold=float(threshold),
        referred=float(np.mean(~kept)),
        error_before=float(np.mean(w)),
        error_after=float(np.mean(w[kept])) if kept.any() else None,
        errors_caught=float(np.sum(w[~kept]) / np.sum(w)) if w.any() else None,
    )


@dataclass(frozen=True)
class CertaintyTable:
    """Certain or uncertain against right or wrong, in counts, and what follows from it.

    An uncertain wrong prediction is a true alarm. Ratios are None where nothing was counted.
    """

    certain_right: int
    certain_wrong: int
    uncertain_right: int
    uncertain_wrong: int

    @property
    def accuracy(self) -> float:
        """Share of records whose certainty fits: certain and right, or uncertain and wrong."""
        total = (
            self.certain_right + self.certain_wrong + self.uncertain_right + self.uncertain_wrong
        )
        return (self.certain_right + self.uncertain_wrong) / total

    @property
    def sensitivity(self) -> float | None:
        """Share of wrong predictions that are uncertain."""
        return _ratio(self.uncertain_wrong, self.certain_wrong)

    @property
    def specificity(self) -> float | None:
        """Share of right predictions that are certain."""
        return _ratio(self.certain_right, self.uncertain_right)

    @property
    def precision(self) -> float | None:
        """Share of uncertain predictions that are wrong."""
        return _ratio(self.uncertain_wrong, self.uncertain_right)


def certainty_table(uncertainty: np.ndarray, wrong: np.ndarray, threshold: float) -> CertaintyTable:
    """Counts at a frozen threshold; uncertain means above it."""
    u, w = _checked(uncertainty, wrong)
    uncertain = u > threshold
    return CertaintyTable(
        certain_right=int(np.sum(~uncertain & ~w)),
        certain_wrong=int(np.sum(~uncertain & w)),
        uncertain_right=int(np.sum(uncertain & ~w)),
        uncertain_wrong=int(np.sum(uncertain & w)),
    )


def _ratio(part: int, rest: int) -> float | None:
    return part / (part + rest) if part + rest else None


def _expected_errors(u: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Expected errors among the i most certain records, ties in random order, `[n]`."""
    _, group, size = np.unique(u, return_inverse=True, return_counts=True)
    share = np.bincount(group, w.astype(float)) / size
    return np.cumsum(np.repeat(share, size))


def _checked(uncertainty: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    u, w = np.asarray(uncertainty, np.float64), np.asarray(wrong).astype(bool)
    if u.ndim != 1 or u.shape != w.shape:
        raise ValueError(f"uncertainty {u.shape} and wrong {w.shape} must both be [n].")
    if not len(u):
        raise ValueError("There is no record.")
    if not np.isfinite(u).all():
        raise ValueError("Some uncertainties are not finite.")
    return u, w
