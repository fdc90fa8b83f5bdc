"""What is watched: of each record one number a statistic, whose mean over a period is judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from drifa_jax.predictions.table import Predictions

Values = Callable[[Predictions], np.ndarray]
LABELLED = ("accuracy", "coverage", "overconfidence")
"""Kinds of statistics that need labels."""


@dataclass(frozen=True)
class Statistic:
    """One statistic.

    Attributes:
      key: its name in JSON, `task/kind` or `kind`.
      title: for people.
      what: in a sentence.
      kind: of which there may be one a task, class or modality.
      is_share: whether its values are 0 and 1.
      values: predictions -> `[n]`, NaN where a record has none.
    """

    key: str
    title: str
    what: str
    kind: str
    is_share: bool
    values: Values


def statistics_of(reference: Predictions, monitored: Predictions) -> list[Statistic]:
    """What both tables can tell.

    Args:
      reference: of validation records.
      monitored: of the records to be watched; those of labels where any has one.
    """
    found: list[Statistic] = []
    both = (reference, monitored)
    if all(table.out_of_distribution is not None for table in both):
        found += [
            Statistic(
                "unlike",
                "Unlike the validation records",
                "share of records that are flagged as out of distribution (p at most 0.05)",
                "unlike",
                True,
                lambda p: p.out_of_distribution.flagged,
            ),
            Statistic(
                "p_value",
                "Likeness",
                "mean conformal p-value; one half where records are like the validation records",
                "p_value",
                False,
                lambda p: p.out_of_distribution.p_value,
            ),
        ]
    for modality in reference.present:
        if any(not table.present[modality].all() for table in both):
            found.append(_missing(modality))
    for task in reference.tasks:
        found += _of_task(task, reference, monitored)
    return found


def values_of(statistics: Sequence[Statistic], predictions: Predictions) -> np.ndarray:
    """`[n, s]`, NaN where a record has no value."""
    return np.stack([s.values(predictions).astype(float) for s in statistics], 1)


def _missing(modality: str) -> Statistic:
    return Statistic(
        f"missing {modality}",
        f"No {modality}",
        f"share of records without {modality}",
        "missing",
        True,
        lambda p: ~p.present[modality],
    )


def _of_task(task: str, reference: Predictions, monitored: Predictions) -> list[Statistic]:
    classes = reference[task].classes

    def statistic(kind: str, title: str, what: str, is_share: bool, values: Values) -> Statistic:
        return Statistic(f"{task}/{kind}", f"{task}: {title}", what, kind, is_share, values)

    found = [
        statistic(
            "entropy",
            "uncertainty",
            "mean predictive entropy over the logarithm of the classes",
            False,
            lambda p: p[task].uncertainty.normalised_entropy,
        ),
        statistic(
            "mutual_information",
            "uncertainty of the model",
            "mean mutual information, nats",
            False,
            lambda p: p[task].uncertainty.mutual_information,
        ),
    ]
    for place, name in enumerate(classes):
        found.append(
            statistic(
                f"class {name}",
                f"called {name}",
                f"share of records whose most probable class is {name}",
                True,
                lambda p, place=place: p[task].probabilities.argmax(1) == place,
            )
        )
    # The last class of two is what the first leaves; of more, each may shift alone.
    if len(classes) == 2:
        found.pop()
    if reference[task].sets is not None:
        found.append(
            statistic(
                "set_size",
                "set size",
                "mean number of classes in a prediction set",
                False,
                lambda p: p[task].sets.sum(1),
            )
        )
    if reference[task].refer is not None:
        found.append(
            statistic(
                "referred", "referred", "share of records referred", True, lambda p: p[task].refer
            )
        )
    labels = [table[task].truth for table in (reference, monitored)]
    if all(truth is not None and (truth >= 0).any() for truth in labels):
        found += _labelled(statistic, task, reference)
    return found


def _labelled(
    statistic: Callable[..., Statistic], task: str, reference: Predictions
) -> list[Statistic]:
    def known(p: Predictions, values: np.ndarray) -> np.ndarray:
        return np.where(p[task].truth >= 0, values, np.nan)

    def right(p: Predictions) -> np.ndarray:
        return p[task].probabilities.argmax(1) == p[task].truth

    found = [
        statistic(
            "accuracy",
            "accuracy",
            "share of labelled records that were called right",
            True,
            lambda p: known(p, right(p)),
        ),
        statistic(
            "overconfidence",
            "confidence minus accuracy",
            "mean probability of the class called, minus the accuracy; 0 where it is calibrated",
            False,
            lambda p: known(p, p[task].probabilities.max(1) - right(p)),
        ),
    ]
    if reference[task].sets is not None:
        found.append(
            statistic(
                "coverage",
                "coverage",
                "share of labelled records whose prediction set holds the truth",
                True,
                lambda p: known(p, p[task].sets[np.arange(len(p)), np.maximum(p[task].truth, 0)]),
            )
        )
    return found
