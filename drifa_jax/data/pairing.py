"""Pairing: the records of several modalities as one multimodal table, by a named strategy.

| strategy | a record is | epoch length | in evaluation |
| --- | --- | --- | --- |
| `paired` | one record id in all modalities | number of ids | the same |
| `index` | place i of all modalities (the authors') | the longest modality | repeats unlabelled |
| `random` | fresh partners in every epoch | the longest modality | as `index` |
| `by_task` | one record of one modality, others absent | sum of the modalities | the same |

`paired` joins the tables of the same people, so it comes before splits are drawn. The others put
strangers side by side, split by split: each modality keeps its own people, whose ids and groups
are then called `modality:id`. They train a network whose tasks belong to one modality each; they
say nothing about how modalities of one patient complement each other. `by_task` invents no pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import compress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from drifa_jax.data.problems import some_of
from drifa_jax.data.record import MISSING_LABEL, Record, Source
from drifa_jax.data.records import (
    ATTRIBUTE,
    SPLIT,
    Records,
    all_tasks,
    as_records,
    concatenate,
    label,
    notes_of,
)
from drifa_jax.data.splits import connected
from drifa_jax.errors import UserError

PEOPLE = "people"
"""Column of pairs: the groups of all strangers that a record is made of."""


def _labelled_id(task: str) -> str:
    return f"labelled_id:{task}"


def _labelled_group(task: str) -> str:
    return f"labelled_group:{task}"


class RandomPairs(Records):
    """Strangers' records paired anew in every epoch; the stream draws the partners.

    As a plain table, for evaluation, it pairs by index. In training batches `index` is that of
    the first source, whose part of `record_id` is right; the partner was drawn.
    """

    def __init__(self, parts: Mapping[str, Records], pairs: Records):
        super().__init__(
            pairs.table,
            pairs.readers,
            pairs.modalities,
            pairs.tasks,
            description=pairs.description.replace("index", "random", 1),
            synthetic=pairs.synthetic,
            notes=pairs.notes,
        )
        self._names, self.stream_sources = tuple(parts), tuple(parts.values())

    def pair(self, indices: Sequence[int]) -> Record:
        """The record of one index into each source; every label counts."""
        parts = [
            (name, source[int(i)])
            for name, source, i in zip(self._names, self.stream_sources, indices, strict=True)
        ]
        labels = {task.name: MISSING_LABEL for task in self.tasks}
        images: dict[str, np.ndarray] = {}
        for _, record in parts:
            images |= record.images
            labels |= {t: y for t, y in record.labels.items() if y != MISSING_LABEL}
        return Record(
            "+".join(f"{name}:{record.record_id}" for name, record in parts),
            "+".join(f"{name}:{record.group_id}" for name, record in parts),
            images,
            labels,
        )


def join(parts: Mapping[str, Records]) -> Records:
    """The table of the people that several modalities share, one row a record id.

    An id may lack modalities. Records that share a group in any modality share one here, under
    the name of the first, so that splits keep together what any modality says belongs together.

    Raises:
      UserError: for ids that repeat in a modality or that no two share, labels that disagree, and
        ids that the modalities bring in different splits.
    """
    for name, part in parts.items():
        if again := _repeated(part.ids):
            raise UserError(
                f"The {name} source holds the record id {again!r} twice; ids must be unique to "
                "pair by them."
            )
    ids = list(dict.fromkeys(i for part in parts.values() for i in part.ids))
    places = [pc.index_in(pa.array(ids), pa.array(part.ids)) for part in parts.values()]
    if len(parts) > 1 and not np.all([place.is_valid() for place in places], axis=0).any():
        examples = ", ".join(f"{name}: {part.record_id(0)!r}" for name, part in parts.items())
        raise UserError(
            f"No record id occurs in all of {tuple(parts)} (first ids: {examples}). Records of "
            "different people are paired by the strategies by_task, index or random."
        )
    tables = [p.table.take(place) for p, place in zip(parts.values(), places, strict=True)]
    columns: dict[str, pa.Array | pa.ChunkedArray] = {"record_id": pa.array(ids, pa.string())}
    columns["group_id"] = _connected([table["group_id"].to_pylist() for table in tables])
    for name in dict.fromkeys(name for table in tables for name in table.column_names):
        if name in columns:
            continue
        own = [table[name] for table in tables if name in table.column_names]
        if name == SPLIT:
            _check_agree(ids, own, "record ids lie in different splits in different modalities")
        if name.startswith(ATTRIBUTE):
            # What one modality's table leaves empty, another's may tell.
            told = [pc.if_else(pc.equal(column, ""), None, column) for column in own]
            columns[name] = pc.coalesce(*told, *own)
        elif name.startswith("label:"):
            known = [pc.if_else(pc.equal(column, MISSING_LABEL), None, column) for column in own]
            task = name.removeprefix("label:")
            _check_agree(
                ids, known, f"records have different labels of the task {task!r} in different "
                "modalities",
            )  # fmt: skip
            columns[name] = pc.fill_null(pc.coalesce(*known), MISSING_LABEL)
        else:
            columns[name] = pc.coalesce(*own)
    return _table_of(parts, pa.table(columns), "paired")


def pair_by_index(parts: Mapping[str, Records], *, evaluation: bool) -> Records:
    """Place i of every modality; shorter ones start again, which in evaluation costs labels."""
    count = max(len(part) for part in parts.values())
    columns: dict[str, list | pa.Array | pa.ChunkedArray] = {}
    ids, groups, labels = [], [], {}
    for name, part in parts.items():
        places = np.arange(count) % len(part)
        table = part.table.take(pa.array(places))
        first_time = np.arange(count) < len(part) if evaluation else np.ones(count, bool)
        ids.append([f"{name}:{own}" for own in table["record_id"].to_pylist()])
        groups.append([f"{name}:{own}" for own in table["group_id"].to_pylist()])
        for column in table.column_names:
            if column.startswith(ATTRIBUTE) and len(parts) > 1:
                called = f"{ATTRIBUTE}{name}/{column.removeprefix(ATTRIBUTE)}"
                columns[called] = table[column]
            elif column.startswith((ATTRIBUTE, "at:")):
                columns[column] = table[column]
        for task in part.tasks:
            own = np.where(first_time, table[label(task.name)].to_numpy(), MISSING_LABEL)
            before = labels.setdefault(task.name, np.full(count, MISSING_LABEL, np.int32))
            np.maximum(before, own, out=before)
            for column, names in (
                (_labelled_id(task.name), ids[-1]),
                (_labelled_group(task.name), groups[-1]),
            ):
                told = columns.setdefault(column, [None] * count)
                for row in compress(range(count), first_time):
                    told[row] = told[row] or names[row]
    columns |= {label(task): pa.array(values) for task, values in labels.items()}
    columns["record_id"] = ["+".join(row) for row in zip(*ids, strict=True)]
    columns["group_id"] = ["+".join(row) for row in zip(*groups, strict=True)]
    columns[PEOPLE] = [list(row) for row in zip(*groups, strict=True)]
    return _table_of(parts, pa.table(columns), "index")


def pair_at_random(parts: Mapping[str, Records], *, evaluation: bool) -> Records:
    """Fresh partners in every epoch while training; by index in evaluation."""
    pairs = pair_by_index(parts, evaluation=evaluation)
    return pairs if evaluation else RandomPairs(parts, pairs)


def pair_by_task(parts: Mapping[str, Records], *, evaluation: bool) -> Records:
    """All records of all modalities, each with its own and the others absent."""
    del evaluation
    named = []
    for name, part in parts.items():
        renamed = part.regrouped([f"{name}:{own}" for own in part.groups])
        ids = pa.array([f"{name}:{own}" for own in part.ids], pa.string())
        named.append(renamed.with_column("record_id", ids))
    described = "; ".join(part.description for part in parts.values())
    return concatenate(named, f"by_task pairing of {described}")


STRATEGIES: dict[str, Callable[..., Records]] = {
    "paired": lambda parts, *, evaluation: join(parts),
    "index": pair_by_index,
    "random": pair_at_random,
    "by_task": pair_by_task,
}


def combine(strategy: str, sources: Mapping[str, Source], *, evaluation: bool) -> Records:
    """One multimodal table by a named strategy.

    Args:
      strategy: a key of `STRATEGIES`.
      sources: modality name -> records, all of the same split.
      evaluation: whether the result is evaluated: then no record of any modality is dropped and
        none counts twice (a repeated partner has lost its label).

    Test: tests/data/test_pairing.py.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"pairing is {strategy!r}; choose one of {tuple(STRATEGIES)}.")
    empty = [name for name, source in sources.items() if len(source) == 0]
    if empty or not sources:
        raise UserError(f"Modalities without records: {empty or 'all'}.")
    parts = {name: as_records(source) for name, source in sources.items()}
    names = [spec.name for part in parts.values() for spec in part.modalities]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"the modalities {twice} come from more than one source")
    all_tasks(parts)
    return STRATEGIES[strategy](parts, evaluation=evaluation)


