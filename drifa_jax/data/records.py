"""Records as one Arrow table and readers: where every record of a split is, and how it is read.

The columns are `record_id`, `group_id`, `label:<task>` (int32, `MISSING_LABEL` where unknown),
`at:<modality>` (a locator that the reader of the modality understands; null where the record lacks
it) and `attribute:<name>` (text; null where its source has no such column). A source scans its
files into such a table; choosing, joining and regrouping records is work on the table alone, so
nothing that is known of a record can be lost on the way. Images are read when a record is.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from drifa_jax.data.record import MISSING_LABEL, Record, Source, Spec, TaskSpec
from drifa_jax.errors import UserError

Reader = Callable[[Any], np.ndarray | None]
"""Locator -> array of the modality's shape; None where the record turns out to lack it."""

ATTRIBUTE = "attribute:"
SPLIT = "split"
"""Column of the split that the data themselves bring: train, validation, test, or null."""


def label(task: str) -> str:
    return f"label:{task}"


def at(modality: str) -> str:
    return f"at:{modality}"


class Records:
    """Random access to the records of a table, a `Source`.

    Args:
      table: the columns named above.
      readers: modality -> how its locators are read.
      modalities, tasks: what every record holds, or may lack.
      description: for logs and reports.
      synthetic: whether the images were drawn by a program.
      notes: what a person should know of how they were found: what was left out, what was guessed.

    Test: tests/data/test_records.py.
    """

    def __init__(
        self,
        table: pa.Table,
        readers: Mapping[str, Reader],
        modalities: Sequence[Spec],
        tasks: Sequence[TaskSpec],
        *,
        description: str,
        synthetic: bool = False,
        notes: Iterable[str] = (),
    ):
        self.table, self.readers = table.combine_chunks(), dict(readers)
        self.modalities, self.tasks = tuple(modalities), tuple(tasks)
        self.description, self.synthetic, self.notes = description, synthetic, tuple(notes)
        self._open()

    def _open(self) -> None:
        """Columns as single arrays, which are quicker to look into than a table."""
        columns = {name: _single(self.table[name]) for name in self.table.column_names}
        self._ids, self._groups = columns["record_id"], columns["group_id"]
        self._labels = {t.name: columns[label(t.name)].to_numpy() for t in self.tasks}
        self._places = [(m.name, columns[at(m.name)]) for m in self.modalities]
        self._attributes = {
            name.removeprefix(ATTRIBUTE): column
            for name, column in columns.items()
            if name.startswith(ATTRIBUTE)
        }

    def __getstate__(self) -> dict[str, Any]:
        derived = ("_ids", "_groups", "_labels", "_places", "_attributes")
        return {name: value for name, value in self.__dict__.items() if name not in derived}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Record:
        index = self._checked(index)
        images = {}
        for modality, places in self._places:
            place = places[index].as_py()
            image = None if place is None else self.readers[modality](place)
            if image is not None:
                images[modality] = image
        labels = {task: int(column[index]) for task, column in self._labels.items()}
        return Record(self.record_id(index), self.group_id(index), images, labels)

    def labels(self, task: str) -> np.ndarray:
        """Class index of every record, `[n]` int32."""
        if task not in self._labels:
            raise ValueError(f"task {task!r} is unknown; choose one of {tuple(self._labels)}")
        return self._labels[task].copy()

    def record_id(self, index: int) -> str:
        return self._ids[self._checked(index)].as_py()

    def group_id(self, index: int) -> str:
        return self._groups[self._checked(index)].as_py()

    def attributes(self, index: int) -> dict[str, str]:
        """What else is known of a record, column -> text, "" where missing: for subgroups."""
        index = self._checked(index)
        cells = {name: column[index].as_py() for name, column in self._attributes.items()}
        return {name: cell for name, cell in cells.items() if cell is not None}

    @property
    def ids(self) -> list[str]:
        """The id of every record."""
        return self._ids.to_pylist()

    @property
    def groups(self) -> list[str]:
        """The group of every record."""
        return self._groups.to_pylist()

    def column(self, name: str) -> list[Any]:
        """A further column of the table; nulls where there is none."""
        if name not in self.table.column_names:
            return [None] * len(self)
        return self.table[name].to_pylist()

    def take(self, indices: Iterable[int] | np.ndarray, description: str = "") -> Records:
        """The records at these indices, in their order."""
        chosen = np.asarray(indices, np.int64).reshape(-1)
        described = description or f"{len(chosen)} records of {self.description}"
        return self._changed(table=self.table.take(pa.array(chosen)), description=described)

    def regrouped(self, groups: Sequence[str]) -> Records:
        """The same records under other groups, which splits then keep whole."""
        return self.with_column("group_id", pa.array(groups, pa.string()))

    def without_splits(self) -> Records:
        """The same records, which no longer say which split they were distributed in."""
        return self.with_column(SPLIT, pa.nulls(len(self), pa.string()))

    def only(self, names: Collection[str]) -> Records:
        """The same records without the modalities that are not named; labels stay."""
        dropped = [at(spec.name) for spec in self.modalities if spec.name not in names]
        return self._changed(
            table=self.table.drop_columns(dropped),
            modalities=tuple(spec for spec in self.modalities if spec.name in names),
            description=f"{self.description}, {' and '.join(names)} only",
        )

    def in_memory(self) -> Records:
        """The same records, whose images are read once and kept, decoded."""
        return self._changed(readers={name: Kept(read) for name, read in self.readers.items()})

    def with_modality(self, spec: Spec, places: pa.Array, reader: Reader) -> Records:
        """The same records with one modality more, or with another reader of one they have."""
        others = tuple(known for known in self.modalities if known.name != spec.name)
        return self._changed(
            table=_with_column(self.table, at(spec.name), places),
            modalities=(*others, spec),
            readers={**self.readers, spec.name: reader},
        )

    def with_column(self, name: str, values: pa.Array) -> Records:
        """The same records with a column replaced or added."""
        return self._changed(table=_with_column(self.table, name, values))

    def described(self, description: str) -> Records:
        """The same records, called otherwise."""
        return self._changed(description=description)

    def _changed(self, **changes: Any) -> Records:
        fields = ("table", "readers", "modalities", "tasks", "description", "synthetic", "notes")
        return Records(**{name: changes.get(name, getattr(self, name)) for name in fields})

    def _checked(self, index: int) -> int:
        index = operator.index(index)
        if not 0 <= index < len(self._ids):
            raise IndexError(f"record {index} is outside the {len(self)} of {self.description}")
        return index


