"""Pairing: several single-modality sources as one multimodal source, by a named strategy.

| strategy | a record is | epoch length | in evaluation |
| --- | --- | --- | --- |
| `paired` | the same record id in every source | number of ids | the same |
| `index` | place i of every source (the authors') | the longest source | repeats lose their label |
| `random` | fresh partners in every epoch | the longest source | as `index` |
| `by_task` | one record of one source, other modalities absent | sum of the sources | the same |

`index` and `random` put strangers' images side by side. They train a network whose tasks belong
to one modality each; they say nothing about how modalities of one patient complement each
other. `by_task` invents no pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from drifa_jax.data.attributes import attributes_of
from drifa_jax.data.record import MISSING_LABEL, Record, Source, TaskSpec
from drifa_jax.errors import UserError

Part = int | None


class CombinedSource:
    """Records put together from several sources by a table of indices, a `Source`.

    Args:
      sources: name -> source; modalities must not repeat.
      table: `[n, num_sources]` index into each source, -1 where the record takes nothing from it.
      repeated: `[n, num_sources]` bool, True where the index was used before, so that its label
        must not count again; or None.
      strategy: for the description.
      join_ids: whether the id of a record names each of its parts.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        table: np.ndarray,
        repeated: np.ndarray | None,
        *,
        strategy: str,
        join_ids: bool,
    ):
        self._names, self._sources = tuple(sources), tuple(sources.values())
        self._table, self._repeated, self._join_ids = table, repeated, join_ids
        self.modalities = _union_of_modalities(sources)
        self.tasks = _union_of_tasks(sources)
        self.synthetic = any(source.synthetic for source in self._sources)
        parts = "; ".join(source.description for source in self._sources)
        self.description = f"{strategy} pairing of {parts}"

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Record:
        parts = self._parts(index)
        repeated = None if self._repeated is None else self._repeated[index]
        return self._combine(parts, repeated)

    def labels(self, task: str) -> np.ndarray:
        columns = np.full(self._table.shape, MISSING_LABEL, np.int32)
        for k, source in enumerate(self._sources):
            if task in {spec.name for spec in source.tasks}:
                labels = source.labels(task)
                taken = self._table[:, k] >= 0
                if self._repeated is not None:
                    taken &= ~self._repeated[:, k]
                columns[taken, k] = labels[self._table[taken, k]]
        return columns.max(axis=1)

    def record_id(self, index: int) -> str:
        return self._joined([(n, s.record_id(i)) for n, s, i in self._taken(index)])

    def group_id(self, index: int) -> str:
        return self._joined([(n, s.group_id(i)) for n, s, i in self._taken(index)])

    def part_groups(self, index: int) -> tuple[str, ...]:
        """Group ids of all parts, each with the name of its source."""
        return tuple(f"{name}:{source.group_id(i)}" for name, source, i in self._taken(index))

    def attributes(self, index: int) -> Mapping[str, str]:
        """Of all parts; where strangers meet, a column is named `source/column`."""
        taken = self._taken(index)
        of_parts = [(name, attributes_of(source, i)) for name, source, i in taken]
        if self._join_ids and len(taken) > 1:
            return {f"{name}/{key}": cell for name, of in of_parts for key, cell in of.items()}
        return {key: cell for _, of in reversed(of_parts) for key, cell in of.items()}

    def labelled_part(self, task: str, index: int) -> tuple[str, str]:
        """Record id and group id of the part that brings a record's label of a task.

        Both name their source, and do not depend on whom the part was paired with. A record
        without a label answers for itself.
        """
        repeated = None if self._repeated is None else self._repeated[index]
        for k, (source, part) in enumerate(zip(self._sources, self._parts(index), strict=True)):
            brings = task in {spec.name for spec in source.tasks} and part is not None
            if brings and (repeated is None or not repeated[k]):
                name = self._names[k]
                return f"{name}:{source.record_id(part)}", f"{name}:{source.group_id(part)}"
        return self.record_id(index), self.group_id(index)

    def _parts(self, index: int) -> tuple[Part, ...]:
        if not 0 <= index < len(self._table):
            raise IndexError(f"record {index} is outside the {len(self._table)} records")
        return tuple(int(part) if part >= 0 else None for part in self._table[index])

    def _taken(self, index: int) -> list[tuple[str, Source, int]]:
        parts = zip(self._names, self._sources, self._parts(index), strict=True)
        return [(name, source, i) for name, source, i in parts if i is not None]

    def _joined(self, ids: Sequence[tuple[str, str]]) -> str:
        """Strangers keep the names of their sources, since two sources may use one id."""
        if self._join_ids:
            return "+".join(f"{name}:{one}" for name, one in ids)
        return "+".join(dict.fromkeys(one for _, one in ids))

    def _combine(self, parts: Sequence[Part], repeated: np.ndarray | None) -> Record:
        images: dict[str, np.ndarray] = {}
        labels = {task.name: MISSING_LABEL for task in self.tasks}
        ids, groups = [], []
        for k, (source, i) in enumerate(zip(self._sources, parts, strict=True)):
            if i is None:
                continue
            record = source[i]
            images |= record.images
            ids.append((self._names[k], record.record_id))
            groups.append((self._names[k], record.group_id))
            if repeated is None or not repeated[k]:
                labels |= {t: y for t, y in record.labels.items() if y != MISSING_LABEL}
        return Record(self._joined(ids), self._joined(groups), images, labels)


