"""The predictions table: what a network says of records, and what is known of them.

One schema, written and read by the test at the end of training, by evaluate, compare, ablate,
predict and export alike. A table is Arrow in a file and plain arrays in memory; see
`predictions.files` for its columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

from drifa_jax.post_processing.out_of_distribution import DistanceScores
from drifa_jax.post_processing.task import TaskPostProcessing
from drifa_jax.uncertainty.measures import Uncertainty, concatenated, from_samples


@dataclass(frozen=True)
class Provenance:
    """Where predictions came from.

    Attributes:
      runs: run directories, or the exported file.
      identity: digest of the weights and preprocessing; "" where it was not kept.
      steps: training step of each member's weights.
      num_members, num_samples: the draws behind each answer; 0 samples are one pass without
        dropout.
      seed: of the samples.
      post_processing: what it was fitted on; "" where there was none.
      split, data: of the records, in words.
      synthetic: whether the network was trained on drawn data, or the records were drawn.
    """

    runs: tuple[str, ...] = ()
    identity: str = ""
    steps: tuple[int, ...] = ()
    num_members: int = 1
    num_samples: int = 0
    seed: int = 0
    post_processing: str = ""
    split: str = ""
    data: str = ""
    synthetic: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Provenance:
        return cls(**{**values, "runs": tuple(values["runs"]), "steps": tuple(values["steps"])})


@dataclass(frozen=True)
class TaskPredictions:
    """One task's answers to `n` records.

    Attributes:
      classes: names, in the order of the axis `k`.
      probabilities: `[n, k]`, mean over members and samples, calibrated where that was fitted.
      uncertainty: measures of the samples, `[n]` each, in nats, before calibration.
      sets: `[n, k]` bool, the prediction sets; None without post-processing.
      refer: `[n]` bool, whether a human should look first; None without a threshold.
      truth: `[n]` int, negative where missing; None where nothing is known.
      record_ids, group_ids: of the records that the labels belong to, where they are not the
        predicted ones: of strangers that were paired, a pair's own group is that of two people,
        and no patient would recur in it.
      calibration: how probabilities were calibrated.
      notes: what post-processing could not promise, in words.
    """

    classes: tuple[str, ...]
    probabilities: np.ndarray
    uncertainty: Uncertainty
    sets: np.ndarray | None = None
    refer: np.ndarray | None = None
    truth: np.ndarray | None = None
    record_ids: tuple[str, ...] | None = None
    group_ids: tuple[str, ...] | None = None
    calibration: str = "none"
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """Name of the most probable class of each record."""
        return tuple(self.classes[k] for k in np.argmax(self.probabilities, -1))

    def set_of(self, row: int) -> tuple[str, ...] | None:
        """Names in the prediction set of one record; None without post-processing.

        An empty set means that no class fits as well as the validation records' own did.
        """
        if self.sets is None:
            return None
        return tuple(name for name, held in zip(self.classes, self.sets[row], strict=True) if held)

    def take(self, rows: np.ndarray) -> TaskPredictions:
        """Some of the records, in this order."""

        def taken(values):
            return None if values is None else values[rows]

        def named(values):
            return None if values is None else tuple(values[i] for i in rows)

        measures = [getattr(self.uncertainty, f.name)[rows] for f in fields(Uncertainty)]
        return replace(
            self,
            probabilities=self.probabilities[rows],
            uncertainty=Uncertainty(*measures),
            sets=taken(self.sets),
            refer=taken(self.refer),
            truth=taken(self.truth),
            record_ids=named(self.record_ids),
            group_ids=named(self.group_ids),
        )


@dataclass(frozen=True)
class Predictions:
    """All tasks' answers. `predictions["tumour"].labels[0]` is the first record's diagnosis.

    Attributes:
      record_ids: names of the records, in the order of the axis `n`.
      tasks: task -> its answers.
      provenance: what made them.
      out_of_distribution: how unlike the validation records each record is; None where that was
        not fitted.
      group_ids: of the records; None where unknown.
      present: modality -> `[n]` bool; empty where unknown.
      attributes: column -> text of each record.
      seconds: what making them took: "network" and "reading".
    """

    record_ids: tuple[str, ...]
    tasks: Mapping[str, TaskPredictions]
    provenance: Provenance = Provenance()
    out_of_distribution: DistanceScores | None = None
    group_ids: tuple[str, ...] | None = None
    present: Mapping[str, np.ndarray] = field(default_factory=dict)
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __getitem__(self, task: str) -> TaskPredictions:
        return self.tasks[task]

    def __len__(self) -> int:
        return len(self.record_ids)

    @property
    def num_members(self) -> int:
        return self.provenance.num_members

    @property
    def num_samples(self) -> int:
        return self.provenance.num_samples

    def groups_of(self, task: str) -> tuple[str, ...]:
        """Groups `[n]` to resample for a task; each record its own where none is known."""
        return self.tasks[task].group_ids or self.group_ids or self.record_ids

    def take(self, rows: Sequence[int]) -> Predictions:
        """Some of the records, in this order."""
        rows = np.asarray(rows, int)

        def named(values):
            return None if values is None else tuple(values[i] for i in rows)

        scores = self.out_of_distribution
        return replace(
            self,
            record_ids=named(self.record_ids),
            tasks={task: found.take(rows) for task, found in self.tasks.items()},
            out_of_distribution=None
            if scores is None
            else DistanceScores(scores.distance[rows], scores.p_value[rows]),
            group_ids=named(self.group_ids),
            present={name: held[rows] for name, held in self.present.items()},
            attributes={name: named(values) for name, values in self.attributes.items()},
        )


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Parts of one table below each other; provenance and notes are the first's."""
    first = parts[0]
    if len(parts) == 1:
        return first

    tasks = {task: _joined_task([part.tasks[task] for part in parts]) for task in first.tasks}
    seconds: Counter[str] = Counter()
    for part in parts:
        seconds.update(part.seconds)
    # A column that only some parts know is empty in the others.
    columns = dict.fromkeys(name for part in parts for name in part.attributes)
    return replace(
        first,
        record_ids=_names([part.record_ids for part in parts]),
        tasks=tasks,
        out_of_distribution=None
        if first.out_of_distribution is None
        else DistanceScores(
            np.concatenate([part.out_of_distribution.distance for part in parts]),
            np.concatenate([part.out_of_distribution.p_value for part in parts]),
        ),
        group_ids=_names([part.group_ids for part in parts]),
        present={m: np.concatenate([part.present[m] for part in parts]) for m in first.present},
        attributes={
            name: _names([part.attributes.get(name, ("",) * len(part)) for part in parts])
            for name in columns
        },
        seconds=dict(seconds),
    )