def make_records(
    modality: Spec,
    task: TaskSpec,
    *,
    ids: Sequence[str],
    places: Sequence[Any] | np.ndarray,
    labels: Sequence[int] | np.ndarray,
    reader: Reader,
    description: str,
    groups: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    attributes: Mapping[str, Sequence[str]] | None = None,
    notes: Iterable[str] = (),
) -> Records:
    """Records of one modality and task; without `groups` every record is its own."""
    columns = {"record_id": pa.array(ids, pa.string())}
    columns["group_id"] = columns["record_id"] if groups is None else pa.array(groups, pa.string())
    columns[at(modality.name)] = pa.array(places)
    columns[label(task.name)] = pa.array(np.asarray(labels, np.int32))
    if splits is not None:
        columns[SPLIT] = pa.array([split or None for split in splits], pa.string())
    for name, cells in (attributes or {}).items():
        columns[ATTRIBUTE + name] = pa.array(cells, pa.string())
    readers = {modality.name: reader}
    return Records(
        pa.table(columns), readers, (modality,), (task,), description=description, notes=notes
    )


def concatenate(parts: Sequence[Records], description: str = "") -> Records:
    """The records of several tables, one after another; a part may lack modalities and tasks."""
    specs = {spec.name: spec for part in parts for spec in part.modalities}
    tasks = all_tasks({part.description: part for part in parts})
    tables, readers = [part.table for part in parts], {}
    for name in specs:
        holders = [k for k, part in enumerate(parts) if name in part.readers]
        own = [parts[k].readers[name] for k in holders]
        if all(reader is own[0] for reader in own):
            readers[name] = own[0]
            continue
        places = [_single(tables[k][at(name)]) for k in holders]
        readers[name] = Several(tuple(own), tuple(places))
        first = 0
        for k, of_part in zip(holders, places, strict=True):
            numbers = pa.array(np.arange(first, first + len(of_part)))
            numbers = pc.if_else(of_part.is_valid(), numbers, None)
            tables[k] = _with_column(tables[k], at(name), numbers)
            first += len(of_part)
    table = pa.concat_tables(tables, promote_options="default")
    for task in tasks:
        known = pc.fill_null(table[label(task.name)], MISSING_LABEL)
        table = _with_column(table, label(task.name), known)
    return Records(
        table,
        readers,
        tuple(specs.values()),
        tasks,
        description=description or " and ".join(part.description for part in parts),
        synthetic=any(part.synthetic for part in parts),
        notes=notes_of(parts),
    )


