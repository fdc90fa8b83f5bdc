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
from drifa_jax.data.problems import reading
from drifa_jax.data.record import (
    MISSING_LABEL,
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
from drifa_jax.digests import digest, is_whole
from drifa_jax.errors import UserError
from drifa_jax.whole_files import written_whole

FORMAT = 2
OLDEST_FORMAT = 1
"""Sets of format 1 are read as well; they carry no digests."""

DESCRIPTION_FILE = "prepared.json"
CURE = "Prepare the set again in an empty folder."
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
    folder: Path

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        with reading(self.folder, "holds a shard that is damaged"):
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
        indexes = [read_index(folder, name) for name in names]
        # Older sets have no attributes.
        table = pa.concat_tables(indexes, promote_options="default")
        tasks = [TaskSpec(t["name"], tuple(t["classes"])) for t in content["tasks"]]
        _check_columns(table, tasks)
    except (ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(
            f"{folder}: the index of the {split} split cannot be read ({error}). {CURE}"
        ) from error
    if content["format"] != OLDEST_FORMAT:
        _check_places(folder, names, indexes)
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
    images = Remembered(_Shards(pixels, modalities, ids, folder))
    table = _with_attributes(table).append_column(SPLIT, pa.array([split] * len(table)))
    for spec in modalities:
        table = table.append_column(at(spec.name), pa.array(np.arange(len(table))))
    return Records(
        table,
        {spec.name: _Stored(images, spec.name) for spec in modalities},
        modalities,
        tasks,
        description=f"{content['description']} ({split} split, prepared in {folder})",
        synthetic=bool(content["synthetic"]),
        notes=content.get("notes", ()),
    )


def write_index(path: Path, table: pa.Table, problems: Sequence[tuple[str, str]]) -> None:
    """Writes the index of a shard beside it, whole or not at all.

    Args:
      path: of the shard, without suffix.
      table: ids, groups, attributes and labels of its records.
      problems: (where, what) of the records that were left out of it.
    """
    facts = {"problems": json.dumps(problems), "shard": path.name}
    facts["digest"] = _digest(table, facts)
    with written_whole(path.with_name(f"{path.name}.parquet")) as partial:
        parquet.write_table(table.replace_schema_metadata(facts), partial)


def read_index(folder: Path, name: str) -> pa.Table:
    """What `write_index` wrote.

    Raises:
      UserError: when it cannot be read or is not what was written.
    """
    path = folder / f"{name}.parquet"
    with reading(path, "cannot be read"):
        table = parquet.read_table(path)
    metadata = table.schema.metadata or {}
    facts = {k.decode(errors="replace"): v.decode(errors="replace") for k, v in metadata.items()}
    # Those of earlier releases have none.
    if facts.pop("digest", None) not in (None, _digest(table, facts)):
        raise UserError(f"{path}: is not what was written. {CURE}")
    return table.replace_schema_metadata(metadata)


def _digest(table: pa.Table, facts: Mapping[str, str]) -> str:
    cells = {name: table[name].to_pylist() for name in table.column_names}
    return digest([cells, facts.get("shard"), facts.get("problems")])


def _check_columns(table: pa.Table, tasks: Sequence[TaskSpec]) -> None:
    """Raises `ValueError` where there is a column too few, or a label that is no class."""
    if table["record_id"].null_count or table["group_id"].null_count:
        raise ValueError("it lacks ids")
    for task in tasks:
        labels = table[f"label:{task.name}"].to_numpy()
        if not ((labels >= MISSING_LABEL) & (labels < task.num_classes)).all():
            raise ValueError(f"it holds labels of {task.name!r} that are none of its classes")


def _check_places(folder: Path, names: Sequence[str], indexes: Sequence[pa.Table]) -> None:
    for name, index in zip(names, indexes, strict=True):
        said = (index.schema.metadata or {}).get(b"shard", b"")
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
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: is not the description of a prepared set ({error}). {CURE}"
        ) from error
    if version not in (OLDEST_FORMAT, FORMAT):
        raise UserError(
            f"{folder}: was prepared in the format {version}, this version reads {FORMAT}. "
            "Prepare the set again in an empty folder."
        )
    if (version != OLDEST_FORMAT or "digest" in content) and not is_whole(content):
        raise UserError(f"{path}: was changed after it was written. Prepare the set again.")
    if odd := [split for split in content["splits"] if not split.isidentifier()]:
        raise UserError(f"{path}: names the splits {odd}, which are no names of files.")
    return {split: _open_split(folder, split, content) for split in content["splits"]}
