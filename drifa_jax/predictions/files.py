"""The predictions table in files: Parquet for machines, CSV or JSON beside it for people.

Columns: `record_id`, `group_id`, one for each attribute, `<modality>/present`, `ood/distance`,
`ood/p_value` and, for each task, `<task>/record_id` and `group_id` (of pairs of
strangers), `true`, `predicted`, `right`, `p(<class>)`, the
measures in nats, `set` (names joined by `|`), `refer` and `calibration`. What is not known is
empty; columns of which nothing is known but the answer's own are left out. Parquet also holds
`<task>/uncalibrated(<class>)` and `<task>/in set(<class>)`, and in its metadata the provenance.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from drifa_jax.console import harmless
from drifa_jax.digests import sha256
from drifa_jax.errors import UserError
from drifa_jax.post_processing.out_of_distribution import DistanceScores
from drifa_jax.predictions.table import Predictions, Provenance, TaskPredictions
from drifa_jax.uncertainty.measures import assemble
from drifa_jax.whole_files import written_whole

METADATA, CONTENT = b"drifa_jax.predictions", b"drifa_jax.content_sha256"
FORMAT = 1
MEASURES = (
    "predictive_entropy",
    "expected_entropy",
    "mutual_information",
    "predictive_variance",
    "variation_ratio",
    "margin",
)
SUFFIXES = (".csv", ".json", ".parquet")


def to_arrow(predictions: Predictions, *, whole: bool = True) -> pa.Table:
    """The table; without `whole`, only the columns that people read."""
    count = len(predictions)
    columns: dict[str, pa.Array] = {"record_id": pa.array(predictions.record_ids, pa.string())}
    if predictions.group_ids is not None:
        columns["group_id"] = pa.array(predictions.group_ids, pa.string())
    for name, values in predictions.attributes.items():
        columns[_column_of(name)] = pa.array(values, pa.string())
    for name, held in predictions.present.items():
        columns[f"{name}/present"] = pa.array(held)
    scores = predictions.out_of_distribution
    for name in ("distance", "p_value"):
        values = [None] * count if scores is None else getattr(scores, name)
        columns[f"ood/{name}"] = pa.array(values, pa.float64())
    for task, found in predictions.tasks.items():
        columns |= {
            f"{task}/{name}": column for name, column in _task_columns(found, whole).items()
        }
    table = pa.table(columns)
    document = {
        "format": FORMAT,
        "provenance": predictions.provenance.to_json(),
        "attributes": list(predictions.attributes),
        "modalities": list(predictions.present),
        "tasks": {
            task: {"classes": list(found.classes), "notes": list(found.notes)}
            for task, found in predictions.tasks.items()
        },
        "seconds": dict(predictions.seconds),
    }
    document["sha256"] = sha256(document)
    return table.replace_schema_metadata({METADATA: json.dumps(document).encode()})


def flat_rows(predictions: Predictions) -> list[dict[str, Any]]:
    """One row a record: plain numbers and text, the columns named `task/what`."""
    return to_arrow(predictions, whole=False).to_pylist()


def write_predictions(predictions: Predictions, path: Path) -> None:
    """Writes all rows as `.csv`, `.json` or `.parquet`, whole or not at all.

    Raises:
      UserError: for another suffix, or a file that cannot be written.
    """
    with written([path]) as add:
        add(predictions)


def _task_columns(found: TaskPredictions, whole: bool) -> dict[str, pa.Array]:
    count, classes = len(found.probabilities), found.classes
    columns: dict[str, pa.Array] = {}
    names = pa.array(classes, pa.string())
    predicted = found.probabilities.argmax(1)
    for name in ("record_id", "group_id"):
        if (values := getattr(found, f"{name}s")) is not None:
            columns[name] = pa.array(values, pa.string())
    if found.truth is not None:
        unknown = found.truth < 0
        places = pa.array(np.where(unknown, 0, found.truth), mask=unknown)
        columns["true"] = names.take(places)
        columns["right"] = pa.array(predicted == found.truth, mask=unknown)
    columns["predicted"] = names.take(pa.array(predicted))
    for k, name in enumerate(classes):
        columns[f"p({name})"] = pa.array(found.probabilities[:, k])
    for measure in MEASURES:
        columns[measure] = pa.array(getattr(found.uncertainty, measure))
    sets = [None] * count
    if found.sets is not None:
        sets = ["|".join(found.set_of(row)) for row in range(count)]
    columns["set"] = pa.array(sets, pa.string())
    columns["refer"] = pa.array([None] * count if found.refer is None else found.refer, pa.bool_())
    columns["calibration"] = pa.array([found.calibration] * count, pa.string())
    if whole:
        for k, name in enumerate(classes):
            columns[f"uncalibrated({name})"] = pa.array(found.uncertainty.probabilities[:, k])
        if found.sets is not None:
            for k, name in enumerate(classes):
                columns[f"in set({name})"] = pa.array(found.sets[:, k])
    return columns


def from_arrow(table: pa.Table) -> Predictions:
    """The predictions in a table that `to_arrow` made whole.

    Raises:
      ValueError, KeyError or TypeError: where it is another table.
    """
    document = json.loads((table.schema.metadata or {})[METADATA])
    if document["format"] != FORMAT:
        raise ValueError(f"its format is {document['format']}, not {FORMAT}")
    # The cells of a file have a digest of their own.
    if document.pop("sha256") != sha256(document):
        raise ValueError("its metadata are not what was written")
    held = set(table.column_names)

    def texts(name: str) -> tuple[str, ...] | None:
        return tuple(table[name].to_pylist()) if name in held else None

    scores = None
    if not table["ood/distance"].null_count:
        scores = DistanceScores(table["ood/distance"].to_numpy(), table["ood/p_value"].to_numpy())
    tasks = {}
    for task, facts in document["tasks"].items():
        classes = tuple(facts["classes"])

        def by_class(kind: str, task=task, classes=classes) -> np.ndarray:
            return np.stack([table[f"{task}/{kind}({c})"].to_numpy() for c in classes], 1)

        truth = None
        if f"{task}/true" in held:
            place = {name: k for k, name in enumerate(classes)} | {None: -1}
            truth = np.array([place[name] for name in table[f"{task}/true"].to_pylist()], np.int64)
        refer = table[f"{task}/refer"]
        calibration = table[f"{task}/calibration"].to_pylist()
        tasks[task] = TaskPredictions(
            classes,
            by_class("p"),
            assemble(
                by_class("uncalibrated"),
                *(
                    table[f"{task}/{name}"].to_numpy()
                    for name in ("expected_entropy", "predictive_variance", "variation_ratio")
                ),
            ),
            by_class("in set") if f"{task}/in set({classes[0]})" in held else None,
            None if refer.null_count else refer.to_numpy(),
            truth,
            texts(f"{task}/record_id"),
            texts(f"{task}/group_id"),
            calibration[0] if calibration else "none",
            tuple(facts["notes"]),
        )
        if not np.isfinite(tasks[task].probabilities).all():
            raise ValueError(f"a probability of {task!r} is not finite")
    return Predictions(
        texts("record_id"),
        tasks,
        Provenance.from_json(document["provenance"]),
        scores,
        texts("group_id"),
        {name: table[f"{name}/present"].to_numpy() for name in document["modalities"]},
        {name: texts(_column_of(name)) for name in document["attributes"]},
        document["seconds"],
    )


class _Content:
    """A digest of a table's cells, whatever blocks they come in."""

    def __init__(self):
        self._columns: dict[str, Any] = {}

    def add(self, table: pa.Table) -> None:
        for name, column in zip(table.column_names, table.columns, strict=True):
            if pa.types.is_floating(column.type):
                cells = np.ascontiguousarray(column.to_numpy()).tobytes()
            else:
                cells = "".join(f"{cell!r}," for cell in column.to_pylist()).encode()
            self._columns.setdefault(name, hashlib.sha256()).update(cells)

    def hexdigest(self) -> str:
        return sha256({name: found.hexdigest() for name, found in self._columns.items()})


