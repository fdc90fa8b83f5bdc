"""Splits that keep a patient whole and the classes balanced, from a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from drifa_jax.data.record import MISSING_LABEL, Record, Source


class Subset:
    """Some records of a source, in the order of `indices`; a `Source`."""

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray, description: str = ""):
        self._source, self._indices = source, np.asarray(indices, np.int64)
        self.description = description or f"{len(self._indices)} records of {source.description}"
        self.synthetic = source.synthetic
        self.modalities, self.tasks = source.modalities, source.tasks

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        return self._source[int(self._indices[index])]

    def labels(self, task: str) -> np.ndarray:
        return self._source.labels(task)[self._indices]

    def record_id(self, index: int) -> str:
        return self._source.record_id(int(self._indices[index]))

    def group_id(self, index: int) -> str:
        return self._source.group_id(int(self._indices[index]))


def group_ids(source: Source) -> list[str]:
    """The group of every record."""
    return [source.group_id(index) for index in range(len(source))]


def strata(source: Source) -> np.ndarray:
    """One integer per record that names its combination of labels over all tasks, `[n]`."""
    columns = [source.labels(task.name) for task in source.tasks]
    if not columns:
        return np.zeros(len(source), np.int64)
    return np.unique(np.stack(columns, 1), axis=0, return_inverse=True)[1].reshape(-1)


def split_groups(
    strata: np.ndarray, groups: Sequence[str], fractions: Mapping[str, float], seed: int
) -> dict[str, np.ndarray]:
    """Indices of each part: groups stay whole, strata keep their proportions.

    Groups are shuffled, taken from the largest to the smallest, and each goes to the part that
    lacks its strata the most, relative to what the part should hold.

    Args:
      strata: `[n]` integers, the combination of labels of every record.
      groups: the group of every record.
      fractions: part -> share of the records; positive, adding up to 1.
      seed: draws the order of groups.

    Returns:
      part -> sorted indices, disjoint, together all records.

    Raises:
      ValueError: if the fractions are no distribution or there are fewer groups than parts.

    Test: tests/data/test_splits.py.
    """
    shares = np.array(list(fractions.values()), float)
    if (shares <= 0).any() or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(f"fractions {dict(fractions)} must be positive and add up to 1")
    _, group_of = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    num_groups = int(group_of.max(initial=-1)) + 1
    if num_groups < len(shares):
        raise ValueError(f"{num_groups} groups cannot fill the {len(shares)} parts {[*fractions]}")
    num_strata = int(strata.max()) + 1
    counts = np.zeros((num_groups, num_strata))
    np.add.at(counts, (group_of, strata), 1)
    wanted = shares[:, None] * counts.sum(0)
    held = np.zeros_like(wanted)
    part_of = np.zeros(num_groups, np.int64)
    shuffled = np.random.Generator(np.random.Philox(seed)).permutation(num_groups)
    for group in shuffled[np.argsort(-counts[shuffled].sum(1), kind="stable")]:
        present = counts[group] > 0
        lack = ((wanted - held)[:, present] / wanted[:, present]) @ counts[group, present]
        part = int(np.argmax(lack))
        held[part] += counts[group]
        part_of[group] = part
    part_of = _without_empty_parts(part_of, counts, len(shares))
    return {name: np.flatnonzero(part_of[group_of] == k) for k, name in enumerate(fractions)}


def _without_empty_parts(part_of: np.ndarray, counts: np.ndarray, num_parts: int) -> np.ndarray:
    """Give every empty part the smallest group of the part with the most groups."""
    sizes = counts.sum(1)
    for part in range(num_parts):
        if not (part_of == part).any():
            fullest = np.bincount(part_of, minlength=num_parts).argmax()
            candidates = np.flatnonzero(part_of == fullest)
            part_of[candidates[sizes[candidates].argmin()]] = part
    return part_of


def split_source(source: Source, fractions: Mapping[str, float], seed: int) -> dict[str, Subset]:
    """A source cut into parts, grouped and stratified by all of its tasks."""
    parts = split_groups(strata(source), group_ids(source), fractions, seed)
    return {
        name: Subset(source, indices, f"{source.description}, {name} part, split seed {seed}")
        for name, indices in parts.items()
    }


def class_counts(source: Source, task: str) -> np.ndarray:
    """Number of records of each class, `[num_classes]`; records without a label are left out."""
    num_classes = next(spec.num_classes for spec in source.tasks if spec.name == task)
    labels = source.labels(task)
    return np.bincount(labels[labels != MISSING_LABEL], minlength=num_classes)
