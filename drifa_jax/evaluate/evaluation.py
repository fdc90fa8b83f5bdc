"""The evaluation of a run: metrics with intervals, post-processing and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from drifa_jax.evaluate.intervals import NUM_RESAMPLES, TaskMetrics, task_metrics
from drifa_jax.evaluate.subgroups import (
    SMALLEST_GROUP,
    Subgroup,
    find_columns,
    subgroup_table,
)
from drifa_jax.post_processing.task import REFERRAL_MEASURE, TaskPostProcessing
from drifa_jax.predictions.table import Predictions, TaskPredictions
from drifa_jax.uncertainty.calibration import calibration_metrics
from drifa_jax.uncertainty.conformal import coverage, mean_size
from drifa_jax.uncertainty.selective import (
    CertaintyTable,
    Referral,
    augrc,
    aurc,
    certainty_table,
    error_detection_auroc,
    excess_aurc,
    refer,
)

REFERRED_SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)
MODALITIES_COLUMN = "modalities present"


@dataclass(frozen=True)
class TaskEvaluation:
    """One task on the test records; arrays are over those that have a label.

    Attributes:
      classes: names.
      rows: `[n]` places of the labelled records among all.
      labels: `[n]`.
      answer: what the network says of all records, calibrated where there are rules.
      probabilities: `[n, k]` of the answer; what `metrics` are of.
      raw: `[n, k]` before calibration.
      metrics: with intervals.
      subgroups: column -> its values.
      calibration: "raw" and "shown" -> calibration metrics.
      wrong: `[n]` bool.
      selective: name -> figure of the ranking of errors by uncertainty.
      referrals: share of test records referred -> what it does; thresholds are those of the
        test records themselves, a description and no rule.
      frozen: the referral rule that was fitted on validation records; None without rules.
      certainty: at that rule's threshold; None without rules.
      set_coverage, set_size: of the prediction sets; None without rules.
      post_processing: what made sets and referrals, one for each fold; empty without.
    """

    classes: tuple[str, ...]
    rows: np.ndarray
    labels: np.ndarray
    answer: TaskPredictions
    probabilities: np.ndarray
    raw: np.ndarray
    metrics: TaskMetrics
    subgroups: Mapping[str, list[Subgroup]]
    calibration: Mapping[str, Mapping[str, float]]
    wrong: np.ndarray
    selective: Mapping[str, float | None]
    referrals: Mapping[float, Referral]
    frozen: Referral | None
    certainty: CertaintyTable | None
    set_coverage: float | None
    set_size: float | None
    post_processing: tuple[TaskPostProcessing, ...]

    @property
    def threshold(self) -> float | None:
        """Above which entropy records are referred; None without one, or with one for each fold."""
        return self.post_processing[0].referral if len(self.post_processing) == 1 else None

    @property
    def promised(self) -> float | None:
        """Share of records whose set should hold the truth; None without sets."""
        return 1 - self.post_processing[0].sets.alpha if self.post_processing else None

    @property
    def entropy(self) -> np.ndarray:
        """Predictive entropy `[n]`, nats, what ranks the records for referral."""
        return getattr(self.answer.uncertainty, REFERRAL_MEASURE)[self.rows]

    def to_json(self) -> dict[str, Any]:
        return self.metrics.to_json() | {
            "calibration": {name: dict(found) for name, found in self.calibration.items()},
            "selective": dict(self.selective),
            "referral_on_test": {
                f"{share:g}": asdict(found) for share, found in self.referrals.items()
            },
            "referral_frozen": None if self.frozen is None else asdict(self.frozen),
            "certainty": None
            if self.certainty is None
            else asdict(self.certainty)
            | {
                name: getattr(self.certainty, name)
                for name in ("accuracy", "sensitivity", "specificity", "precision")
            },
            "prediction_sets": None
            if self.set_coverage is None
            else {
                "promised": self.promised,
                "coverage": self.set_coverage,
                "mean_size": self.set_size,
            },
            "subgroups": {
                column: {row.name: row.to_json() for row in rows}
                for column, rows in self.subgroups.items()
            },
            "smallest_subgroup": SMALLEST_GROUP,
            "post_processing": [found.to_json() for found in self.post_processing],
        }


def evaluate_tasks(
    predictions: Predictions,
    post_processing: Mapping[str, Sequence[TaskPostProcessing]],
    *,
    columns: Sequence[str] | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, TaskEvaluation]:
    """Every task that has a labelled record.

    Args:
      predictions: with what is known of the records.
      post_processing: task -> what made sets and referrals, one for each fold; empty for none.
      columns: attributes to make subgroups of; None looks for the usual ones.
      num_resamples, seed: of the bootstrap.

    Raises:
      UserError: for a column that the records do not have.

    Test: tests/evaluate/test_evaluation.py.
    """
    names = find_columns(list(predictions.attributes), columns)
    values: dict[str, Sequence[str]] = {name: predictions.attributes[name] for name in names}
    presence = np.stack(list(predictions.present.values()), 1) if predictions.present else None
    if presence is not None and len(np.unique(presence, axis=0)) > 1:
        values[MODALITIES_COLUMN] = [
            " + ".join(name for name, held in zip(predictions.present, row, strict=True) if held)
            for row in presence
        ]
    tasks = predictions.tasks
    return {
        task: _evaluate_task(
            predictions,
            task,
            tuple(post_processing.get(task, ())),
            # `stroke/lesion shows in` says nothing of the tumour.
            {n: v for n, v in values.items() if n.rpartition("/")[0] not in set(tasks) - {task}},
            num_resamples,
            seed,
        )
        for task, found in tasks.items()
        if found.truth is not None and (found.truth >= 0).any()
    }


def _evaluate_task(
    predictions: Predictions,
    task: str,
    fitted: tuple[TaskPostProcessing, ...],
    values: Mapping[str, Sequence[str]],
    num_resamples: int,
    seed: int,
) -> TaskEvaluation:
    answer = predictions[task]
    classes, all_labels = answer.classes, answer.truth
    rows = np.flatnonzero(all_labels >= 0)
    y, p = all_labels[rows], answer.probabilities[rows]
    raw = answer.uncertainty.probabilities[rows]
    wrong = p.argmax(1) != y
    entropy = getattr(answer.uncertainty, REFERRAL_MEASURE)[rows]
    groups = predictions.groups_of(task)
    options = {"num_resamples": num_resamples, "seed": seed}
    threshold = fitted[0].referral if len(fitted) == 1 else None
    return TaskEvaluation(
        classes=tuple(classes),
        rows=rows,
        labels=y,
        answer=answer,
        probabilities=p,
        raw=raw,
        metrics=task_metrics(answer.probabilities, all_labels, groups, classes, **options),
        subgroups={
            column: subgroup_table(answer.probabilities, all_labels, groups, classes, v, **options)
            for column, v in values.items()
        },
        calibration={"raw": calibration_metrics(raw, y), "shown": calibration_metrics(p, y)},
        wrong=wrong,
        selective={
            "aurc": aurc(entropy, wrong),
            "excess_aurc": excess_aurc(entropy, wrong),
            "augrc": augrc(entropy, wrong),
            "error_detection_auroc": error_detection_auroc(entropy, wrong),
        },
        referrals={
            share: refer(entropy, wrong, float(np.quantile(entropy, 1 - share)))
            for share in REFERRED_SHARES
        },
        frozen=None if threshold is None else refer(entropy, wrong, threshold),
        certainty=None if threshold is None else certainty_table(entropy, wrong, threshold),
        set_coverage=None if not fitted else coverage(answer.sets[rows], y),
        set_size=None if not fitted else mean_size(answer.sets[rows]),
        post_processing=fitted,
    )
