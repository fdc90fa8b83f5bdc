"""Sets of images that TensorFlow Datasets has prepared, read without TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drifa_jax.config import ModalityConfig
from drifa_jax.data.decode import decode_bytes
from drifa_jax.data.record import MISSING_LABEL, ModalitySpec, TaskSpec, image_spec
from drifa_jax.data.records import Records, concatenate, make_records
from drifa_jax.data.sources.folders import SPLIT_FOLDERS
from drifa_jax.data.sources.tfrecords import TFRecords
from drifa_jax.errors import UserError

IDS = ("record_id", "image_id", "id", "file_name", "filename", "image/filename")
"""Features that name a record; the first that a set has."""


@dataclass(frozen=True)
class _Features:
    """Which feature is what; "" where a set has none."""

    image: str
    label: str
    record_id: str
    group: str
    attributes: tuple[str, ...]


@dataclass(frozen=True)
class _StoredImages:
    """Reads and decodes the images of one split, by the number of the record."""

    rows: Any
    feature: str
    ids: Sequence[str]
    modality: ModalitySpec
    fit: str

    def __call__(self, number: int) -> np.ndarray:
        data = self.rows[number][self.feature]
        return decode_bytes(data, self.modality, fit=self.fit, name=self.ids[number])


@dataclass(frozen=True)
class _Examples:
    """The examples that records hold, as `as_data_source` gives those of other formats."""

    records: TFRecords
    features: Any
    decoders: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        return self.features.deserialize_example_np(self.records[number], decoders=self.decoders)


def scan(name: str, config: ModalityConfig, quarantine: str | None = None) -> Records:
    """The format `tfds`: a folder with a version of a prepared set, with the splits it brings.

    Any set with images and class labels, stored as ArrayRecord or TFRecord. Where several features
    are images or class labels, `image_column` and `label_column` name one; `group_column` names the
    patient.

    Raises:
      UserError: where the folder holds no such set, or leaves open which feature is meant.

    Test: tests/data/sources/test_tfds_sets.py.
    """
    import tensorflow_datasets as tfds

    folder = config.root
    if not (Path(folder) / "dataset_info.json").is_file():
        raise UserError(
            f"{folder} holds no data set prepared by tfds: give the folder of a version, with its "
            "dataset_info.json, or make one with `drifa data prepare --builder NAME`."
        )
    builder = tfds.builder_from_directory(str(folder))
    stored = getattr(builder.info.file_format, "value", builder.info.file_format)
    if stored not in ("array_record", "tfrecord"):
        raise UserError(
            f"{folder} is stored as {stored}, which cannot be read record by record. Prepare it "
            "anew: tfds.builder(NAME, file_format='array_record').download_and_prepare()."
        )
    features = _features(builder.info.features, config)
    modality = image_spec(name, config)
    parts = [_split(builder, split, features, modality, config) for split in builder.info.splits]
    return concatenate(parts, f"{builder.info.name} in {folder}")


def _features(held: Any, config: ModalityConfig) -> _Features:
    import tensorflow_datasets as tfds

    def chosen(kind: type, asked: str, field: str, what: str) -> str:
        found = [key for key in sorted(held) if isinstance(held[key], kind)]
        if asked in found:
            return asked
        if len(found) != 1:
            told = ", ".join(found) or "none"
            raise UserError(
                f"{config.root}: its features {sorted(held)} hold {len(found)} {what} ({told}); "
                f"name one with {field}, if there are several."
            )
        return found[0]

    image = chosen(tfds.features.Image, config.image_column, "image_column", "images")
    label = chosen(tfds.features.ClassLabel, config.label_column, "label_column", "class labels")
    group = config.group_column or ("group_id" if "group_id" in held else "")
    if group and group not in held:
        raise UserError(
            f"{config.root}: group_column {group!r} is no feature; there are {sorted(held)}."
        )
    record_id = next((key for key in IDS if key in held), "")
    told = tuple(
        key
        for key in sorted(set(held) - {image, label, record_id, group})
        if held[key].shape == () and not isinstance(held[key], tfds.features.FeaturesDict)
    )
    return _Features(image, label, record_id, group, told)


def _split(
    builder: Any, split: str, features: _Features, modality: ModalitySpec, config: ModalityConfig
) -> Records:
    import tensorflow_datasets as tfds

    decoders = {features.image: tfds.decode.SkipDecoding()}
    if builder.info.file_format.value == "tfrecord":
        files = [Path(file) for file in builder.info.splits[split].filepaths]
        source = _Examples(TFRecords(files), builder.info.features, decoders)
    else:
        source = builder.as_data_source(split=split, decoders=decoders)
    rows = [
        {key: value for key, value in source[i].items() if key != features.image}
        for i in range(len(source))
    ]
    numbered = [f"{split}-{number:06d}" for number in range(len(rows))]
    ids = _texts(rows, features.record_id) or numbered
    metadata: Mapping[str, Any] = builder.info.metadata or {}
    task = str(metadata.get("task") or config.task or features.label)
    return make_records(
        modality,
        TaskSpec(task, tuple(builder.info.features[features.label].names)),
        ids=ids,
        groups=_texts(rows, features.group) or ids,
        labels=[max(int(row[features.label]), MISSING_LABEL) for row in rows],
        places=np.arange(len(rows)),
        splits=[SPLIT_FOLDERS.get(split, "")] * len(rows),
        attributes={name: _texts(rows, name) for name in features.attributes},
        reader=_StoredImages(source, features.image, tuple(ids), modality, config.fit),
        description=f"{builder.info.name}, {split} split, in {config.root}",
    )


def _texts(rows: Sequence[Mapping[str, Any]], feature: str) -> list[str]:
    """The values of a feature; none for no feature."""
    if not feature:
        return []
    values = [row[feature] for row in rows]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]
