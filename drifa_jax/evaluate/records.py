"""The answers of a network to every record of a split, kept chunk by chunk while they are made.

Each chunk is written whole when it is finished. The same evaluation started again reads the
finished chunks and predicts the rest; an evaluation of other weights, samples or records starts
afresh. A record's samples depend on its id alone, so that chunks change no digit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from drifa_jax.data.attributes import attributes_of
from drifa_jax.data.pairing import labelled_parts
from drifa_jax.data.record import MISSING_LABEL, Source, stack_records
from drifa_jax.errors import UserError
from drifa_jax.predict.predictor import Predictor
from drifa_jax.train.run_directory import write_whole
from drifa_jax.uncertainty.measures import Uncertainty
from drifa_jax.whole_files import written_whole

RECORDS_A_CHUNK = 256
PLAN_FILE = "plan.json"
MEASURES = tuple(one.name for one in fields(Uncertainty))


@dataclass(frozen=True)
class Answers:
    """What a network says of `n` records, beside what is known of them.

    Attributes:
      record_ids, group_ids: names.
      attributes: column -> text of each record.
      present: modality -> `[n]` bool.
      labels: task -> `[n]`, negative where missing.
      uncertainty: task -> measures `[n]` of the samples, uncalibrated.
      network_seconds: time that the network took, without reading the images.
      reading_seconds: time that reading and decoding took.
      num_resumed: records whose answers an interrupted evaluation had left.
      task_groups: task -> groups of the records that its labels belong to, where strangers are
        paired: a pair's own group is that of two people, and no patient would recur in it.
    """

    record_ids: tuple[str, ...]
    group_ids: tuple[str, ...]
    attributes: tuple[Mapping[str, str], ...]
    present: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    uncertainty: Mapping[str, Uncertainty]
    network_seconds: float
    reading_seconds: float
    num_resumed: int
    task_groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def groups_of(self, task: str) -> tuple[str, ...]:
        """Groups `[n]` to resample for a task."""
        return self.task_groups.get(task, self.group_ids)

    def __len__(self) -> int:
        return len(self.record_ids)


def answer_records(
    predictor: Predictor,
    source: Source,
    folder: Path,
    *,
    records_a_chunk: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Answers:
    """Predicts all records of a source, going on where an earlier attempt stopped.

    Args:
      predictor: of the run.
      source: of the records.
      folder: for the chunks; made here, removed by who no longer needs it.
      records_a_chunk: lost at most by an interruption; `RECORDS_A_CHUNK` when None.
      progress: called with the records done and their number.

    Test: tests/evaluate/test_records.py.
    """
    if not len(source):
        raise UserError(f"{source.description} holds no records.")
    count = len(source)
    records_a_chunk = records_a_chunk or RECORDS_A_CHUNK
    ids = tuple(source.record_id(i) for i in range(count))
    _prepare_folder(folder, _plan(predictor, source, ids, records_a_chunk))
    chunks, num_resumed = [], 0
    for start in range(0, count, records_a_chunk):
        rows = range(start, min(start + records_a_chunk, count))
        path = folder / f"chunk-{start:08d}.npz"
        chunk = _saved_chunk(path)
        if chunk is None:
            chunk = _answer_chunk(predictor, source, rows)
            _save_chunk(path, chunk)
        else:
            num_resumed += len(rows)
        chunks.append(chunk)
        progress(rows.stop, count)
    joined = {
        name: np.concatenate([chunk[name] for chunk in chunks])
        for name in chunks[0]
        if not name.startswith("seconds/")
    }
    group_ids = tuple(source.group_id(i) for i in range(count))
    return Answers(
        record_ids=ids,
        group_ids=group_ids,
        attributes=tuple(attributes_of(source, i) for i in range(count)),
        present={m.name: joined[f"present/{m.name}"] for m in predictor.description.modalities},
        labels={task: joined[f"label/{task}"] for task in predictor.description.tasks},
        uncertainty={
            task: Uncertainty(**{name: joined[f"{name}/{task}"] for name in MEASURES})
            for task in predictor.description.tasks
        },
        network_seconds=float(sum(chunk["seconds/network"] for chunk in chunks)),
        reading_seconds=float(sum(chunk["seconds/reading"] for chunk in chunks)),
        num_resumed=num_resumed,
        task_groups={
            task: tuple(groups)
            for task in predictor.description.tasks
            if (groups := labelled_parts(source, task)[1]) != list(group_ids)
        },
    )


def _answer_chunk(
    predictor: Predictor, source: Source, rows: Sequence[int]
) -> dict[str, np.ndarray]:
    began = time.perf_counter()
    records = [source[index] for index in rows]
    pixels, present = stack_records(records, predictor.description.modalities)
    labels = {
        task: np.array([record.labels.get(task, MISSING_LABEL) for record in records], np.int32)
        for task in predictor.description.tasks
    }
    read = time.perf_counter()
    names = [record.record_id for record in records]
    uncertainty = predictor.uncertainty(pixels, present, names)
    done = time.perf_counter()
    return (
        {f"present/{name}": of for name, of in present.items()}
        | {f"label/{task}": of for task, of in labels.items()}
        | {
            f"{name}/{task}": getattr(of, name)
            for task, of in uncertainty.items()
            for name in MEASURES
        }
        | {
            "seconds/reading": np.float64(read - began),
            "seconds/network": np.float64(done - read),
        }
    )


def _plan(
    predictor: Predictor, source: Source, ids: Sequence[str], records_a_chunk: int
) -> dict[str, object]:
    """Everything that the answers depend on."""
    return {
        "runs": [str(run.resolve()) for run in predictor.restored.runs],
        "steps": list(predictor.restored.steps),
        "num_samples": predictor.num_samples,
        "seed": predictor.seed,
        "data": source.description,
        "records": hashlib.blake2b("\n".join(ids).encode(), digest_size=8).hexdigest(),
        "num_records": len(ids),
        "records_a_chunk": records_a_chunk,
    }


def _prepare_folder(folder: Path, plan: Mapping[str, object]) -> None:
    path = folder / PLAN_FILE
    try:
        if path.is_file() and json.loads(path.read_text()) == plan:
            return
    except ValueError:
        pass  # a plan that cannot be read is none
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        write_whole(path, json.dumps(plan, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}).") from error


def _save_chunk(path: Path, chunk: Mapping[str, np.ndarray]) -> None:
    try:
        with written_whole(path) as partial:
            np.savez(partial, **chunk)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}).") from error


def _saved_chunk(path: Path) -> dict[str, np.ndarray] | None:
    try:
        # Opened here, because NumPy leaves the file of a damaged archive open.
        with path.open("rb") as file, np.load(file) as stored:
            return dict(stored)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, zipfile.BadZipFile):
        return None  # a damaged chunk is predicted again