def notes_of(sources: Iterable[Source]) -> tuple[str, ...]:
    """What is to be known of how several sources were found, each thing once."""
    return tuple(dict.fromkeys(n for source in sources for n in getattr(source, "notes", ())))


def all_tasks(parts: Mapping[str, Records]) -> tuple[TaskSpec, ...]:
    """The tasks of several tables; an error where one name has two sets of classes."""
    tasks: dict[str, TaskSpec] = {}
    for name, part in parts.items():
        for spec in part.tasks:
            known = tasks.setdefault(spec.name, spec)
            if known.classes != spec.classes:
                raise UserError(
                    f"The task {spec.name!r} has the classes {spec.classes} in {name} but "
                    f"{known.classes} elsewhere; name the classes in the config."
                )
    return tuple(tasks.values())


def as_records(source: Source) -> Records:
    """Any source as a table; whether a record holds a modality shows when it is read."""
    if isinstance(source, Records):
        return source
    count = range(len(source))
    columns: dict[str, Any] = {
        "record_id": pa.array([source.record_id(i) for i in count], pa.string()),
        "group_id": pa.array([source.group_id(i) for i in count], pa.string()),
    }
    whole = Remembered(source.__getitem__)
    readers = {spec.name: _ImageOf(whole, spec.name) for spec in source.modalities}
    columns |= {at(name): pa.array(np.arange(len(source))) for name in readers}
    columns |= {label(t.name): pa.array(source.labels(t.name), pa.int32()) for t in source.tasks}
    told = [source.attributes(i) for i in count]
    for name in dict.fromkeys(name for cells in told for name in cells):
        columns[ATTRIBUTE + name] = pa.array([cells.get(name) for cells in told], pa.string())
    return Records(
        pa.table(columns),
        readers,
        source.modalities,
        source.tasks,
        description=source.description,
        synthetic=source.synthetic,
        notes=notes_of([source]),
    )


class Kept:
    """A reader that keeps what it has read."""

    def __init__(self, read: Reader):
        self._read = read
        self._kept: dict[Any, np.ndarray | None] = {}

    def __call__(self, place: Any) -> np.ndarray | None:
        if place not in self._kept:
            self._kept[place] = self._read(place)
        return self._kept[place]


@dataclass(frozen=True)
class Several:
    """The readers of tables that were put one after another; a place is a number over all."""

    readers: tuple[Reader, ...]
    places: tuple[pa.Array, ...]

    def __call__(self, place: int) -> np.ndarray | None:
        for reader, places in zip(self.readers, self.places, strict=True):
            if place < len(places):
                return reader(places[place].as_py())
            place -= len(places)
        raise IndexError(place)


class Remembered:
    """A function that remembers, in each thread, its last answer: for images stored together."""

    def __init__(self, function: Callable[[Any], Any]):
        self._function = function
        self._last = threading.local()

    def __call__(self, place: Any) -> Any:
        last = getattr(self._last, "answer", None)
        if last is None or last[0] != place:
            last = self._last.answer = (place, self._function(place))
        return last[1]

    def __reduce__(self):
        return Remembered, (self._function,)


@dataclass(frozen=True)
class _ImageOf:
    records: Callable[[int], Record]
    modality: str

    def __call__(self, place: int) -> np.ndarray | None:
        return self.records(place).images.get(self.modality)


def _with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, values)
    return table.append_column(name, values)


def _single(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
