"""Building the known data sets, and reading what was built, without TensorFlow."""

from __future__ import annotations

import importlib
import logging
import operator
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from drifa_jax.data.decode import decode_bytes
from drifa_jax.data.record import ModalitySpec, Record, Source, TaskSpec
from drifa_jax.data.splits import split_source
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


class BuiltSource:
    """One split of a built data set, a `Source`; images are decoded when they are read."""

    synthetic = False

    def __init__(
        self, folder: str | Path, split: str, modality: ModalitySpec, *, fit: str = "stretch"
    ):
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(str(folder))
        self._rows = builder.as_data_source(
            split=split, decoders={"image": tfds.decode.SkipDecoding()}
        )
        task = str(builder.info.metadata["task"])
        self.modalities = (modality,)
        self.tasks = (TaskSpec(task, tuple(builder.info.features["label"].names)),)
        self.description = f"{builder.info.name}, {split} split, in {folder}"
        self._fit = fit
        rows = [self._rows[i] for i in range(len(self._rows))]
        self._ids = [_text(row["record_id"]) for row in rows]
        self._groups = [_text(row["group_id"]) for row in rows]
        self._labels = np.array([row["label"] for row in rows], np.int32)
        columns = set(builder.info.features) - {"image", "label", "record_id", "group_id"}
        self.rows = {
            one: {column: _text(row[column]) for column in sorted(columns)}
            for one, row in zip(self._ids, rows, strict=True)
        }

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Record:
        index = operator.index(index)
        modality, task = self.modalities[0], self.tasks[0]
        image = decode_bytes(
            self._rows[index]["image"], modality, fit=self._fit, name=self._ids[index]
        )
        return Record(
            self._ids[index],
            self._groups[index],
            {modality.name: image},
            {task.name: int(self._labels[index])},
        )

    def labels(self, task: str) -> np.ndarray:
        if task != self.tasks[0].name:
            raise ValueError(f"task {task!r} is unknown; choose {self.tasks[0].name!r}")
        return self._labels.copy()

    def record_id(self, index: int) -> str:
        return self._ids[index]

    def group_id(self, index: int) -> str:
        return self._groups[index]

    def attributes(self, index: int) -> dict[str, str]:
        return dict(self.rows[self._ids[index]])


def built_splits(
    folder: str | Path,
    modality: ModalitySpec,
    *,
    seed: int,
    fractions: Mapping[str, float],
    fit: str = "stretch",
) -> dict[str, Source]:
    """train, validation and test of a built set; what it does not bring is drawn by group."""
    import tensorflow_datasets as tfds

    if not (Path(folder) / "dataset_info.json").is_file():
        raise UserError(
            f"{folder} holds no data set built by tfds; make one with "
            "`drifa data prepare --builder NAME`."
        )
    names = list(tfds.builder_from_directory(str(folder)).info.splits)
    if names == ["full"]:
        return dict(split_source(BuiltSource(folder, "full", modality, fit=fit), fractions, seed))
    splits: dict[str, Source] = {
        name: BuiltSource(folder, name, modality, fit=fit) for name in names
    }
    share = fractions.get("validation", 0)
    if share and "validation" not in splits:
        shares = {"train": 1 - share, "validation": share}
        splits |= split_source(splits["train"], shares, seed)
    return splits


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
