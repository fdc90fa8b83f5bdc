"""Every method on every fold of every set, each kept when it is done.

workdir/
  benchmark.json, .csv, .html        the table of all that is finished
  <set>/manifest.json                the split, where none is published
  <set>/features/                    of the frozen branches, computed once
  <set>/fold-<k>/<method>.npz        what the networks of all seeds said of the test records
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drifa_jax.ablate.variants import Variant
from drifa_jax.benchmark import manifests
from drifa_jax.benchmark.features import CLEAN, CORRUPTIONS, Features, frozen_features
from drifa_jax.benchmark.frozen import Split, standardised, train_seeds
from drifa_jax.benchmark.methods import chosen
from drifa_jax.benchmark.suites import BenchmarkSet
from drifa_jax.config import Config
from drifa_jax.data.dataset import PAIRED, open_dataset
from drifa_jax.data.pairing import join
from drifa_jax.data.record import TabularSpec, stack_records
from drifa_jax.data.records import Records, as_records
from drifa_jax.data.sources.opening import scan_modality
from drifa_jax.digests import digest
from drifa_jax.errors import UserError
from drifa_jax.evaluate.subgroups import find_columns
from drifa_jax.whole_files import written_whole

COMPLETE = "complete"


@dataclass(frozen=True)
class Job:
    """One method on one fold, with all seeds."""

    set_name: str
    method: Variant
    fold: int
    path: Path

    def answers(self, key: str) -> Answers | None:
        """What was found, if it was found by the same configuration."""
        if not self.path.is_file():
            return None
        with np.load(self.path) as kept:
            if str(kept["key"]) != key:
                return None
            names = [n.removeprefix("p:") for n in kept.files if n.startswith("p:")]
            return Answers(
                tuple(kept["ids"].tolist()),
                tuple(kept["groups"].tolist()),
                kept["labels"],
                {name: kept[f"p:{name}"] for name in names},
                json.loads(str(kept["facts"])),
                json.loads(str(kept["attributes"])),
            )


@dataclass(frozen=True)
class Answers:
    """Of one method on the test records of one fold.

    Attributes:
      record_ids, groups, labels: of the `n` labelled records.
      probabilities: condition -> `[s, n, k]` float32; NaN for records that the condition leaves
        without any modality.
      facts: `num_params`, `flops` of a record without its branches, `train_bytes` and `seconds` of
        one seed, `num_train`.
      attributes: column -> what is known of each record, for subgroups.
    """

    record_ids: tuple[str, ...]
    groups: tuple[str, ...]
    labels: np.ndarray
    probabilities: Mapping[str, np.ndarray]
    facts: Mapping[str, float]
    attributes: Mapping[str, Sequence[str]]

    def save(self, path: Path, key: str) -> None:
        """Writes them, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as partial, partial.open("wb") as file:
            np.savez_compressed(
                file,
                key=np.array(key),
                ids=np.array(self.record_ids),
                groups=np.array(self.groups),
                labels=self.labels,
                facts=np.array(json.dumps(dict(self.facts))),
                attributes=np.array(json.dumps(dict(self.attributes))),
                **{f"p:{name}": p.astype(np.float32) for name, p in self.probabilities.items()},
            )

    def only(self, condition: str, chosen: np.ndarray) -> Answers:
        """Of the chosen records, `[n]` bool, under one condition."""
        rows = np.flatnonzero(chosen)
        return dataclasses.replace(
            self,
            record_ids=tuple(self.record_ids[row] for row in rows),
            groups=tuple(self.groups[row] for row in rows),
            labels=self.labels[rows],
            probabilities={condition: self.probabilities[condition][:, rows]},
            attributes={},
        )

    @staticmethod
    def joined(parts: Sequence[Answers]) -> Answers:
        """Of the records of several folds, under the conditions of the first."""
        return dataclasses.replace(
            parts[0],
            record_ids=tuple(i for part in parts for i in part.record_ids),
            groups=tuple(g for part in parts for g in part.groups),
            labels=np.concatenate([part.labels for part in parts]),
            probabilities={
                condition: np.concatenate([part.probabilities[condition] for part in parts], 1)
                for condition in parts[0].probabilities
            },
        )


