"""A folder of predictions in parts, each whole or absent, that a later start completes.

    predictions/
      _predictions.json        sealed: what the folder belongs to
      part-000000.parquet      the first records, as `predictions.files` writes them
      part-000001.parquet ...

Every part but the last holds the same number of records, so that a number names its records.
Names that begin with `_` are passed over by Arrow, Spark and DuckDB, which read the folder as one
table.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from drifa_jax.console import printable
from drifa_jax.errors import UserError
from drifa_jax.predictions.files import read_predictions, write_predictions
from drifa_jax.predictions.table import Predictions, joined
from drifa_jax.sealed_files import read_sealed, write_sealed
from drifa_jax.whole_files import only_one

SEAL, LOCK, STAGING = "_predictions.json", "_lock", "_unfinished"
CURE = "Give --out another folder, or delete this one."


class Partitions:
    """The parts of one prediction in a folder.

    Args:
      folder: it exists.
      count: how many there are when all are written.
    """

    def __init__(self, folder: Path, count: int):
        self.folder, self.count = folder, count

    def path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.parquet"

    def absent(self) -> list[int]:
        """Numbers of the parts that are still to be written."""
        held = set(os.listdir(self.folder))
        return [number for number in range(self.count) if self.path(number).name not in held]

    def write(self, number: int, predictions: Predictions) -> None:
        """Writes one part, whole or not at all, however many machines write it at once."""
        aside = self.folder / STAGING / uuid.uuid4().hex
        aside.mkdir(parents=True)
        try:
            write_predictions(predictions, aside / self.path(number).name)
            os.replace(aside / self.path(number).name, self.path(number))
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def summary(self) -> Iterator[str]:
        """A line a task: how many records each diagnosis has, and how many are to be referred."""
        files = [self.path(number) for number in range(self.count)]
        names = pq.read_schema(files[0]).names
        for task in [name.removesuffix("/predicted") for name in names if "/predicted" in name]:
            columns = [f"{task}/predicted", f"{task}/refer"]
            predicted, referred = Counter(), 0
            for file in files:
                part = pq.read_table(file, columns=columns)
                predicted.update(part[columns[0]].to_pylist())
                referred += sum(map(bool, part[columns[1]].to_pylist()))
            counts = ", ".join(f"{count:,} {name}" for name, count in predicted.most_common())
            yield printable(f"{task}: {counts}; {referred:,} to refer")


@contextmanager
def opened_partitions(folder: Path, count: int, belongs_to: Mapping[str, Any]) -> Iterator:
    """The parts in a new folder, or in one that an earlier start of the same began.

    Args:
      folder: where they are; its parent exists.
      count: of the parts.
      belongs_to: plain values that say what the parts are of.

    Raises:
      UserError: where the folder holds something else, or another process writes into it.
    """
    folder.mkdir(exist_ok=True)
    with only_one(folder / LOCK, f"{folder}: another process writes its predictions there now."):
        held = {name for name in os.listdir(folder) if name != LOCK}
        wanted = json.loads(json.dumps({"partitions": count, **belongs_to}))
        if SEAL in held:
            found = read_sealed(folder / SEAL, CURE)
            if different := [n for n in wanted if found.get(n) != wanted[n]]:
                was = ", ".join(f"{n} {found.get(n)!r}, not {wanted[n]!r}" for n in different)
                raise UserError(f"{folder} holds other predictions ({was}). {CURE}")
        elif held:
            raise UserError(f"{folder} holds other files ({min(held)}). {CURE}")
        else:
            write_sealed(folder / SEAL, wanted)
        # Nobody else is here: what lies aside was left by a start that was killed.
        shutil.rmtree(folder / STAGING, ignore_errors=True)
        yield Partitions(folder, count)
        shutil.rmtree(folder / STAGING, ignore_errors=True)


def read_partitions(folder: Path) -> Predictions:
    """All records of a complete folder, in their order.

    Raises:
      UserError: where it is no such folder, or some part is absent or damaged.
    """
    if not (folder / SEAL).is_file():
        raise UserError(f"{folder} is no folder of predictions; it has no {SEAL}.")
    partitions = Partitions(folder, read_sealed(folder / SEAL, "Predict again.")["partitions"])
    if absent := partitions.absent():
        raise UserError(
            f"{folder} lacks {len(absent)} of {partitions.count} parts; start its `drifa predict` "
            "again, which completes it."
        )
    return joined([read_predictions(partitions.path(n)) for n in range(partitions.count)])
