"""Predictions tables over time, checked: of this run, each record once, labels of known records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drifa_jax.data.problems import some_of
from drifa_jax.data.record import MISSING_LABEL
from drifa_jax.data.table import is_missing, read_table
from drifa_jax.errors import UserError
from drifa_jax.monitor.periods import by_time, check_periods, column_of, unique_names
from drifa_jax.post_processing.saved import PostProcessing
from drifa_jax.predictions.files import read_predictions
from drifa_jax.predictions.partitions import SEAL, read_partitions
from drifa_jax.predictions.table import Predictions, joined, task_predictions

ID_COLUMN = "record_id"
SITE_COLUMNS = ("site", "scanner", "institution", "manufacturer", "source")
"""Columns by which records are shown apart where they are known and none is asked for."""


@dataclass(frozen=True)
class Monitored:
    """All records of a page.

    Attributes:
      predictions: of all periods, below each other, with labels where they are known.
      period: number of each record's period, `[n]`.
      periods: names, in their order.
      notes: what was left out or is not judged.
    """

    predictions: Predictions
    period: np.ndarray
    periods: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_tables(paths: Sequence[Path]) -> list[tuple[str, Predictions]]:
    """Name and predictions of each argument, a file or a folder of files.

    Raises:
      UserError: naming what is missing, damaged, empty, or no Parquet file.
    """
    found = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist.")
        parts = _read(path)
        for name, part in parts:
            if not len(part):
                raise UserError(f"{name} holds no records.")
            check_same(parts[0][1], part, str(parts[0][0]), str(name))
        name = path.resolve().name.removesuffix(".parquet")
        found.append((name, _joined([part for _, part in parts])))
    for name, part in found[1:]:
        check_same(found[0][1], part, found[0][0], name)
    return found


def _read(path: Path) -> list[tuple[Path, Predictions]]:
    """The tables of one argument: a file, the parts of one prediction, or any files in a folder."""
    if (path / SEAL).is_file():
        return [(path, read_partitions(path))]
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path} holds no .parquet file of `drifa predict --parquet`.")
    if files[0].suffix.lower() != ".parquet":
        raise UserError(
            f"{path}: a table of this kind does not say which network made it; give the Parquet "
            "file, by `drifa predict --parquet`."
        )
    return [(file, read_predictions(file)) for file in files]


def _joined(parts: Sequence[Predictions]) -> Predictions:
    """Parts below each other; without likeness where one of them lacks it."""
    if any(part.out_of_distribution is None for part in parts):
        parts = [dataclasses.replace(part, out_of_distribution=None) for part in parts]
    return joined(parts)


def check_same(first: Predictions, other: Predictions, name: str, other_name: str) -> None:
    """Refuses tables of two networks, or of other samples.

    Raises:
      UserError: naming both and what differs.
    """
    for field in ("identity", "num_samples", "num_members"):
        ours, theirs = (getattr(p.provenance, field) for p in (first, other))
        if ours != theirs:
            raise UserError(
                f"{name} and {other_name} differ in their {field} ({ours} and {theirs}): they are "
                "answers of different networks; predict both by one."
            )


def check_run(predictions: Predictions, reference: Predictions, run: str) -> None:
    """Refuses predictions of another run.

    Raises:
      UserError: naming the runs and their identities.
    """
    ours, theirs = reference.provenance.identity, predictions.provenance.identity
    if ours != theirs:
        made = ", ".join(predictions.provenance.runs) or "an unknown run"
        raise UserError(
            f"The predictions are of another run: {made} with the identity {theirs or 'unknown'}, "
            f"not {run} with {ours}. Name that run, or predict again."
        )


def with_post_processing(predictions: Predictions, fitted: PostProcessing) -> Predictions:
    """Probabilities, sets and referrals by the run's post-processing.

    Predictions without any get them; those of other options are refused.

    Raises:
      UserError: naming the task.
    """
    tasks = {}
    for task, found in predictions.tasks.items():
        made = task_predictions(found.classes, found.uncertainty, fitted.tasks.get(task))
        for mine, theirs in ((made.sets, found.sets), (made.refer, found.refer)):
            if theirs is not None and (mine is None or not np.array_equal(mine, theirs)):
                raise UserError(
                    f"The prediction sets or referrals of {task!r} were made with other options "
                    "(--alpha, --sets, --refer, --class-conditional) than the validation records' "
                    "are; predict with the defaults."
                )
        # Tables with labels and without are one page.
        truth = np.full(len(predictions), MISSING_LABEL) if found.truth is None else found.truth
        tasks[task] = dataclasses.replace(
            made, truth=truth, record_ids=found.record_ids, group_ids=found.group_ids
        )
    return dataclasses.replace(predictions, tasks=tasks)


def monitored(
    tables: Sequence[tuple[str, Predictions]],
    *,
    records: Path | None = None,
    labels: Path | None = None,
    time: str | None = None,
    every: str = "month",
) -> Monitored:
    """All tables below each other, with their periods, attributes and labels.

    Args:
      tables: of `read_tables`; each is one period where `time` is None.
      records: a table with `record_id` and columns such as the time, site or group.
      labels: a table with `record_id` and a column for each task.
      time: the column with the time of each record, in the predictions or in `records`.
      every: length of a period.

    Raises:
      UserError: naming duplicated records, unknown columns, and labels that fit nothing.
    """
    whole = _joined([part for _, part in tables])
    names = unique_names([name for name, _ in tables])
    period = np.repeat(np.arange(len(tables)), [len(part) for _, part in tables])
    _check_duplicates(whole, period, names, labels is not None or records is not None)
    notes: list[str] = []
    if records is not None:
        whole = _with_columns(whole, records, notes)
    if time is not None:
        if time not in whole.attributes:
            known = ", ".join(whole.attributes) or "none"
            raise UserError(
                f"--time {time}: no such column; the predictions know {known}. A table of records "
                f"(--records) with {ID_COLUMN} and {time} brings it."
            )
        period, names = by_time(whole.attributes[time], whole.record_ids, time, every)
    notes += check_periods(period, names)
    if labels is not None:
        whole = _with_labels(whole, labels, notes)
    return Monitored(whole, period, names, tuple(notes))


def _check_duplicates(
    whole: Predictions, period: np.ndarray, names: Sequence[str], ids_must_tell: bool
) -> None:
    """Refuses a record that is there twice: the same name in one table, or with the same answer."""
    first: dict[str, int] = {}
    again = []
    answers = np.concatenate([found.probabilities for found in whole.tasks.values()], 1)
    for row, record in enumerate(whole.record_ids):
        before = first.setdefault(record, row)
        if before != row and (
            ids_must_tell
            or period[before] == period[row]
            or np.array_equal(answers[before], answers[row])
        ):
            again.append(f"{record!r} in {names[period[before]]} and {names[period[row]]}")
    if again:
        raise UserError(
            f"{len(again):,} records are there more than once: {some_of(again)}. A record counts "
            "once; give each table once, and records names of their own."
        )


def _rows_of(path: Path, flag: str) -> dict[str, Mapping[str, str]]:
    rows = read_table(path)
    if not rows or ID_COLUMN not in rows[0]:
        held = ", ".join(rows[0]) if rows else "no rows"
        raise UserError(
            f"{flag} {path}: has no column {ID_COLUMN!r} (it has {held}), so that nobody knows "
            "which record a row is of."
        )
    found: dict[str, Mapping[str, str]] = {}
    for number, row in enumerate(rows, start=2):
        if row[ID_COLUMN] in found and found[row[ID_COLUMN]] != row:
            raise UserError(f"{flag} {path}: line {number} tells {row[ID_COLUMN]!r} otherwise.")
        found[row[ID_COLUMN]] = row
    return found


def _match(rows: Mapping[str, object], whole: Predictions, path: Path, flag: str) -> str:
    """A note on rows that match no record.

    Raises:
      UserError: where none matches.
    """
    known = set(whole.record_ids)
    unknown = [name for name in rows if name not in known]
    if len(unknown) == len(rows):
        raise UserError(
            f"{flag} {path}: none of its records was predicted; it has {some_of(unknown)}, the "
            f"predictions {some_of(list(whole.record_ids))}."
        )
    if not unknown:
        return ""
    return f"{flag}: {len(unknown):,} rows of records that were not predicted: {some_of(unknown)}."


def _with_columns(whole: Predictions, path: Path, notes: list[str]) -> Predictions:
    rows = _rows_of(path, "--records")
    notes += filter(None, [_match(rows, whole, path, "--records")])
    columns = [name for name in next(iter(rows.values())) if name != ID_COLUMN]
    added = {name: column_of(rows, whole.record_ids, name) for name in columns}
    groups = added.pop("group_id", None)
    whole = dataclasses.replace(whole, attributes={**whole.attributes, **added})
    if groups is None:
        return whole
    # A record without a group is its own.
    own = tuple(g or r for g, r in zip(groups, whole.record_ids, strict=True))
    return dataclasses.replace(whole, group_ids=own)


def _with_labels(whole: Predictions, path: Path, notes: list[str]) -> Predictions:
    rows = _rows_of(path, "--labels")
    notes += filter(None, [_match(rows, whole, path, "--labels")])
    held = next(iter(rows.values()))
    tasks = dict(whole.tasks)
    columns = {task: task for task in tasks if task in held}
    if not columns and len(tasks) == 1 and "label" in held:
        columns = dict.fromkeys(tasks, "label")
    if not columns:
        raise UserError(
            f"--labels {path}: has no column of a task ({', '.join(tasks)}); it has "
            f"{', '.join(held)}."
        )
    for task, column in columns.items():
        places = {name: place for place, name in enumerate(tasks[task].classes)}
        truth = np.full(len(whole), MISSING_LABEL)
        for row, text in enumerate(column_of(rows, whole.record_ids, column)):
            if text in places:
                truth[row] = places[text]
            elif not is_missing(text):
                raise UserError(
                    f"--labels {path}: {whole.record_ids[row]!r} is {text!r} in the column "
                    f"{column}, which is no class; they are {', '.join(places)}."
                )
        tasks[task] = dataclasses.replace(tasks[task], truth=truth)
    return dataclasses.replace(whole, tasks=tasks)
