"""Two or more evaluated runs on the same records, brought side by side and tested in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drifa_jax.console import RESEARCH_NOTE
from drifa_jax.errors import UserError
from drifa_jax.evaluate.comparison import TaskComparison, compare_task
from drifa_jax.evaluate.facts import machine
from drifa_jax.evaluate.folders import (
    PREDICTIONS,
)
from drifa_jax.evaluate.intervals import NUM_RESAMPLES, TaskMetrics, task_metrics
from drifa_jax.predictions.files import read_predictions
from drifa_jax.predictions.table import Predictions


@dataclass(frozen=True)
class EvaluatedRun:
    """What an evaluation folder holds, for comparing: its name, itself, and its predictions."""

    name: str
    folder: Path
    predictions: Predictions


def read_evaluation(folder: Path, name: str) -> EvaluatedRun:
    """The predictions of an evaluation folder.

    Raises:
      UserError: where the file is damaged, or its records have no truth or group.
    """
    path = folder / PREDICTIONS[1]
    predictions = read_predictions(path)
    if predictions.group_ids is None or any(t.truth is None for t in predictions.tasks.values()):
        raise UserError(f"{path} holds no truth; delete {folder} and run `drifa evaluate` again.")
    return EvaluatedRun(name, folder, predictions)


def aligned(first: EvaluatedRun, second: EvaluatedRun) -> EvaluatedRun:
    """The second's predictions in the order of the first's records.

    Raises:
      UserError: where they answer other tasks or classes, predict other records, or disagree on
        groups or truth.
    """
    pair = f"{first.folder} and {second.folder}"
    ours, theirs = first.predictions, second.predictions
    if set(ours.tasks) != set(theirs.tasks):
        raise UserError(
            f"{pair} answer different tasks: {sorted(ours.tasks)} against "
            f"{sorted(theirs.tasks)}; only runs of the same tasks can be compared."
        )
    for task, found in ours.tasks.items():
        if found.classes != theirs[task].classes:
            raise UserError(
                f"{pair} know different classes of {task}: {', '.join(found.classes)} against "
                f"{', '.join(theirs[task].classes)}."
            )
    place = {name: i for i, name in enumerate(theirs.record_ids)}
    only_first = [name for name in ours.record_ids if name not in place]
    only_second = sorted(set(place) - set(ours.record_ids))
    if only_first or only_second:
        examples = ", ".join([*only_first[:2], *only_second[:2]])
        raise UserError(
            f"{pair} were tested on different records ({len(only_first)} only in the first, "
            f"{len(only_second)} only in the second, e.g. {examples}). A paired comparison needs "
            "the same test records: train with the same data and split seed, or give both runs "
            "the same data.split_folder."
        )
    moved = theirs.take([place[name] for name in ours.record_ids])
    if any(moved.groups_of(task) != ours.groups_of(task) for task in ours.tasks):
        raise UserError(f"{pair} put the same records into different groups.")
    for task, found in ours.tasks.items():
        if differ := int(np.sum(found.truth != moved[task].truth)):
            raise UserError(f"{pair} disagree on the truth of {differ} records of {task}.")
    return EvaluatedRun(second.name, second.folder, moved)


@dataclass(frozen=True)
class Comparison:
    """Runs against the first of them.

    Attributes:
      runs: aligned; the first is the one that the others are compared with.
      metrics: task -> one for each run.
      pairs: task -> one for each run but the first.
      num_resamples, seed: of the bootstrap.
    """

    runs: tuple[EvaluatedRun, ...]
    metrics: Mapping[str, list[TaskMetrics]]
    pairs: Mapping[str, list[TaskComparison]]
    num_resamples: int
    seed: int

    @property
    def synthetic(self) -> bool:
        return any(run.predictions.provenance.synthetic for run in self.runs)

    def to_json(self) -> dict[str, Any]:
        names = [run.name for run in self.runs]
        return {
            "notice": RESEARCH_NOTE,
            "synthetic": self.synthetic,
            "runs": names,
            "folders": [str(run.folder) for run in self.runs],
            "compared_with": names[0],
            "data": self.runs[0].predictions.provenance.data,
            "num_resamples": self.num_resamples,
            "seed": self.seed,
            "tasks": {
                task: {
                    "runs": {
                        name: metrics.to_json()
                        for name, metrics in zip(names, of_task, strict=True)
                    },
                    "differences": {
                        name: pair.to_json()
                        for name, pair in zip(names[1:], self.pairs[task], strict=True)
                    },
                }
                for task, of_task in self.metrics.items()
            },
            "environment": machine(),
        }


def compare(
    runs: Sequence[EvaluatedRun], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Comparison:
    """All paired tests of each run against the first.

    Raises:
      UserError: where two cannot be compared.

    Test: tests/report/test_comparison_report.py.
    """
    if len(runs) < 2:
        raise UserError("Give at least two runs to compare.")
    together = (runs[0], *(aligned(runs[0], run) for run in runs[1:]))
    options = {"num_resamples": num_resamples, "seed": seed}
    metrics: dict[str, list[TaskMetrics]] = {}
    pairs: dict[str, list[TaskComparison]] = {}
    for task, found in runs[0].predictions.tasks.items():
        labels, groups, classes = found.truth, runs[0].predictions.groups_of(task), found.classes
        if not (labels >= 0).any():
            continue
        of_task = [run.predictions[task].probabilities for run in together]
        metrics[task] = [task_metrics(p, labels, groups, classes, **options) for p in of_task]
        pairs[task] = [
            compare_task(of_task[0], p, labels, groups, classes, **options) for p in of_task[1:]
        ]
    return Comparison(together, metrics, pairs, num_resamples, seed)