def labelled_parts(source: Source, task: str) -> tuple[list[str], list[str]]:
    """Ids and groups of the records that a task's labels belong to, `[n]` each.

    Two runs that pair strangers differently, or leave one modality out, still test the same
    records of a task; under these names they can be compared record by record. A record without
    a label answers for itself.
    """
    records = as_records(source)
    ids = zip(records.column(_labelled_id(task)), records.ids, strict=True)
    groups = zip(records.column(_labelled_group(task)), records.groups, strict=True)
    return [part or whole for part, whole in ids], [part or whole for part, whole in groups]


def groups_of(source: Source, index: int) -> tuple[str, ...]:
    """The groups that a record belongs to: its own, or those of the strangers it is made of."""
    if isinstance(source, Records) and PEOPLE in source.table.column_names:
        return tuple(source.table[PEOPLE][index].as_py())
    return (source.group_id(index),)


def _table_of(parts: Mapping[str, Records], table: pa.Table, strategy: str) -> Records:
    described = "; ".join(part.description for part in parts.values())
    return Records(
        table,
        {name: reader for part in parts.values() for name, reader in part.readers.items()},
        [spec for part in parts.values() for spec in part.modalities],
        all_tasks(parts),
        description=described if len(parts) == 1 else f"{strategy} pairing of {described}",
        synthetic=any(part.synthetic for part in parts.values()),
        notes=notes_of(parts.values()),
    )