def labelled_parts(source: Source, task: str) -> tuple[list[str], list[str]]:
    """Ids and groups of the records that a task's labels belong to, `[n]` each.

    Two runs that pair strangers differently, or leave one modality out, still test the same
    records of a task; under these names they can be compared record by record.
    """
    if isinstance(source, CombinedSource):
        parts = [source.labelled_part(task, index) for index in range(len(source))]
    else:
        parts = [(source.record_id(i), source.group_id(i)) for i in range(len(source))]
    return [one for one, _ in parts], [group for _, group in parts]


def groups_of(source: Source, index: int) -> tuple[str, ...]:
    """The groups that a record belongs to: its own, or those of the strangers it is made of."""
    if isinstance(source, CombinedSource):
        return source.part_groups(index)
    return (source.group_id(index),)


class RandomPairs(CombinedSource):
    """Strangers' records paired anew in every epoch; the stream draws the partners.

    As a plain `Source`, for evaluation, it pairs by index. In training batches `index` is that of
    the first source, whose part of `record_id` is right; the partner was drawn.
    """

    def __init__(self, sources, table, repeated, *, strategy, join_ids):
        super().__init__(sources, table, repeated, strategy=strategy, join_ids=join_ids)
        self.stream_sources = self._sources

    def pair(self, indices: Sequence[int]) -> Record:
        """The record of one index into each source; every label counts."""
        return self._combine(tuple(int(i) for i in indices), None)


def pair_by_id(sources: Mapping[str, Source], *, evaluation: bool = False) -> CombinedSource:
    """Records of the same id belong to the same person; an id may lack a modality."""
    indices: dict[str, list[int]] = {}
    for k, (name, source) in enumerate(sources.items()):
        for i in range(len(source)):
            row = indices.setdefault(source.record_id(i), [-1] * len(sources))
            if row[k] >= 0:
                raise UserError(
                    f"The {name} source holds the record id {source.record_id(i)!r} "
                    "twice; ids must be unique to pair by them."
                )
            row[k] = i
    table = np.array(list(indices.values()), np.int64).reshape(-1, len(sources))
    if len(sources) > 1 and not (table >= 0).all(axis=1).any():
        examples = ", ".join(f"{n}: {s.record_id(0)!r}" for n, s in sources.items())
        raise UserError(
            f"No record id occurs in all of {tuple(sources)} (first ids: {examples}). Records of "
            "different people are paired by the strategies by_task, index or random."
        )
    _check_labels_agree(sources, table)
    return CombinedSource(sources, table, None, strategy="paired", join_ids=False)


