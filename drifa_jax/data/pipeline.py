"""From a source to batches: a Grain pipeline whose content is a pure function of (seed, step).

Resuming needs one integer, the step: the stream that starts at step s equals the one that got
there. Nothing depends on the number of workers, and the global batch does not depend on the
number of processes, each of which gets its slice of it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from absl import flags

from drifa_jax.data.record import MISSING_LABEL, Record, Source
from drifa_jax.data.splits import class_counts

Batch = dict[str, Any]
Transform = Callable[[Record, np.random.Generator], Record]

NUM_THREADS = 4
PREFETCH = 16
PADDING_INDEX = -1


@runtime_checkable
class PairsOnTheFly(Protocol):
    """A source whose records are put together anew in every epoch.

    `stream_sources` are the sources that are drawn from, each shuffled and repeated on its own;
    `pair` makes one record of one index into each.
    """

    stream_sources: tuple[Source, ...]

    def pair(self, indices: Sequence[int]) -> Record: ...


@dataclass(frozen=True)
class _Read:
    source: Source

    def __call__(self, index: int | tuple[int, ...]) -> tuple[int, Record]:
        if isinstance(index, tuple):
            return index[0], self.source.pair(index)
        return index, self.source[index]


@dataclass(frozen=True)
class _Transform:
    transform: Transform

    def __call__(self, item: tuple[int, Record], rng: np.random.Generator) -> tuple[int, Record]:
        index, record = item
        return index, self.transform(record, rng)


@dataclass(frozen=True)
class _DrawWeighted:
    cumulative: np.ndarray

    def __call__(self, _: int, rng: np.random.Generator) -> int:
        return int(np.searchsorted(self.cumulative, rng.random(), side="right"))


@dataclass(frozen=True)
class _ReadOrPad:
    source: Source

    def __call__(self, index: int) -> tuple[int, Record | None]:
        if index >= len(self.source):
            return PADDING_INDEX, None
        return index, self.source[index]


@dataclass(frozen=True)
class _Collate:
    """Records to one batch; a missing modality becomes zeros with `present` False."""

    shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]]
    tasks: tuple[str, ...]

    def __call__(self, items: Sequence[tuple[int, Record | None]]) -> Batch:
        size = len(items)
        images = {m: np.zeros((size, *shape), kind) for m, (shape, kind) in self.shapes.items()}
        present = {m: np.ones(size, bool) for m in self.shapes}
        labels = {task: np.full(size, MISSING_LABEL, np.int32) for task in self.tasks}
        valid = np.zeros(size, bool)
        for row, (_, record) in enumerate(items):
            if record is None:
                continue
            valid[row] = True
            for task, label in record.labels.items():
                labels[task][row] = label
            for modality, target in images.items():
                image = record.images.get(modality)
                if image is None:
                    present[modality][row] = False
                elif image.shape != target.shape[1:]:
                    raise ValueError(
                        f"record {record.record_id!r}: {modality} has the shape {image.shape}, "
                        f"its source announced {target.shape[1:]}"
                    )
                else:
                    target[row] = image
        index = np.array([index for index, _ in items], np.int64)
        return dict(images=images, labels=labels, present=present, valid=valid, index=index)


def training_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    transform: Transform | None = None,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    balanced: str | Sequence[float] | np.ndarray | None = None,
) -> grain.DatasetIterator[Batch]:
    """An endless stream of shuffled, transformed training batches.

    Every epoch is a fresh permutation of all records (of each of its sources, where the source
    pairs on the fly). The transform of a record is keyed by the seed and the record's place in
    the stream, so it changes from epoch to epoch and not with workers or processes.

    Args:
      source: what is read.
      batch_size: records of the global batch.
      seed: draws order, partners and transforms; a non-negative integer below 2**32.
      start_step: number of batches to skip, for an exact resume.
      transform: `(record, generator) -> record`, or None.
      num_workers: processes that read ahead; 0 reads in threads of this process.
      process_index, process_count: which slice of the global batch this process gets.
      balanced: a task, to draw its classes equally often (records without its label are not
        drawn), or one weight per record. Records are then drawn with replacement.

    Returns:
      A Grain iterator of batches: `images`, `labels`, `present`, `valid`, `index`. Call its
      `close` when it has workers.

    Raises:
      ValueError: naming the argument, its value and what is accepted.

    Test: tests/data/test_pipeline.py.
    """
    _check_processes(batch_size, process_index, process_count)
    steps_per_epoch(len(source), batch_size)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; choose an integer from 0 to 2**32 - 1")
    if start_step < 0:
        raise ValueError(f"start_step is {start_step}; it must not be negative")
    stream = _order(source, seed, balanced).map(_Read(source))
    if transform is not None:
        stream = stream.random_map(_Transform(transform), seed=_seed(seed, "transform"))
    stream = stream.batch(
        batch_size // process_count, drop_remainder=True, batch_fn=_collate(source)
    )
    return _iterate(stream[process_index::process_count][start_step:], num_workers)


def evaluation_batches(
    source: Source,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """Every record exactly once and in order; the last batch is padded with `valid` False.

    Padding rows hold zeros, no labels, index -1 and `present` True, so that they cost no second
    compilation and no masked pooling; nothing may be read from them.
    """
    _check_processes(batch_size, process_index, process_count)
    if len(source) == 0:
        raise ValueError(f"{source.description} has no records to evaluate")
    num_rows = -(-len(source) // batch_size) * batch_size
    stream = grain.MapDataset.range(num_rows).map(_ReadOrPad(source))
    stream = stream.batch(
        batch_size // process_count, drop_remainder=True, batch_fn=_collate(source)
    )
    return _iterate(stream[process_index::process_count], num_workers)


def steps_per_epoch(num_records: int, batch_size: int) -> int:
    """Whole batches in one pass over the records; an error when there is not even one."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if num_records < batch_size:
        raise ValueError(
            f"batch_size is {batch_size} but there are only {num_records} records; "
            f"choose a batch_size of at most {num_records}"
        )
    return num_records // batch_size


