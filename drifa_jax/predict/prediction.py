"""What a prediction says, as typed values and as rows of a table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drifa_jax.errors import UserError
from drifa_jax.predict.decisions import REFERRAL_MEASURE, TaskDecisions
from drifa_jax.predict.foreign import ForeignScores
from drifa_jax.uncertainty.measures import Uncertainty
from drifa_jax.whole_files import written_whole

SHOWN_MEASURES = (
    "predictive_entropy",
    "expected_entropy",
    "mutual_information",
    "predictive_variance",
    "variation_ratio",
    "margin",
)
Row = dict[str, Any]


@dataclass(frozen=True)
class TaskPrediction:
    """One task's answer for `b` records.

    Attributes:
      classes: names, in the order of the axis `k`.
      probabilities: `[b, k]`, mean over members and samples, calibrated where there are rules.
      uncertainty: measures of the samples, `[b]` each, in nats, before calibration.
      sets: `[b, k]` bool, the prediction sets; None without rules.
      refer: `[b]` bool, whether a human should look first; None without rules.
    """

    classes: tuple[str, ...]
    probabilities: np.ndarray
    uncertainty: Uncertainty
    sets: np.ndarray | None = None
    refer: np.ndarray | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Name of the most probable class of each record."""
        return tuple(self.classes[k] for k in np.argmax(self.probabilities, -1))

    def columns(self, task: str, row: int) -> Row:
        """Probabilities, uncertainty, prediction set and referral of one record, `task/what`."""
        columns: Row = {
            f"{task}/p({name})": float(p)
            for name, p in zip(self.classes, self.probabilities[row], strict=True)
        }
        for measure in SHOWN_MEASURES:
            columns[f"{task}/{measure}"] = float(getattr(self.uncertainty, measure)[row])
        names = self.set_of(row)
        columns[f"{task}/set"] = None if names is None else "|".join(names)
        columns[f"{task}/refer"] = None if self.refer is None else bool(self.refer[row])
        return columns

    def set_of(self, row: int) -> tuple[str, ...] | None:
        """Names in the prediction set of one record; None without rules.

        An empty set means that no class fits as well as the validation records' own did.
        """
        if self.sets is None:
            return None
        return tuple(name for name, held in zip(self.classes, self.sets[row], strict=True) if held)


@dataclass(frozen=True)
class Prediction:
    """All tasks' answers. `prediction["tumour"].labels[0]` is the first record's diagnosis.

    Attributes:
      record_ids: names of the records, in the order of the axis `b`.
      tasks: task -> its answer.
      num_members, num_samples: the draws behind it.
      foreign: how unlike the validation records each record is; None without rules.
    """

    record_ids: tuple[str, ...]
    tasks: Mapping[str, TaskPrediction]
    num_members: int
    num_samples: int
    foreign: ForeignScores | None = None

    def __getitem__(self, task: str) -> TaskPrediction:
        return self.tasks[task]

    def __len__(self) -> int:
        return len(self.record_ids)

    def rows(self) -> list[Row]:
        """One flat row a record: plain numbers and text, the columns named `task/what`."""
        labels = {task: of.labels for task, of in self.tasks.items()}
        return [self._row(number, one, labels) for number, one in enumerate(self.record_ids)]

    def _row(self, number: int, record_id: str, labels: Mapping[str, Sequence[str]]) -> Row:
        row: Row = {"record_id": record_id}
        of_record = self.foreign
        row["ood/distance"] = None if of_record is None else float(of_record.distance[number])
        row["ood/p_value"] = None if of_record is None else float(of_record.p_value[number])
        for task, of in self.tasks.items():
            row[f"{task}/predicted"] = labels[task][number]
            row |= of.columns(task, number)
        return row

    def write(self, path: Path) -> None:
        """Writes all rows as `.csv`, `.json` or `.parquet`, whole or not at all."""
        write = WRITERS.get(path.suffix.lower())
        if write is None:
            raise UserError(f"{path}: the name must end in one of {', '.join(WRITERS)}.")
        try:
            with written_whole(path) as partial:
                write(self.rows(), partial)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}).") from error


def decide(
    classes: Sequence[str], uncertainty: Uncertainty, decisions: TaskDecisions | None
) -> TaskPrediction:
    """A task's answer from its uncertainty and the frozen rules, where there are any."""
    raw = uncertainty.probabilities
    if decisions is None:
        return TaskPrediction(tuple(classes), raw, uncertainty)
    return TaskPrediction(
        tuple(classes),
        decisions.calibrator(raw),
        uncertainty,
        decisions.sets(raw),
        getattr(uncertainty, REFERRAL_MEASURE) > decisions.referral,
    )


def _write_csv(rows: list[Row], path: Path) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue())


def _write_json(rows: list[Row], path: Path) -> None:
    path.write_text(json.dumps(rows, indent=2) + "\n")


def _write_parquet(rows: list[Row], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


WRITERS = {".csv": _write_csv, ".json": _write_json, ".parquet": _write_parquet}
"""Suffix -> how rows are written."""
