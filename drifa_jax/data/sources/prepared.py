"""Prepared sets: records decoded and resized once, stored as ArrayRecord, read without decoding.

A folder holds `prepared.json` (what the records are), and for each split shards of raw pixels
(`train-00000.array_record`) beside an index (`train-00000.parquet`: ids, groups, labels).
Opening reads the indices alone; pixels are read from the shards one record at a time. The
description carries a digest of itself, each index the name of its shard, and the pixels of a
record a digest of its id, so that files which were edited or changed places are noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from array_record.python.array_record_data_source import ArrayRecordDataSource
from pyarrow import parquet

from drifa_jax.config import ModalityConfig
from drifa_jax.data.record import (
    ModalitySpec,
    Record,
    Source,
    Spec,
    TabularSpec,
    TaskSpec,
    VolumeSpec,
    pixel_spec,
)
from drifa_jax.data.records import ATTRIBUTE, SPLIT, Records, Remembered, at, concatenate
from drifa_jax.digests import is_whole
from drifa_jax.errors import UserError

FORMAT = 2
OLDEST_FORMAT = 1
"""Sets of format 1 are read as well; they carry no digests."""

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


def name_digest(record_id: str) -> bytes:
    """Eight bytes that stand before the pixels of a record and tell whose they are."""
    return hashlib.blake2b(record_id.encode(), digest_size=8).digest()


def encode_record(record: Record, modalities: Sequence) -> bytes:
    """Digest of the id, one byte of presence a modality, then the raw values of those present."""
    flags = bytes(spec.name in record.images for spec in modalities)
    parts = [
        np.ascontiguousarray(record.images[spec.name]).tobytes()
        for spec in modalities
        if spec.name in record.images
    ]
    return b"".join([name_digest(record.record_id), flags, *parts])


def decode_record(data: bytes, modalities: Sequence, start: int = 8) -> dict[str, np.ndarray]:
    """The images that `encode_record` wrote, whose flags begin at `start`; read-only views."""
    images, offset = {}, start + len(modalities)
    for flag, spec in zip(data[start:offset], modalities, strict=True):
        if flag:
            count = int(np.prod(spec.shape))
            values = np.frombuffer(data, spec.dtype, count, offset)
            images[spec.name] = values.reshape(spec.shape)
            offset += count * spec.dtype.itemsize
    return images


@dataclass(frozen=True)
class _Stored:
    """Reads the images of one modality from the shards, by the number of the record."""

    images: Callable[[int], Mapping[str, np.ndarray]]
    modality: str

    def __call__(self, number: int) -> np.ndarray | None:
        return self.images(number).get(self.modality)


@dataclass(frozen=True)
class _Shards:
    pixels: ArrayRecordDataSource
    modalities: tuple[Spec, ...]
    ids: pa.Array | None

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        data = self.pixels[number]
        if self.ids is None:
            return decode_record(data, self.modalities, start=0)
        record_id = self.ids[number].as_py()
        if data[:8] != name_digest(record_id):
            raise UserError(
                f"{record_id}: its shard holds the images of another record; files of the prepared "
                "set were exchanged. Prepare it again in an empty folder."
            )
        return decode_record(data, self.modalities)


def _open_split(folder: Path, split: str, content: Mapping[str, Any]) -> Records:
    modalities = tuple(
        SPECS[m["kind"]](**{k: v for k, v in m.items() if k != "kind"})
        for m in content["modalities"]
    )
    shards = content["splits"][split]
    names = [f"{split}-{number:05d}" for number in range(len(shards))]
    try:
        table = pa.concat_tables(
            [parquet.read_table(folder / f"{name}.parquet") for name in names],
            promote_options="default",  # older sets have no attributes
        )
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"{folder}: the index of the {split} split cannot be read ({error}). Prepare the "
            "set again in an empty folder."
        ) from error
    if content["format"] != OLDEST_FORMAT:
        _check_places(folder, names)
    missing = [n for n in names if not (folder / f"{n}.array_record").is_file()]
    if missing or len(table) != sum(shards):
        raise UserError(
            f"{folder}: the {split} split is incomplete (missing shards: {missing}; records "
            f"indexed: {len(table)} of {sum(shards)}). Prepare it again."
        )
    pixels = ArrayRecordDataSource(
        [
            _Shard(str(folder / f"{name}.array_record"), 0, size, size)
            for name, size in zip(names, shards, strict=True)
            if size
        ]
    )
    # Records of several modalities are stored in one piece, which is read once for all.
    checked = content["format"] != OLDEST_FORMAT
    ids = table["record_id"].combine_chunks() if checked else None
    images = Remembered(_Shards(pixels, modalities, ids))
    table = _with_attributes(table).append_column(SPLIT, pa.array([split] * len(table)))
    for spec in modalities:
        table = table.append_column(at(spec.name), pa.array(np.arange(len(table))))
    return Records(
        table,
        {spec.name: _Stored(images, spec.name) for spec in modalities},
        modalities,
        [TaskSpec(t["name"], tuple(t["classes"])) for t in content["tasks"]],
        description=f"{content['description']} ({split} split, prepared in {folder})",
        synthetic=bool(content["synthetic"]),
        notes=content.get("notes", ()),
    )


def _check_places(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        said = (parquet.read_schema(folder / f"{name}.parquet").metadata or {}).get(b"shard", b"")
        if said.decode() != name:
            raise UserError(
                f"{folder / name}.parquet is the index of {said.decode() or 'another set'}; files "
                "of the prepared set were exchanged. Prepare it again in an empty folder."
            )


def _with_attributes(table: pa.Table) -> pa.Table:
    """Attributes as columns; older sets hold them as JSON, the same again and again."""
    if "attributes" not in table.column_names:
        return table
    coded = table["attributes"].combine_chunks().dictionary_encode()
    told = [json.loads(text or "{}") for text in coded.dictionary.to_pylist()]
    for name in dict.fromkeys(name for row in told for name in row):
        cells = pa.array([row.get(name) for row in told], pa.string())
        table = table.append_column(ATTRIBUTE + name, cells.take(coded.indices))
    return table.drop_columns("attributes")


def scan(name: str, at: ModalityConfig, quarantine: str | None = None) -> Records:
    """The format `prepared`, with the splits that it was prepared in."""
    splits = open_prepared(at.root)
    for records in splits.values():
        if records.modalities != (pixel_spec(name, at),):
            raise UserError(
                f"{at.root} was prepared as {records.modalities}, the configuration asks for "
                f"{pixel_spec(name, at)}. Change the configuration, or prepare the set again."
            )
        if [task.name for task in records.tasks] != [at.task]:
            raise UserError(
                f"{at.root} was prepared for the tasks {[t.name for t in records.tasks]}, "
                f"the configuration asks for {at.task!r}."
            )
    return concatenate(list(splits.values()), f"{name} records prepared in {at.root}")


def open_prepared(folder: str | Path) -> dict[str, Records]:
    """Split -> records of a prepared set.

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
    if version not in (OLDEST_FORMAT, FORMAT):
        raise UserError(
            f"{folder}: was prepared in the format {version}, this version reads {FORMAT}. "
            "Prepare the set again in an empty folder."
        )
    if version != OLDEST_FORMAT and not is_whole(content):
        raise UserError(f"{path}: was changed after it was written. Prepare the set again.")
    if odd := [split for split in content["splits"] if not split.isidentifier()]:
        raise UserError(f"{path}: names the splits {odd}, which are no names of files.")
    return {split: _open_split(folder, split, content) for split in content["splits"]}