def _column_of(attribute: str) -> str:
    return f"attribute/{attribute}" if attribute in ("record_id", "group_id") else attribute


def read_predictions(path: Path) -> Predictions:
    """The predictions in a Parquet file.

    Raises:
      UserError: where it is missing, damaged or holds another table.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table, written_digest = file.read(), file.metadata.metadata[CONTENT]
        content = _Content()
        content.add(table)
        if written_digest != content.hexdigest().encode():
            raise ValueError("its cells are not what was written")
        return from_arrow(table)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise UserError(
            f"{path} is damaged or was written by an older release ({error}); delete it and make "
            "it again."
        ) from error


@contextmanager
def written(paths: Sequence[Path]) -> Iterator[Callable[[Predictions], None]]:
    """A function that adds predictions to all of the files, whole when the block ends well.

    Raises:
      UserError: for another suffix, or a file that cannot be written.
    """
    for path in paths:
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"{path}: the name must end in one of {', '.join(SUFFIXES)}.")
    try:
        with ExitStack() as stack:
            partials = [stack.enter_context(written_whole(path)) for path in paths]
            adders = [stack.enter_context(OPENERS[path.suffix.lower()](path)) for path in partials]

            def write(predictions: Predictions) -> None:
                for add in adders:
                    add(predictions)

            yield write
    except OSError as error:
        names = ", ".join(str(path) for path in paths)
        raise UserError(f"{names}: cannot be written ({error.strerror or error}).") from error


@contextmanager
def _parquet(path: Path) -> Iterator[Callable[[Predictions], None]]:
    with ExitStack() as stack:
        writer, content = None, _Content()

        def add(predictions: Predictions) -> None:
            nonlocal writer
            table = to_arrow(predictions)
            content.add(table)
            if writer is None:
                made = pq.ParquetWriter(path, table.schema, write_page_checksum=True)
                writer = stack.enter_context(made)
            writer.write_table(table.cast(writer.schema))

        yield add
        if writer is not None:
            writer.add_key_value_metadata({CONTENT: content.hexdigest()})


@contextmanager
def _csv(path: Path) -> Iterator[Callable[[Predictions], None]]:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        started = False

        def add(predictions: Predictions) -> None:
            nonlocal started
            table = to_arrow(predictions, whole=False)
            if not started:
                writer.writerow([harmless(name) for name in table.column_names])
                started = True
            columns = [
                [harmless(cell) for cell in column.to_pylist()]
                if pa.types.is_string(column.type)
                else column.to_pylist()
                for column in table.columns
            ]
            writer.writerows(zip(*columns, strict=True))

        yield add


@contextmanager
def _json(path: Path) -> Iterator[Callable[[Predictions], None]]:
    with path.open("w") as file:
        before = "[\n"

        def add(predictions: Predictions) -> None:
            nonlocal before
            for row in flat_rows(predictions):
                file.write(before + json.dumps(row))
                before = ",\n"

        yield add
        file.write("\n]\n")


OPENERS = {".csv": _csv, ".json": _json, ".parquet": _parquet}
"""Suffix -> how a file of it is opened; yields a function that adds predictions."""


def write_csv(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Writes any flat rows of equal keys as CSV, with names that no spreadsheet runs."""
    with path.open("w", newline="") as file:
        writer = None
        for row in rows:
            if writer is None:
                writer = csv.writer(file)
                writer.writerow([harmless(name) for name in row])
            writer.writerow([harmless(cell) for cell in row.values()])