class RunningSet:
    """One set: its records, split and features.

    Args:
      benchmark_set: which.
      config: of it.
      seeds: of each method.
      workdir: of the benchmark.

    Raises:
      UserError: when it cannot be read, is not the set of its manifest, or a fold lacks a class.
    """

    def __init__(
        self, benchmark_set: BenchmarkSet, config: Config, seeds: Sequence[int], workdir: Path
    ):
        self.name, self.config, self.seeds = benchmark_set.name, config, tuple(seeds)
        self.folder = workdir / self.name
        if not all(modality.root for modality in config.data.modalities.values()):
            raise UserError(f"nothing says where it lies; add --root {self.name}=FOLDER.")
        scanned = {m: scan_modality(m, own) for m, own in config.data.modalities.items()}
        self.records = join(scanned)
        if len(self.records.tasks) != 1:
            named = ", ".join(task.name for task in self.records.tasks)
            raise UserError(f"{self.name}: a benchmark has one task a set, not {named}.")
        (self.task,) = self.records.tasks
        path = benchmark_set.manifest or self.folder / "manifest.json"
        published = benchmark_set.manifest is not None
        if published or path.is_file():
            self.manifest = manifests.load(path)
            roots = ", ".join(sorted({m.root for m in config.data.modalities.values()}))
            self.manifest.check(self.records, roots)
        else:
            num_folds = config.data.num_folds or 5
            self.manifest = manifests.drawn(self.name, self.records, num_folds)
        self.num_folds = self.manifest.num_folds
        self._check_classes()
        if not path.is_file():
            self.manifest.save(path)

    def _check_classes(self) -> None:
        labels = dict(zip(self.records.ids, self.records.labels(self.task.name), strict=True))
        for fold in range(self.num_folds):
            for split, entries in self.manifest.of_fold(fold).splits.items():
                held = {labels[e.record_id] for e in entries}
                lacking = [c for i, c in enumerate(self.task.classes) if i not in held]
                if lacking and split != "validation":
                    raise UserError(
                        f"{self.name}: the {split} records of fold {fold} hold no "
                        f"{', '.join(lacking)}; leave such classes out (classes and "
                        "ignore_other_classes of the config) or use fewer folds."
                    )

    def jobs(self, names: Sequence[str], folds: Iterable[int]) -> list[Job]:
        """All methods on the first fold, then on the second, so that a part is a fair part."""
        modalities = tuple(self._modalities())
        return [
            Job(self.name, method, fold, self.folder / f"fold-{fold}" / f"{method.name}.npz")
            for fold in folds
            for method in chosen(modalities, names)
        ]

    def _modalities(self) -> Iterator[str]:
        for name, own in self.config.data.modalities.items():
            yield name
            if own.numeric_columns or own.categorical_columns:
                yield f"{name}_table"

    def key(self, job: Job) -> str:
        """Of everything that a job's answers depend on, besides the files themselves."""
        own = json.loads(job.method.of(self.config).to_json())
        for modality in own["data"]["modalities"].values():
            del modality["root"]
        members = [dataclasses.astuple(member) for member in self.manifest.members]
        return digest([own, members, job.fold, list(self.seeds)])

    def run(self, job: Job, features: Mapping[str, Mapping[str, Features]]) -> Answers:
        """Trains and tests one method on one fold."""
        started = time.monotonic()
        config = job.method.of(self.config)
        fold = _Fold(self, job.fold, features, config.model.read_stages)
        only = config.data.only_modalities
        splits = {name: fold.split(name).only(only) for name in ("train", "validation")}
        trained = train_seeds(
            config, splits, fold.tables, self.task.num_classes, self.seeds, self._sizes()
        )
        answers = {}
        for condition, split in fold.conditions():
            tested = split.only(only)
            p = trained.probabilities(tested)
            nothing = ~np.any(list(tested.present.values()), axis=0)
            answers[condition] = np.where(nothing[None, :, None], np.nan, p)
        seconds = time.monotonic() - started
        facts = {
            "num_params": trained.num_params,
            "flops": trained.costs.flops,
            "train_bytes": trained.costs.train_bytes,
            "seconds": round(seconds / len(self.seeds), 2),
            "num_train": len(splits["train"].labels),
        }
        test = fold.split("test")
        return Answers(fold.ids, fold.groups, test.labels, answers, facts, fold.attributes)

    def _sizes(self) -> dict[str, int]:
        """Split -> records that the largest fold has in it."""
        folds = [self.manifest.of_fold(fold).splits for fold in range(self.num_folds)]
        return {split: max(len(splits[split]) for splits in folds) for split in folds[0]}

    def features(self, say: Callable[[str], None]) -> dict[str, dict[str, Features]]:
        """Of the frozen branches."""
        return frozen_features(self.config, self.records, self.folder / "features", say)


@dataclass
class SetResult:
    """What is known of one set when a benchmark ends.

    Attributes:
      name: of the set.
      found: method -> answers of its finished folds.
      methods: that were asked for.
      num_folds, num_records, num_groups, classes: of the set.
      problem: why it is not finished, or "".
    """

    name: str
    found: dict[str, list[Answers]] = dataclasses.field(default_factory=dict)
    methods: tuple[Variant, ...] = ()
    num_folds: int = 0
    num_records: int = 0
    num_groups: int = 0
    classes: tuple[str, ...] = ()
    problem: str = ""


