"""What a reader must know beside the scores: the data and their splits, the cost, the machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from drifa_jax.config import DataConfig
from drifa_jax.data.dataset import Dataset
from drifa_jax.data.splits import class_counts, group_ids, leaking_groups
from drifa_jax.predict.predictor import Predictor
from drifa_jax.sealed_files import unsealed
from drifa_jax.train.run_directory import environment
from drifa_jax.train.step_times import PERFORMANCE_FILE, process_peak_bytes


@dataclass(frozen=True)
class SplitSummary:
    """One split: its records, groups, and labelled records of each class of each task."""

    description: str
    num_records: int
    num_groups: int
    class_counts: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Leakage:
    """What could make a test score too good.

    Attributes:
      shared_records: record ids in more than one split.
      shared_groups: groups (patients) in more than one split.
      single_groups: whether every record is its own group, so that nothing is known of patients.
      duplicates: images of training records that held-out records have as well and that were
        removed; None where they were not removed.
      duplicates_share_a_split: whether splits were drawn so that near duplicates share one.
    """

    shared_records: int
    shared_groups: int
    single_groups: bool
    duplicates: int | None
    duplicates_share_a_split: bool = False


@dataclass(frozen=True)
class PartSummary:
    """One modality of one split before strangers were paired."""

    num_records: int
    num_groups: int


@dataclass(frozen=True)
class DataSummary:
    """The splits of a run, and how well they are kept apart.

    Attributes:
      splits: split -> its records.
      leakage: what could make a score too good.
      synthetic: whether the data were drawn.
      parts: modality -> split -> what was paired; empty where nobody was paired.
      notes: what was left out or guessed where the records were found, a line each.
    """

    splits: Mapping[str, SplitSummary]
    leakage: Leakage
    synthetic: bool
    parts: Mapping[str, Mapping[str, PartSummary]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingCost:
    """What training cost, of all runs together, as they logged it; None where one did not.

    Attributes:
      seconds: with compilation, validation and saving, over all attempts of the runs.
      num_runs, num_attempts: an interrupted run took several attempts.
      records_per_second: of the last attempt, after its first step; the mean over runs.
      peak_memory_bytes: of the accelerator where it tells, else of the process; the largest.
      devices: number and kind.
    """

    seconds: float | None = None
    num_runs: int = 1
    num_attempts: int = 1
    records_per_second: float | None = None
    peak_memory_bytes: int | None = None
    devices: str = ""


@dataclass(frozen=True)
class Cost:
    """What the network costs.

    Attributes:
      num_parameters: of one member.
      flops: of one pass of one record through one member, as XLA counts them before it
        optimises; None where it does not tell.
      seconds_per_record: of all members and samples, measured in this evaluation.
      peak_memory_bytes: of the process, or of the accelerator where it tells.
      training: what training cost.
    """

    num_parameters: int
    flops: float | None
    seconds_per_record: float
    peak_memory_bytes: int
    training: TrainingCost

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise_data(dataset: Dataset, config: DataConfig) -> DataSummary:
    """The splits as they were trained on, read without decoding an image."""
    drawn_here = config.source == "files" and not config.split_folder
    sources = dataset.splits
    splits = {
        split: SplitSummary(
            source.description,
            len(source),
            len(set(group_ids(source))),
            {
                task.name: dict(
                    zip(task.classes, class_counts(source, task.name).tolist(), strict=True)
                )
                for task in source.tasks
            },
        )
        for split, source in sources.items()
    }
    # Pairs of strangers have joined names: people are compared before pairing.
    parts = list(dataset.parts.values()) or [sources]
    ids = [
        [source.record_id(i) for i in range(len(source))]
        for part in parts
        for source in part.values()
    ]
    groups = [group_ids(source) for part in parts for source in part.values()]
    return DataSummary(
        splits,
        Leakage(
            shared_records=sum(_shared_records(part) for part in parts),
            shared_groups=sum(len(leaking_groups(part)) for part in parts),
            single_groups=all(
                len(set(group)) == len(own) for group, own in zip(groups, ids, strict=True)
            ),
            duplicates=sum(len(found) for found in dataset.duplicates.values())
            if drawn_here and config.duplicates == "remove"
            else None,
            duplicates_share_a_split=drawn_here and config.duplicates == "group",
        ),
        dataset.synthetic,
        {
            name: {
                split: PartSummary(len(source), len(set(group_ids(source))))
                for split, source in entry.items()
            }
            for name, entry in dataset.parts.items()
            if len(dataset.parts) > 1
        },
        () if dataset.synthetic else dataset.notes,
    )


def pooled_data(folds: Sequence[DataSummary]) -> DataSummary:
    """The summary of a cross-validation: training of the first fold, test records of all."""
    first = folds[0]
    if len(folds) == 1:
        return first
    tests = [fold.splits["test"] for fold in folds]
    counts = {
        task: {name: sum(t.class_counts[task][name] for t in tests) for name in of_task}
        for task, of_task in tests[0].class_counts.items()
    }
    test = SplitSummary(
        f"the test records of {len(folds)} folds, such as {tests[0].description}",
        sum(t.num_records for t in tests),
        sum(t.num_groups for t in tests),
        counts,
    )
    leaks = [fold.leakage for fold in folds]
    return replace(
        first,
        splits={**first.splits, "test": test},
        leakage=replace(
            first.leakage,
            shared_records=sum(leak.shared_records for leak in leaks),
            shared_groups=sum(leak.shared_groups for leak in leaks),
        ),
    )


def measure_cost(
    predictor: Predictor, *, seconds_per_record: float, training: TrainingCost
) -> Cost:
    """Parameters and operations of a network, and the memory used so far."""
    params = predictor.restored.params
    member = jax.tree.map(lambda leaf: leaf[0], params)
    return Cost(
        num_parameters=sum(int(np.size(leaf)) for leaf in jax.tree.leaves(member)),
        flops=_flops(predictor),
        seconds_per_record=seconds_per_record,
        peak_memory_bytes=_peak_memory(),
        training=training,
    )


def training_cost(runs: Sequence[Path]) -> TrainingCost:
    """What the runs wrote in `performance.json` of their training."""
    found = [_logged(run / PERFORMANCE_FILE) for run in runs]

    def all_of(name: str) -> list[float] | None:
        values = [entry.get(name) for entry in found]
        return None if any(value is None for value in values) else values

    seconds, rates = all_of("training_seconds"), all_of("records_per_second")
    peaks = all_of("device_bytes_peak") or all_of("host_bytes_peak")
    kinds = dict.fromkeys(
        f"{entry['num_devices']} x {entry['device_kind']}"
        for entry in found
        if "device_kind" in entry
    )
    return TrainingCost(
        seconds=None if seconds is None else sum(seconds),
        num_runs=len(runs),
        num_attempts=sum(entry.get("num_attempts", 1) for entry in found),
        records_per_second=None if rates is None else float(np.mean(rates)),
        peak_memory_bytes=None if peaks is None else int(max(peaks)),
        devices=", ".join(kinds),
    )


def machine() -> dict[str, Any]:
    """Command, code, versions and devices of this process."""
    return environment()


def training_environment(run: Path) -> dict[str, Any]:
    """What the training process wrote of itself; empty where it is missing or damaged."""
    return _logged(run / "environment.json")


def _logged(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is missing or damaged."""
    try:
        return unsealed(json.loads(path.read_text()))
    except (OSError, ValueError, RecursionError):
        return {}


def _shared_records(splits: Mapping[str, Any]) -> int:
    names = [{s.record_id(i) for i in range(len(s))} for s in splits.values()]
    return sum(len(found) for found in names) - len(set().union(*names))


def _flops(predictor: Predictor) -> float | None:
    """Of one record through one member, by lowering alone: nothing is compiled."""
    restored = predictor.restored
    params, statistics = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype),
        (restored.params, restored.statistics),
    )
    images = {
        spec.name: jax.ShapeDtypeStruct((1, *spec.shape), np.float32)
        for spec in predictor.description.modalities
    }

    def answer(params, statistics, images):
        (logits, _), _ = restored.network.apply(params, statistics, images, train=False)
        return logits

    analysis = jax.jit(answer).lower(params, statistics, images).cost_analysis()
    flops = (analysis or {}).get("flops")
    return float(flops) if flops and flops > 0 else None


def _peak_memory() -> int:
    memory = jax.devices()[0].memory_stats()
    if memory and "peak_bytes_in_use" in memory:
        return int(memory["peak_bytes_in_use"])
    return process_peak_bytes()
