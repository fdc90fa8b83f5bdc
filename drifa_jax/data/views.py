"""Sources seen differently: fewer modalities, other groups, images kept in memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from drifa_jax.data.record import Record, Source


class View:
    """All records of a source, in its order; a `Source` for others to narrow."""

    def __init__(self, source: Source, description: str = ""):
        self._source = source
        self.description = description or source.description
        self.synthetic = source.synthetic
        self.modalities, self.tasks = source.modalities, source.tasks

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        return self._source[index]

    def labels(self, task: str) -> np.ndarray:
        return self._source.labels(task)

    def record_id(self, index: int) -> str:
        return self._source.record_id(index)

    def group_id(self, index: int) -> str:
        return self._source.group_id(index)


class OnlyModalities(View):
    """Records without the modalities that are not named; labels stay."""

    def __init__(self, source: Source, names: Collection[str]):
        super().__init__(source, f"{source.description}, {' and '.join(names)} only")
        self.modalities = tuple(spec for spec in source.modalities if spec.name in names)

    def __getitem__(self, index: int) -> Record:
        record = self._source[index]
        kept = {m: x for m, x in record.images.items() if m in {s.name for s in self.modalities}}
        return replace(record, images=kept)


class Regrouped(View):
    """Records under other groups, which later splits keep whole."""

    def __init__(self, source: Source, groups: Sequence[str], description: str = ""):
        super().__init__(source, description)
        self._groups = tuple(groups)

    def __getitem__(self, index: int) -> Record:
        return replace(self._source[index], group_id=self._groups[index])

    def group_id(self, index: int) -> str:
        return self._groups[index]


class InMemory(View):
    """Records that are read once and kept, decoded, as long as the source lives."""

    def __init__(self, source: Source):
        super().__init__(source)
        self._kept: dict[int, Record] = {}

    def __getitem__(self, index: int) -> Record:
        index = int(index)
        if index not in self._kept:
            self._kept[index] = self._source[index]
        return self._kept[index]
