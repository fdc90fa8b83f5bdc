"""The answers of a network to every record of a split, kept chunk by chunk while they are made.

Each chunk is a predictions table, written whole when it is finished. The same evaluation started
again reads the finished chunks and predicts the rest; an evaluation of other weights, samples,
post-processing or records starts afresh. A record's samples depend on its id alone, so that
chunks change no digit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from drifa_jax.data.pairing import labelled_parts
from drifa_jax.data.record import Source
from drifa_jax.data.records import as_records
from drifa_jax.errors import UserError
from drifa_jax.predict.predictor import Predictor
from drifa_jax.predict.streaming import read_blocks
from drifa_jax.predictions.files import read_predictions, write_predictions
from drifa_jax.predictions.table import Predictions, joined
from drifa_jax.train.run_directory import write_whole

RECORDS_A_CHUNK = 256
PLAN_FILE = "plan.json"


def answer_records(
    predictor: Predictor,
    source: Source,
    folder: Path,
    *,
    records_a_chunk: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Predictions, int]:
    """Predicts all records of a source, going on where an earlier attempt stopped.

    Args:
      predictor: of the run.
      source: of the records.
      folder: for the chunks; made here, removed by who no longer needs it.
      records_a_chunk: lost at most by an interruption; `RECORDS_A_CHUNK` when None.
      progress: called with the records done and their number.

    Returns:
      The predictions, and how many of them an interrupted evaluation had left.

    Test: tests/evaluate/test_records.py.
    """
    if not len(source):
        raise UserError(f"{source.description} holds no records.")
    count = len(source)
    size = records_a_chunk or RECORDS_A_CHUNK
    ids = [source.record_id(i) for i in range(count)]
    _prepare_folder(folder, _plan(predictor, source, ids, size))
    chunks, num_resumed = [], 0
    for start in range(0, count, size):
        path = folder / f"chunk-{start:08d}.parquet"
        rows = range(start, min(start + size, count))
        chunk = _saved_chunk(path)
        if chunk is None:
            chunk = _answer_chunk(predictor, source, rows)
            write_predictions(chunk, path)
        else:
            num_resumed += len(rows)
        chunks.append(chunk)
        progress(rows.stop, count)
    return with_source(joined(chunks), source), num_resumed


def with_source(predictions: Predictions, source: Source) -> Predictions:
    """Predictions of all records of a source, with what it knows of them beside."""
    records = as_records(source)
    group_ids = tuple(records.groups)
    attributes = [records.attributes(i) for i in range(len(records))]
    tasks = {}
    for task, found in predictions.tasks.items():
        ids, groups = (tuple(names) for names in labelled_parts(records, task))
        tasks[task] = replace(
            found,
            record_ids=None if ids == predictions.record_ids else ids,
            group_ids=None if groups == group_ids else groups,
        )
    return replace(
        predictions,
        tasks=tasks,
        group_ids=group_ids,
        attributes={
            name: tuple(values.get(name, "") for values in attributes)
            for name in dict.fromkeys(name for values in attributes for name in values)
        },
        provenance=replace(
            predictions.provenance,
            split="test",
            data=source.description,
            synthetic=predictions.provenance.synthetic or source.synthetic,
        ),
    )


def _answer_chunk(predictor: Predictor, source: Source, rows: range) -> Predictions:
    began = time.perf_counter()
    pixels, present, labels, names = next(
        read_blocks(predictor.description, source, start=rows.start, size=len(rows))
    )
    read = time.perf_counter()
    found = predictor.predict(pixels, present, names)
    done = time.perf_counter()
    return replace(
        found,
        tasks={task: replace(answer, truth=labels[task]) for task, answer in found.tasks.items()},
        seconds={"reading": read - began, "network": done - read},
    )


def _plan(
    predictor: Predictor, source: Source, ids: Sequence[str], records_a_chunk: int
) -> dict[str, object]:
    """Everything that the answers depend on."""
    fitted = predictor.post_processing
    tasks = {} if fitted is None else fitted.tasks
    frozen = {task: found.to_json() for task, found in tasks.items()}
    return {
        "provenance": asdict(predictor.provenance),
        "post_processing": _digest(json.dumps(frozen, sort_keys=True)),
        "data": source.description,
        "records": _digest("\n".join(ids)),
        "num_records": len(ids),
        "records_a_chunk": records_a_chunk,
    }


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _prepare_folder(folder: Path, plan: Mapping[str, object]) -> None:
    path = folder / PLAN_FILE
    text = json.dumps(plan, indent=2) + "\n"
    try:
        if path.is_file() and path.read_bytes() == text.encode():
            return
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        write_whole(path, text)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}).") from error


def _saved_chunk(path: Path) -> Predictions | None:
    if not path.is_file():
        return None
    try:
        return read_predictions(path)
    except UserError:
        return None  # a damaged chunk is predicted again