def run_set(
    result: SetResult,
    benchmark_set: BenchmarkSet,
    config: Config,
    seeds: Sequence[int],
    names: Sequence[str],
    workdir: Path,
    say: Callable[[str], None],
    *,
    train: bool = True,
) -> None:
    """Fills in a result, training what is not finished; what is finished stays when it fails.

    Raises:
      UserError: when the set cannot be read or is not that of its manifest.
    """
    running = RunningSet(benchmark_set, config, seeds, workdir)
    jobs = running.jobs(names, range(running.num_folds))
    result.methods = tuple({job.method.name: job.method for job in jobs}.values())
    result.num_folds, result.num_records = running.num_folds, len(running.records)
    result.num_groups, result.classes = len(set(running.records.groups)), running.task.classes
    features, done = None, 0
    for job in jobs:
        answers = job.answers(running.key(job))
        if answers is None and train:
            features = features or running.features(say)
            running.run(job, features).save(job.path, running.key(job))
            # As they are kept, so that a table does not depend on when it was made.
            answers = job.answers(running.key(job))
            done += 1
            say(
                f"{running.name}, fold {job.fold}, {job.method.name}: "
                f"{answers.facts['seconds'] * len(seeds):.0f} s"
            )
        if answers is not None:
            result.found.setdefault(job.method.name, []).append(answers)
    say(f"{running.name}: {len(jobs)} jobs, {len(jobs) - done} finished before")


class _Fold:
    """Arrays of one fold: standardised features, rows of tables fitted on its training records."""

    def __init__(self, running: RunningSet, fold: int, features, read_stages: str):
        folder = running.folder / f"fold-{fold}" / "splits"
        path = folder / f"{PAIRED}.json"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            running.manifest.of_fold(fold).save(path)
        config = dataclasses.replace(
            running.config.data, split_folder=str(folder), num_folds=0, duplicates="keep"
        )
        dataset = open_dataset(config)
        self._splits: dict[str, Split] = {}
        rows_of = {record_id: row for row, record_id in enumerate(running.records.ids)}
        specs = [s for s in dataset.train.modalities if isinstance(s, TabularSpec)]
        self.tables = frozenset(spec.name for spec in specs)
        self._features, self._read_stages = features, read_stages
        self._rows, scales = {}, {}
        for split in ("train", "validation", "test"):
            records = as_records(getattr(dataset, split))
            labels = records.labels(running.task.name)
            records = records.take(np.flatnonzero(labels >= 0))
            rows = np.array([rows_of[record_id] for record_id in records.ids])
            self._rows[split] = rows
            inputs, present = {}, {}
            for m, of_condition in features.items():
                read, held = of_condition[CLEAN].read[read_stages], of_condition[CLEAN].held
                if split == "train":
                    scales[m] = standardised(read[rows], held[rows])
                inputs[m], present[m] = _scaled(read[rows], scales[m]), held[rows]
            tabled = _rows_of_tables(records, specs)
            order = [s.name for s in dataset.train.modalities]
            inputs, present = inputs | tabled[0], present | tabled[1]
            self._splits[split] = Split(
                {m: inputs[m] for m in order},
                {m: present[m] for m in order},
                records.labels(running.task.name).astype(np.int32),
            )
            if split == "test":
                self.ids, self.groups = tuple(records.ids), tuple(records.groups)
                told = [records.attributes(row) for row in range(len(records))]
                columns = find_columns(list(dict.fromkeys(c for t in told for c in t)), None)
                self.attributes = {c: tuple(t.get(c, "") for t in told) for c in columns}
        self._scales = scales

    def split(self, name: str) -> Split:
        """Of the split, with complete records."""
        return self._splits[name]

    def conditions(self) -> Iterator[tuple[str, Split]]:
        """Test records as they are, without each modality, and with each modality damaged."""
        test, rows = self._splits["test"], self._rows["test"]
        yield COMPLETE, test
        for m in test.inputs:
            absent = np.zeros_like(test.present[m])
            yield f"without {m}", dataclasses.replace(test, present={**test.present, m: absent})
        for m, of_condition in self._features.items():
            for name in CORRUPTIONS:
                read = of_condition[name].read[self._read_stages]
                values = _scaled(read[rows], self._scales[m])
                yield f"{name} in {m}", dataclasses.replace(test, inputs={**test.inputs, m: values})
        for m in test.inputs:
            # The neighbour's, of another label as often as chance has it.
            moved, held = np.roll(test.inputs[m], 1, axis=0), np.roll(test.present[m], 1)
            yield (
                f"wrong patient in {m}",
                dataclasses.replace(
                    test, inputs={**test.inputs, m: moved}, present={**test.present, m: held}
                ),
            )


def _scaled(values: np.ndarray, scale: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    mean, deviation = scale
    return ((values - mean) / deviation).astype(np.float32)


def _rows_of_tables(records: Records, specs: Sequence[TabularSpec]):
    """Modality -> `[n, c]` and `[n]` of tables alone, without decoding an image."""
    if not specs:
        return {}, {}
    alone = records.only([spec.name for spec in specs])
    return stack_records([alone[row] for row in range(len(alone))], specs)
