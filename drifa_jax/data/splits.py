"""Splits that keep a patient whole and the classes balanced, from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from drifa_jax.data.attributes import attributes_of
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

    def attributes(self, index: int) -> Mapping[str, str]:
        return attributes_of(self._source, int(self._indices[index]))


class Concatenated:
    """Several sources of the same modalities and tasks, one after another; a `Source`."""

    def __init__(self, sources: Sequence[Source], description: str = ""):
        self._sources = tuple(sources)
        self._ends = np.cumsum([len(source) for source in self._sources])
        first = self._sources[0]
        self.description = description or " and ".join(s.description for s in self._sources)
        self.synthetic = any(source.synthetic for source in self._sources)
        self.modalities, self.tasks = first.modalities, first.tasks

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record:
        source, place = self._find(index)
        return source[place]

    def labels(self, task: str) -> np.ndarray:
        return np.concatenate([source.labels(task) for source in self._sources])

    def record_id(self, index: int) -> str:
        source, place = self._find(index)
        return source.record_id(place)

    def group_id(self, index: int) -> str:
        source, place = self._find(index)
        return source.group_id(place)

    def attributes(self, index: int) -> Mapping[str, str]:
        source, place = self._find(index)
        return attributes_of(source, place)

    def _find(self, index: int) -> tuple[Source, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} is outside the {len(self)} records")
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._sources[number], int(index - (self._ends[number - 1] if number else 0))


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
    # The last column counts all records, so that rounding in each stratum does not add up.
    counts = np.zeros((num_groups, int(strata.max()) + 2))
    np.add.at(counts, (group_of, strata), 1)
    counts[:, -1] = counts.sum(1)
    wanted = shares[:, None] * counts.sum(0)
    held = np.zeros_like(wanted)
    part_of = np.zeros(num_groups, np.int64)
    shuffled = np.random.Generator(np.random.Philox(seed)).permutation(num_groups)
    for group in shuffled[np.argsort(-counts[shuffled, -1], kind="stable")]:
        present = counts[group] > 0
        # Half of the group itself makes the rule round to nearest instead of up.
        missing = wanted[:, present] - held[:, present] - counts[group, present] / 2
        lack = (missing / wanted[:, present]) @ counts[group, present]
        part = int(np.argmax(lack))
        held[part] += counts[group]
        part_of[group] = part
    part_of = _without_empty_parts(part_of, counts, len(shares))
    return {name: np.flatnonzero(part_of[group_of] == k) for k, name in enumerate(fractions)}


def _without_empty_parts(part_of: np.ndarray, counts: np.ndarray, num_parts: int) -> np.ndarray:
    """Give every empty part the smallest group of the part with the most groups."""
    sizes = counts[:, -1]
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


def k_folds(
    source: Source, num_folds: int, seed: int, *, num_repeats: int = 1
) -> Iterator[tuple[Subset, Subset]]:
    """(train, test) of every fold, grouped and stratified; repeats draw other folds.

    Raises:
      ValueError: if there are fewer than two folds, or fewer groups than folds.
    """
    if num_folds < 2 or num_repeats < 1:
        raise ValueError(f"num_folds {num_folds} must be >= 2 and num_repeats {num_repeats} >= 1")
    groups, labels = group_ids(source), strata(source)
    shares = {str(fold): 1 / num_folds for fold in range(num_folds)}
    for repeat in range(num_repeats):
        # SeedSequence keeps repeat r of seed s apart from repeat 0 of seed s + r.
        own = int(np.random.SeedSequence([seed, repeat]).generate_state(1)[0])
        folds = split_groups(labels, groups, shares, own)
        for fold, test in folds.items():
            name = f"{source.description}, fold {fold} of {num_folds}, repeat {repeat}, seed {seed}"
            train = np.setdiff1d(np.arange(len(source)), test)
            yield Subset(source, train, f"{name}, train"), Subset(source, test, f"{name}, test")


def leaking_groups(sources: Mapping[str, Source]) -> dict[str, tuple[str, ...]]:
    """Group -> the splits that hold it, for every group in more than one split."""
    seen: dict[str, list[str]] = {}
    for split, source in sources.items():
        for group in dict.fromkeys(group_ids(source)):
            seen.setdefault(group, []).append(split)
    return {group: tuple(splits) for group, splits in seen.items() if len(splits) > 1}