def class_balanced_weights(source: Source, task: str) -> np.ndarray:
    """Weights per record under which every class that occurs is drawn equally often."""
    labels, counts = source.labels(task), class_counts(source, task)
    weights = np.zeros(len(source))
    labelled = labels != MISSING_LABEL
    weights[labelled] = 1.0 / counts[labels[labelled]]
    return weights


def _order(source: Source, seed: int, balanced) -> grain.MapDataset:
    """The endless order in which records are read: an index, or one per paired source."""
    if not isinstance(source, PairsOnTheFly):
        return _stream(source, seed, 0, balanced)
    if balanced is not None and not isinstance(balanced, str):
        raise ValueError("weights per record have no meaning for random pairs; name a task")
    known = {task.name for task in source.tasks}
    if balanced is not None and balanced not in known:
        raise ValueError(f"balanced names {balanced!r}; the tasks are {sorted(known)}")
    streams = []
    for number, part in enumerate(source.stream_sources):
        # Only the source that the task labels is drawn by class.
        own = balanced if balanced in {task.name for task in part.tasks} else None
        streams.append(_stream(part, seed, number, own))
    return grain.experimental.ZipMapDataset(streams)


def _stream(source: Source, seed: int, number: int, balanced) -> grain.MapDataset:
    """Indices into one source: a fresh permutation in every epoch, or weighted draws."""
    indices = grain.MapDataset.range(len(source))
    if balanced is None:
        return indices.seed(_seed(seed, "order", number)).shuffle().repeat()
    draw = _DrawWeighted(_cumulative(source, balanced))
    return indices.repeat().random_map(draw, seed=_seed(seed, "balanced", number))


def _seed(seed: int, purpose: str, number: int = 0) -> int:
    """A seed of its own for each use: equal seeds would draw equal numbers."""
    entropy = [seed, zlib.crc32(purpose.encode()), number]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _cumulative(source: Source, balanced: str | Sequence[float] | np.ndarray) -> np.ndarray:
    weights = (
        class_balanced_weights(source, balanced)
        if isinstance(balanced, str)
        else np.asarray(balanced, float)
    )
    if weights.shape != (len(source),):
        raise ValueError(f"balanced has shape {weights.shape}; give {len(source)} weights")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise ValueError("balanced must hold finite weights >= 0, not all of them zero")
    # Zero-weight records keep an empty interval; the last bound is exact, so no index beyond it.
    cumulative = np.cumsum(weights / weights.sum())
    cumulative[np.flatnonzero(weights)[-1] :] = 1.0
    return cumulative


def _collate(source: Source) -> _Collate:
    shapes = {spec.name: (spec.shape, spec.dtype) for spec in source.modalities}
    return _Collate(shapes, tuple(task.name for task in source.tasks))


def _check_processes(batch_size: int, process_index: int, process_count: int) -> None:
    if batch_size < 1 or process_count < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size {batch_size} must be a positive multiple of the {process_count} processes"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index is {process_index}; it must be below {process_count}")


def _iterate(stream: grain.MapDataset, num_workers: int) -> grain.DatasetIterator[Batch]:
    options = grain.ReadOptions(num_threads=NUM_THREADS, prefetch_buffer_size=PREFETCH)
    dataset = stream.to_iter_dataset(options)
    if num_workers > 0:
        # Grain's workers read an absl flag, which fails where nobody has parsed flags.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.multiprocessing.MultiprocessingOptions(num_workers=num_workers)
        )
    return iter(dataset)