def _repeated(ids: Sequence[str]) -> str | None:
    seen: set[str] = set()
    return next((i for i in ids if i in seen or seen.add(i)), None)


def _check_agree(ids: Sequence[str], columns: Sequence, what: str) -> None:
    """An error that names the ids whose known values differ between columns, nulls aside."""
    values = zip(*(column.to_pylist() for column in columns), strict=True)
    clash = [
        f"{record_id!r} ({' and '.join(map(str, told))})"
        for record_id, row in zip(ids, values, strict=True)
        if len(told := list(dict.fromkeys(v for v in row if v is not None))) > 1
    ]
    if clash:
        raise UserError(f"{len(clash)} {what}, the first is {some_of(clash)}.")


def _connected(columns: Sequence[Sequence[str | None]]) -> pa.Array:
    """One group a row: rows that share a name in any column are of one, directly or by others."""
    names = {name: k for k, name in enumerate(dict.fromkeys(n for c in columns for n in c if n))}
    rows = [[names[name] for name in row if name] for row in zip(*columns, strict=True)]
    first = [row[0] for row in rows]
    edges = [(row[0], other) for row in rows for other in row[1:]]
    component = connected(len(names), edges).tolist()
    called: dict[int, str] = {}
    for name, k in names.items():
        called.setdefault(component[k], name)
    return pa.array([called[component[k]] for k in first], pa.string())
