"""Data of the right shapes where those of a configuration lie on another machine.

What a program costs depends on the sizes of images and batches, and next to nothing on the number
of classes; so a slice can be planned for from a laptop that has no data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from drifa_jax.config import DataConfig, ModalityConfig
from drifa_jax.data.dataset import Dataset, open_dataset
from drifa_jax.data.record import Record, Spec, TaskSpec, pixel_spec
from drifa_jax.errors import UserError

ASSUMED_CLASSES = 4


class StandIn:
    """A source of `num_records` black pictures, whose labels go through the classes in turn."""

    description = "pictures of the configured sizes, in the place of data that are not here"
    synthetic = True

    def __init__(self, modalities: tuple[Spec, ...], tasks: tuple[TaskSpec, ...], num_records: int):
        self.modalities, self.tasks, self._num_records = modalities, tasks, num_records

    def __len__(self) -> int:
        return self._num_records

    def __getitem__(self, index: int) -> Record:
        images = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in self.modalities}
        labels = {task.name: index % task.num_classes for task in self.tasks}
        return Record(self.record_id(index), self.group_id(index), images, labels)

    def labels(self, task: str) -> np.ndarray:
        (of_task,) = [spec for spec in self.tasks if spec.name == task]
        return np.arange(self._num_records, dtype=np.int32) % of_task.num_classes

    def record_id(self, index: int) -> str:
        return str(index)

    def group_id(self, index: int) -> str:
        return str(index)

    def attributes(self, index: int) -> dict[str, str]:
        return {}


def open_or_stand_in(config: DataConfig, num_records: int) -> tuple[Dataset, str]:
    """The data of a configuration, or a stand-in where they are not on this machine; and a note.

    Args:
      config: of the data.
      num_records: of the stand-in.

    Raises:
      UserError: for data that are here and wrong, and tables that are not here, whose columns
        cannot be guessed.
    """
    if config.source != "files" or any(_is_here(m) for m in config.modalities.values()):
        return open_dataset(config), ""
    for name, modality in config.modalities.items():
        if modality.numeric_columns or modality.categorical_columns:
            raise UserError(
                f"config: the table of {name} is not on this machine, and what its columns become "
                "depends on its rows; compile where the data are."
            )
    specs = tuple(
        pixel_spec(name, modality)
        for name, modality in config.modalities.items()
        if name in (config.only_modalities or config.modalities)
    )
    splits = {
        split: StandIn(specs, _tasks(config.modalities), num_records)
        for split in ("train", "validation", "test")
    }
    lacks = config.modality_dropout > 0 or config.pairing in ("by_task", "paired")
    return Dataset(**splits, may_lack_modalities=lacks), (
        f"the data are not on this machine; compiled is for pictures of their sizes, with "
        f"{ASSUMED_CLASSES} classes where the configuration names none"
    )


def _is_here(modality: ModalityConfig) -> bool:
    return any(place and Path(place).exists() for place in (modality.root, modality.table))


def _tasks(modalities: Mapping[str, ModalityConfig]) -> tuple[TaskSpec, ...]:
    assumed = tuple(f"class {number}" for number in range(ASSUMED_CLASSES))
    return tuple(
        {
            modality.task or name: TaskSpec(modality.task or name, modality.classes or assumed)
            for name, modality in modalities.items()
        }.values()
    )
