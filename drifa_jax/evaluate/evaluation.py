"""The evaluation of a run: answers, metrics with intervals, decisions and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from drifa_jax.evaluate.intervals import NUM_RESAMPLES, TaskMetrics, task_metrics
from drifa_jax.evaluate.records import Answers
from drifa_jax.evaluate.subgroups import (
    SMALLEST_GROUP,
    Subgroup,
    find_columns,
    subgroup_table,
)
from drifa_jax.predict.decisions import REFERRAL_MEASURE, TaskDecisions
from drifa_jax.predict.prediction import Row, TaskPrediction, decide
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
      decisions: the rules; None without.
    """

    classes: tuple[str, ...]
    rows: np.ndarray
    labels: np.ndarray
    answer: TaskPrediction
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
    decisions: TaskDecisions | None

    @property
    def entropy(self) -> np.ndarray:
        """Predictive entropy `[n]`, nats, what ranks the records for referral."""
        return getattr(self.answer.uncertainty, REFERRAL_MEASURE)[self.rows]

    def to_json(self) -> dict[str, Any]:
        return self.metrics.to_json() | {
            "calibration": {name: dict(of) for name, of in self.calibration.items()},
            "selective": dict(self.selective),
            "referral_on_test": {f"{share:g}": asdict(of) for share, of in self.referrals.items()},
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
                "promised": 1 - self.decisions.sets.alpha,
                "coverage": self.set_coverage,
                "mean_size": self.set_size,
            },
            "subgroups": {
                column: {row.name: row.to_json() for row in rows}
                for column, rows in self.subgroups.items()
            },
            "smallest_subgroup": SMALLEST_GROUP,
        }


def evaluate_tasks(
    answers: Answers,
    tasks: Mapping[str, Sequence[str]],
    decisions: Mapping[str, TaskDecisions],
    *,
    columns: Sequence[str] | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, TaskEvaluation]:
    """Every task that has a labelled record.

    Args:
      answers: of the records.
      tasks: task -> class names.
      decisions: task -> frozen rules; empty for none.
      columns: attributes to make subgroups of; None looks for the usual ones.
      num_resamples, seed: of the bootstrap.

    Raises:
      UserError: for a column that the records do not have.

    Test: tests/evaluate/test_evaluation.py.
    """
    columns = find_columns(answers.attributes, columns)
    values = {name: [of.get(name, "") for of in answers.attributes] for name in columns}
    if len({tuple(row) for row in _presence(answers)}) > 1:
        values[MODALITIES_COLUMN] = [
            " + ".join(name for name, held in zip(answers.present, row, strict=True) if held)
            for row in _presence(answers)
        ]
    found = {}
    for task, classes in tasks.items():
        if (answers.labels[task] >= 0).any():
            own = {
                name: of
                for name, of in values.items()
                # `stroke/lesion shows in` says nothing of the tumour.
                if name.rpartition("/")[0] not in set(tasks) - {task}
            }
            found[task] = _evaluate_task(
                answers, task, classes, decisions.get(task), own, num_resamples, seed
            )
    return found


def prediction_rows(answers: Answers, tasks: Mapping[str, TaskEvaluation]) -> list[Row]:
    """One flat row a record: what is known, the answer, and its uncertainty beside it."""
    columns = list(dict.fromkeys(name for of in answers.attributes for name in of))
    rows = []
    called = {task: of.answer.labels for task, of in tasks.items()}
    for number, one in enumerate(answers.record_ids):
        row: Row = {"record_id": one, "group_id": answers.group_ids[number]}
        row |= {name: answers.attributes[number].get(name, "") for name in columns}
        row |= {f"{name}/present": bool(of[number]) for name, of in answers.present.items()}
        for task, of in tasks.items():
            label = int(answers.labels[task][number])
            if task in answers.task_groups:
                row[f"{task}/group_id"] = answers.task_groups[task][number]
            row[f"{task}/true"] = of.classes[label] if label >= 0 else None
            row[f"{task}/predicted"] = called[task][number]
            row[f"{task}/right"] = of.classes[label] == called[task][number] if label >= 0 else None
            row |= of.answer.columns(task, number)
        rows.append(row)
    return rows


def _presence(answers: Answers) -> np.ndarray:
    return np.stack(list(answers.present.values()), 1)


def _evaluate_task(
    answers: Answers,
    task: str,
    classes: Sequence[str],
    decisions: TaskDecisions | None,
    values: Mapping[str, Sequence[str]],
    num_resamples: int,
    seed: int,
) -> TaskEvaluation:
    answer = decide(classes, answers.uncertainty[task], decisions)
    all_labels = answers.labels[task]
    rows = np.flatnonzero(all_labels >= 0)
    y, p = all_labels[rows], answer.probabilities[rows]
    raw = answers.uncertainty[task].probabilities[rows]
    wrong = p.argmax(1) != y
    entropy = getattr(answers.uncertainty[task], REFERRAL_MEASURE)[rows]
    groups = list(answers.groups_of(task))
    options = {"num_resamples": num_resamples, "seed": seed}
    return TaskEvaluation(
        classes=tuple(classes),
        rows=rows,
        labels=y,
        answer=answer,
        probabilities=p,
        raw=raw,
        metrics=task_metrics(answer.probabilities, all_labels, groups, classes, **options),
        subgroups={
            column: subgroup_table(answer.probabilities, all_labels, groups, classes, of, **options)
            for column, of in values.items()
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
        frozen=None if decisions is None else refer(entropy, wrong, decisions.referral),
        certainty=None
        if decisions is None
        else certainty_table(entropy, wrong, decisions.referral),
        set_coverage=None if decisions is None else coverage(answer.sets[rows], y),
        set_size=None if decisions is None else mean_size(answer.sets[rows]),
        decisions=decisions,
    )