def _joined_task(parts: Sequence[TaskPredictions]) -> TaskPredictions:
    def arrays(name: str) -> np.ndarray | None:
        values = [getattr(part, name) for part in parts]
        return None if any(x is None for x in values) else np.concatenate(values)

    return replace(
        parts[0],
        probabilities=arrays("probabilities"),
        uncertainty=concatenated([part.uncertainty for part in parts]),
        sets=arrays("sets"),
        refer=arrays("refer"),
        truth=arrays("truth"),
        record_ids=_names([part.record_ids for part in parts]),
        group_ids=_names([part.group_ids for part in parts]),
    )


def _names(parts: Sequence[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    if any(part is None for part in parts):
        return None
    return tuple(name for part in parts for name in part)


def task_predictions(
    classes: Sequence[str], uncertainty: Uncertainty, fitted: TaskPostProcessing | None = None
) -> TaskPredictions:
    """A task's answers from its uncertainty and the frozen post-processing, where there is any."""
    raw = uncertainty.probabilities
    if fitted is None:
        return TaskPredictions(tuple(classes), raw, uncertainty)
    return TaskPredictions(
        tuple(classes),
        fitted.calibrator(raw),
        uncertainty,
        fitted.sets(raw),
        fitted.refers(uncertainty),
        calibration=fitted.calibrator.method,
        notes=fitted.notes,
    )


def from_member_probabilities(classes: Sequence[str], members: np.ndarray) -> TaskPredictions:
    """A task's answers of members that were asked once each, without dropout: `[e, n, k]`."""
    return task_predictions(classes, from_samples(np.asarray(members, np.float64)[:, None]))