def pair_by_index(sources: Mapping[str, Source], *, evaluation: bool = False) -> CombinedSource:
    """Place i of every source; shorter sources start again, which in evaluation costs labels."""
    return _cycled(CombinedSource, sources, "index", evaluation)


def pair_at_random(sources: Mapping[str, Source], *, evaluation: bool = False) -> CombinedSource:
    """Fresh partners in every epoch while training; by index in evaluation."""
    if evaluation:
        return _cycled(CombinedSource, sources, "index", evaluation)
    return _cycled(RandomPairs, sources, "random", evaluation)


def pair_by_task(sources: Mapping[str, Source], *, evaluation: bool = False) -> CombinedSource:
    """All records of all sources, each with its own modality and the others absent."""
    rows = []
    for k, source in enumerate(sources.values()):
        block = np.full((len(source), len(sources)), -1, np.int64)
        block[:, k] = np.arange(len(source))
        rows.append(block)
    return CombinedSource(sources, np.concatenate(rows), None, strategy="by_task", join_ids=True)


STRATEGIES: dict[str, Callable[..., CombinedSource]] = {
    "paired": pair_by_id,
    "index": pair_by_index,
    "random": pair_at_random,
    "by_task": pair_by_task,
}


def combine(strategy: str, sources: Mapping[str, Source], *, evaluation: bool) -> Source:
    """One multimodal source by a named strategy.

    Args:
      strategy: a key of `STRATEGIES`.
      sources: modality name -> source, all of the same split.
      evaluation: whether the result is evaluated: then no record of any source is dropped and
        none counts twice (a repeated partner has lost its label).

    Test: tests/data/test_pairing.py.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"pairing is {strategy!r}; choose one of {tuple(STRATEGIES)}.")
    empty = [name for name, source in sources.items() if len(source) == 0]
    if empty or not sources:
        raise UserError(f"Modalities without records: {empty or 'all'}.")
    return STRATEGIES[strategy](sources, evaluation=evaluation)


def _cycled(kind, sources: Mapping[str, Source], strategy: str, evaluation: bool):
    longest = max(len(source) for source in sources.values())
    places = np.arange(longest)[:, None]
    sizes = np.array([len(source) for source in sources.values()])
    repeated = places >= sizes if evaluation else None
    return kind(sources, places % sizes, repeated, strategy=strategy, join_ids=True)


def _union_of_modalities(sources: Mapping[str, Source]):
    specs = [spec for source in sources.values() for spec in source.modalities]
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"the modalities {twice} come from more than one source")
    return tuple(specs)


def _union_of_tasks(sources: Mapping[str, Source]) -> tuple[TaskSpec, ...]:
    tasks: dict[str, TaskSpec] = {}
    for name, source in sources.items():
        for spec in source.tasks:
            known = tasks.setdefault(spec.name, spec)
            if known.classes != spec.classes:
                raise UserError(
                    f"The task {spec.name!r} has the classes {spec.classes} in {name} but "
                    f"{known.classes} elsewhere; name the classes in the config."
                )
    return tuple(tasks.values())


def _check_labels_agree(sources: Mapping[str, Source], table: np.ndarray) -> None:
    for task in _union_of_tasks(sources):
        columns = []
        for k, source in enumerate(sources.values()):
            column = np.full(len(table), MISSING_LABEL)
            if task.name in {spec.name for spec in source.tasks}:
                taken = table[:, k] >= 0
                column[taken] = source.labels(task.name)[table[taken, k]]
            columns.append(column)
        stacked = np.stack(columns)
        lowest = np.where(stacked == MISSING_LABEL, np.iinfo(np.int64).max, stacked).min(axis=0)
        clash = np.flatnonzero((stacked.max(axis=0) != lowest) & (stacked.max(axis=0) >= 0))
        if len(clash):
            k = int(np.flatnonzero(table[clash[0]] >= 0)[0])
            name = list(sources.values())[k].record_id(int(table[clash[0], k]))
            raise UserError(
                f"{len(clash)} records have different labels of the task {task.name!r} in "
                f"different modalities, the first is {name!r}."
            )
