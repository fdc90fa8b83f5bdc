"""Building the known data sets, and reading what was built, without TensorFlow."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drifa_jax.config import ModalityConfig
from drifa_jax.data.decode import decode_bytes
from drifa_jax.data.record import ModalitySpec, TaskSpec, image_spec
from drifa_jax.data.records import Records, concatenate, make_records
from drifa_jax.errors import UserError

BUILDERS: Mapping[str, tuple[str, str]] = {
    "ham10000": ("ham10000", "Ham10000"),
    "sipakmed": ("sipakmed", "Sipakmed"),
    "brain_tumor_mri": ("brain_mri", "BrainTumorMri"),
    "iq_othnccd_lung_ct": ("lung_ct", "IqOthnccdLungCt"),
    "brain_stroke_ct": ("brain_stroke_ct", "BrainStrokeCt"),
    "covid_chestxray": ("covid_chestxray", "CovidChestxray"),
    "sars_cov2_ct": ("sars_cov2_ct", "SarsCov2Ct"),
}
"""Name -> module in this folder and class."""


def build(name: str, manual_dir: str | Path | None, data_dir: str | Path) -> Path:
    """Store a downloaded data set as ArrayRecord below `data_dir`; returns its folder.

    Raises:
      UserError: if the name is unknown or the download is missing or not what it should be.

    Test: tests/data/builders/test_building.py.
    """
    if name not in BUILDERS:
        raise UserError(f"The builder {name!r} is unknown; choose one of {sorted(BUILDERS)}.")
    import tensorflow_datasets as tfds

    module, kind = BUILDERS[name]
    builder_class = getattr(importlib.import_module(f"drifa_jax.data.builders.{module}"), kind)
    builder = builder_class(data_dir=str(data_dir), file_format="array_record")
    if manual_dir is None or not Path(manual_dir).is_dir():
        raise UserError(
            f"The folder {manual_dir} does not exist (--manual-dir). "
            f"{builder.MANUAL_DOWNLOAD_INSTRUCTIONS}"
        )
    config = tfds.download.DownloadConfig(manual_dir=Path(manual_dir))
    # The tfds bars of every split would scroll away the messages of this package.
    tfds.disable_progress_bar()
    logging.getLogger("absl").setLevel(logging.WARNING)
    builder.download_and_prepare(download_config=config)
    return Path(builder.data_path)


@dataclass(frozen=True)
class _BuiltImages:
    """Reads and decodes the images of one split, by the number of the record."""

    rows: Any
    ids: Sequence[str]
    modality: ModalitySpec
    fit: str

    def __call__(self, number: int) -> np.ndarray:
        data = self.rows[number]["image"]
        return decode_bytes(data, self.modality, fit=self.fit, name=self.ids[number])


def scan(name: str, config: ModalityConfig, quarantine: str | None = None) -> Records:
    """The format `tfds`: a set that `build` stored, with the splits that it brings."""
    import tensorflow_datasets as tfds

    folder = config.root
    if not (Path(folder) / "dataset_info.json").is_file():
        raise UserError(
            f"{folder} holds no data set built by tfds; make one with "
            "`drifa data prepare --builder NAME`."
        )
    builder = tfds.builder_from_directory(str(folder))
    parts = [
        _built(builder, split, image_spec(name, config), config) for split in builder.info.splits
    ]
    return concatenate(parts, f"{builder.info.name} in {folder}")


def _built(builder: Any, split: str, modality: ModalitySpec, config: ModalityConfig) -> Records:
    import tensorflow_datasets as tfds

    source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    rows = [{k: v for k, v in source[i].items() if k != "image"} for i in range(len(source))]
    ids = [_text(row["record_id"]) for row in rows]
    columns = sorted(set(builder.info.features) - {"image", "label", "record_id", "group_id"})
    task = str(builder.info.metadata["task"])
    return make_records(
        modality,
        TaskSpec(task, tuple(builder.info.features["label"].names)),
        ids=ids,
        groups=[_text(row["group_id"]) for row in rows],
        labels=[int(row["label"]) for row in rows],
        places=np.arange(len(rows)),
        splits=["" if split == "full" else split] * len(rows),
        attributes={column: [_text(row[column]) for row in rows] for column in columns},
        reader=_BuiltImages(source, tuple(ids), modality, config.fit),
        description=f"{builder.info.name}, {split} split, in {config.root}",
    )


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
