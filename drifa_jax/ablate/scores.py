"""What one trained network said of the test records of a task: all that an ablation compares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drifa_jax.predictions.table import Predictions


@dataclass(frozen=True)
class Scores:
    """The labelled test records of one task, ordered by id.

    Attributes:
      record_ids: `[n]` str, unique; the same record has the same id in every variant.
      groups: `[n]` str, the patient or lesion.
      labels: `[n]` int32.
      probabilities: `[n, k]` float32, without dropout.
    """

    record_ids: np.ndarray
    groups: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray

    @classmethod
    def of_labelled(cls, record_ids, groups, labels, probabilities) -> Scores:
        """From arrays of all records, in any order; those without a label are left out."""
        kept = np.flatnonzero(np.asarray(labels) >= 0)
        record_ids = np.asarray(record_ids, str)[kept]
        order = kept[np.argsort(record_ids, kind="stable")]
        return cls(
            np.sort(record_ids),
            np.asarray(groups, str)[order],
            np.asarray(labels)[order].astype(np.int32),
            np.asarray(probabilities)[order].astype(np.float32),
        )


def scores_of(predictions: Predictions) -> dict[str, Scores]:
    """Task -> scores of its labelled records, under the ids that all variants share."""
    return {
        task: Scores.of_labelled(
            found.record_ids or predictions.record_ids,
            predictions.groups_of(task),
            found.truth,
            found.probabilities,
        )
        for task, found in predictions.tasks.items()
    }
