"""Prepared sets: records decoded and resized once, stored as ArrayRecord, read without decoding.

A folder holds `prepared.json` (what the records are), and for each split shards of raw pixels
(`train-00000.array_record`) beside an index (`train-00000.parquet`: ids, groups, labels).
Opening reads the indices alone; pixels are read from the shards one record at a time.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from array_record.python.array_record_data_source import ArrayRecordDataSource
from pyarrow import parquet

from drifa_jax.data.record import ModalitySpec, Record, Source, TabularSpec, TaskSpec, VolumeSpec
from drifa_jax.errors import UserError

FORMAT = 1
DESCRIPTION_FILE = "prepared.json"
SPECS = {"image": ModalitySpec, "table": TabularSpec, "volume": VolumeSpec}


@dataclass(frozen=True)
class _Shard:
    """What `ArrayRecordDataSource` wants to know of a file, so that it need not open it."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


def describe(source: Source) -> dict[str, Any]:
    """Modalities and tasks of a source as plain values, for `prepared.json`."""
    kinds = {spec: kind for kind, spec in SPECS.items()}
    return {
        "modalities": [{"kind": kinds[type(m)], **m.__dict__} for m in source.modalities],
        "tasks": [{"name": t.name, "classes": list(t.classes)} for t in source.tasks],
        "synthetic": source.synthetic,
    }


def encode_record(record: Record, modalities: Sequence) -> bytes:
    """One byte of presence a modality, then the raw values of those present."""
    flags = bytes(spec.name in record.images for spec in modalities)
    parts = [
        np.ascontiguousarray(record.images[spec.name]).tobytes()
        for spec in modalities
        if spec.name in record.images
    ]
    return b"".join([flags, *parts])


def decode_record(data: bytes, modalities: Sequence) -> dict[str, np.ndarray]:
    """The images that `encode_record` wrote; read-only views of `data`."""
    images, offset = {}, len(modalities)
    for flag, spec in zip(data[:offset], modalities, strict=True):
        if flag:
            count = int(np.prod(spec.shape))
            values = np.frombuffer(data, spec.dtype, count, offset)
            images[spec.name] = values.reshape(spec.shape)
            offset += count * spec.dtype.itemsize
    return images


class PreparedSource:
    """One split of a prepared set, a `Source`."""

    def __init__(self, folder: Path, split: str, content: Mapping[str, Any]):
        self.modalities = tuple(
            SPECS[m["kind"]](**{k: v for k, v in m.items() if k != "kind"})
            for m in content["modalities"]
        )
        self.tasks = tuple(TaskSpec(t["name"], tuple(t["classes"])) for t in content["tasks"])
        self.synthetic = bool(content["synthetic"])
        self.description = f"{content['description']} ({split} split, prepared in {folder})"
        shards = content["splits"][split]
        names = [f"{split}-{number:05d}" for number in range(len(shards))]
        try:
            self._index = pa.concat_tables(
                [parquet.read_table(folder / f"{name}.parquet") for name in names],
                promote_options="default",  # older sets have no attributes
            ).combine_chunks()
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(
                f"{folder}: the index of the {split} split cannot be read ({error}). Prepare the "
                "set again in an empty folder."
            ) from error
        missing = [n for n in names if not (folder / f"{n}.array_record").is_file()]
        if missing or len(self._index) != sum(shards):
            raise UserError(
                f"{folder}: the {split} split is incomplete (missing shards: {missing}; records "
                f"indexed: {len(self._index)} of {sum(shards)}). Prepare it again."
            )
        self._pixels = ArrayRecordDataSource(
            [
                _Shard(str(folder / f"{name}.array_record"), 0, size, size)
                for name, size in zip(names, shards, strict=True)
                if size
            ]
        )
        self._labels = {
            task.name: self._index[f"label:{task.name}"].to_numpy() for task in self.tasks
        }

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Record:
        index = operator.index(index)
        images = decode_record(self._pixels[index], self.modalities)
        labels = {name: int(column[index]) for name, column in self._labels.items()}
        return Record(self.record_id(index), self.group_id(index), images, labels)

    def labels(self, task: str) -> np.ndarray:
        if task not in self._labels:
            raise ValueError(f"task {task!r} is unknown; choose one of {tuple(self._labels)}")
        return np.array(self._labels[task])

    def record_id(self, index: int) -> str:
        return self._index["record_id"][index].as_py()

    def group_id(self, index: int) -> str:
        return self._index["group_id"][index].as_py()

    def attributes(self, index: int) -> dict[str, str]:
        if "attributes" not in self._index.column_names:
            return {}
        return json.loads(self._index["attributes"][index].as_py() or "{}")


def open_prepared(folder: str | Path) -> dict[str, PreparedSource]:
    """Split -> source of a prepared set.

    Raises:
      UserError: if the folder holds none, an unfinished one, or one of another version.

    Test: tests/data/test_prepare.py.
    """
    folder = Path(folder)
    path = folder / DESCRIPTION_FILE
    if not path.is_file():
        if (folder / "plan.json").is_file():
            raise UserError(
                f"{folder}: the preparation was interrupted; give the same `drifa data prepare` "
                "command again, and it goes on where it stopped."
            )
        raise UserError(f"{folder} holds no prepared set; make one with `drifa data prepare`.")
    try:
        content = json.loads(path.read_text())
        version = content["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is not the description of a prepared set ({error}).") from error
    if version != FORMAT:
        raise UserError(
            f"{folder}: was prepared in the format {version}, this version reads {FORMAT}. "
            "Prepare the set again in an empty folder."
        )
    return {split: PreparedSource(folder, split, content) for split in content["splits"]}
