"""Preparing a set: decode and resize every record once, and store it as ArrayRecord.

Shards are written under a temporary name and renamed when complete, so an interrupted
preparation goes on where it stopped. A folder belongs to one plan (source, sizes, splits,
format): another plan in the same folder is refused rather than mixed.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from array_record.python.array_record_module import ArrayRecordWriter

from drifa_jax.data.problems import Problems
from drifa_jax.data.record import Record, Source
from drifa_jax.data.records import notes_of
from drifa_jax.data.sources import prepared
from drifa_jax.errors import UserError
from drifa_jax.sealed_files import write_sealed
from drifa_jax.whole_files import only_one, written_whole

PLAN_FILE = "plan.json"
QUARANTINE_FILE = "quarantine.csv"
POLICIES = ("fail", "quarantine")
SHARD_SIZE = 2048


@dataclass(frozen=True)
class Outcome:
    """What a preparation did: records written now, written before, and left out."""

    written: int
    resumed: int
    quarantined: int


def prepare(
    splits: Mapping[str, Source],
    output: str | Path,
    *,
    on_problem: str = "fail",
    shard_size: int = SHARD_SIZE,
    num_threads: int = 2,
    progress: Callable[[int], None] = lambda count: None,
) -> Outcome:
    """Store the records of all splits in a folder that `open_prepared` reads.

    Args:
      splits: split -> source; all with the same modalities and tasks.
      output: folder, empty or holding an interrupted preparation of the same plan.
      on_problem: "fail" reads everything and raises all problems at once; "quarantine" leaves
        broken records out and lists them in `quarantine.csv`.
      shard_size: records a shard.
      num_threads: threads that decode; decoding and resizing run outside the interpreter lock.
      progress: called with the number of records done at each step.

    Test: tests/data/test_prepare.py.
    """
    if on_problem not in POLICIES:
        raise ValueError(f"on_problem is {on_problem!r}; choose one of {POLICIES}.")
    output = Path(output)
    plan = _plan(splits, shard_size, on_problem)
    try:
        output.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(output)
        taken = f"{output} is being prepared by another process; wait for it."
        with only_one(output / ".lock", taken):
            _claim(output, plan)
            return _prepare(splits, output, on_problem, shard_size, num_threads, progress)
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror or error}).") from error


def _prepare(splits, output: Path, on_problem, shard_size, num_threads, progress) -> Outcome:
    problems = Problems(f"the records prepared for {output}")
    sizes: dict[str, list[int]] = {}
    written = resumed = 0
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        for split, source in splits.items():
            sizes[split] = []
            for number, start in enumerate(range(0, len(source), shard_size)):
                indices = range(start, min(start + shard_size, len(source)))
                name = f"{split}-{number:05d}"
                if (done := _finished(output, name)) is not None:
                    sizes[split].append(len(done))
                    problems.found += _remembered(done, indices)
                    resumed += len(done)
                    progress(len(indices))
                    continue
                count = _write_shard(
                    source, indices, output / name, pool, problems, on_problem, progress
                )
                sizes[split].append(count)
                written += count
    if on_problem == "fail":
        problems.raise_any(
            "Repair or remove these files, or leave them out with --on-problem quarantine."
        )
    for split, counts in sizes.items():
        if not sum(counts):
            raise UserError(f"{output}: no record of the {split} split could be prepared.")
    if problems:
        problems.write_report(output / QUARANTINE_FILE)
    _finish(output, splits, sizes, problems)
    return Outcome(written, resumed, len(problems))


def _write_shard(source, indices, path: Path, pool, problems, on_problem, progress) -> int:
    """One shard and its index; with the policy "fail", a shard with problems is not kept."""
    before = len(problems)
    pixels, partial = path.with_suffix(".array_record"), path.with_suffix(".partial")
    writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
    rows: list[Record] = []
    attributes: list[str] = []
    try:
        for index, result in _ahead(pool, functools.partial(_read, source), indices):
            if isinstance(result, Record):
                writer.write(prepared.encode_record(result, source.modalities))
                rows.append(Record(result.record_id, result.group_id, {}, result.labels))
                attributes.append(json.dumps(source.attributes(index)))
            else:
                problems.add(source.record_id(index), result)
            progress(1)
    finally:
        writer.close()
    if on_problem == "fail" and len(problems) > before:
        partial.unlink()
        return 0
    columns = {
        "record_id": pa.array([row.record_id for row in rows], pa.string()),
        "group_id": pa.array([row.group_id for row in rows], pa.string()),
        "attributes": pa.array(attributes, pa.string()),
    } | {
        f"label:{task.name}": pa.array([row.labels[task.name] for row in rows], pa.int32())
        for task in source.tasks
    }
    partial.rename(pixels)
    prepared.write_index(path, pa.table(columns), problems.found[before:])
    return len(rows)


def _ahead(pool: ThreadPoolExecutor, read: Callable, indices: range, window: int = 64):
    """(index, read(index)) in order; at most `window` results wait, which bounds the memory."""
    waiting: deque[tuple[int, Future]] = deque()
    for index in indices:
        waiting.append((index, pool.submit(read, index)))
        if len(waiting) >= window:
            done, future = waiting.popleft()
            yield done, future.result()
    while waiting:
        done, future = waiting.popleft()
        yield done, future.result()


def _read(source: Source, index: int) -> Record | str:
    try:
        return source[index]
    except UserError as error:
        return str(error)


def _finished(output: Path, name: str) -> pa.Table | None:
    """The index of a shard that an earlier attempt finished; a damaged one is made again."""
    if not all((output / f"{name}{suffix}").is_file() for suffix in (".parquet", ".array_record")):
        return None
    try:
        return prepared.read_index(output, name)
    except UserError:
        return None


def _remembered(done: pa.Table, indices: range) -> list[tuple[str, str]]:
    """The problems that a finished shard was written with."""
    if len(done) == len(indices):
        return []
    return [tuple(pair) for pair in json.loads(done.schema.metadata.get(b"problems", b"[]"))]


def _plan(splits: Mapping[str, Source], shard_size: int, on_problem: str) -> dict:
    first = next(iter(splits.values()))
    plan = {"format": prepared.FORMAT, "shard_size": shard_size, "on_problem": on_problem}
    plan |= prepared.describe(first)
    plan["splits"] = {}
    for split, source in splits.items():
        if prepared.describe(source) != prepared.describe(first):
            raise ValueError(f"the {split} split has other modalities or tasks than the others")
        digest = hashlib.sha256()
        for task in source.tasks:
            digest.update(source.labels(task.name).tobytes())
        for index in range(len(source)):
            digest.update(f"{source.record_id(index)}\0{source.group_id(index)}\0".encode())
        plan["splits"][split] = {"records": len(source), "digest": digest.hexdigest()}
    return plan


def _refuse_foreign(output: Path) -> None:
    """An error where a folder holds something else; hidden files may be what a kill left."""
    held = any(not found.name.startswith(".") for found in output.iterdir())
    if held and not (output / PLAN_FILE).is_file():
        raise UserError(f"{output} is not empty and holds no preparation; choose another.")


def _claim(output: Path, plan: dict) -> None:
    """Make the folder ours, or go on in it; refuse one of another plan."""
    path = output / PLAN_FILE
    if path.is_file():
        try:
            there = json.loads(path.read_text())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: is damaged ({error}); choose another folder.") from error
        if there != json.loads(json.dumps(plan)):
            there = there if isinstance(there, dict) else {}
            different = sorted(k for k in {*plan, *there} if plan.get(k) != there.get(k))
            raise UserError(
                f"{output} holds a set prepared from another plan (different: "
                f"{', '.join(different)}); versions are not mixed. Choose an empty folder."
            )
        return
    with written_whole(path) as partial:
        partial.write_text(json.dumps(plan, indent=1))


def _finish(
    output: Path,
    splits: Mapping[str, Source],
    sizes: Mapping[str, list[int]],
    problems: Problems,
) -> None:
    first = next(iter(splits.values()))
    notes = [*notes_of(splits.values())]
    if problems:
        what = f"{len(problems)} records with problems, listed in {QUARANTINE_FILE}"
        notes.append(f"{output}: left out: {what}")
    content = {"format": prepared.FORMAT, "description": first.description, "notes": notes}
    content |= prepared.describe(first) | {"splits": dict(sizes)}
    write_sealed(output / prepared.DESCRIPTION_FILE, content)
