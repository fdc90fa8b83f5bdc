"""The records of a run: three splits of one source, and how training records are augmented."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from drifa_jax.config import DataConfig
from drifa_jax.data.record import Source
from drifa_jax.data.sources.phantoms import PhantomSource
from drifa_jax.errors import UserError


@dataclass(frozen=True)
class Dataset:
    """Training, validation and test records that share modalities and tasks.

    Attributes:
      train: what is trained on.
      validation: chooses checkpoint, learning rate and thresholds.
      test: is looked at once, at the end.
      transform: augments training records; None leaves them alone.
      may_lack_modalities: whether a record may lack a modality.
    """

    train: Source
    validation: Source
    test: Source
    transform: Any = None
    may_lack_modalities: bool = False

    @property
    def synthetic(self) -> bool:
        return self.train.synthetic


def open_dataset(config: DataConfig) -> Dataset:
    """The dataset that a configuration names.

    Raises:
      UserError: naming the field, folder or file that is wrong.
    """
    if config.source not in SOURCES:
        raise UserError(
            f"config: data.source is {config.source!r}; choose one of {sorted(SOURCES)}."
        )
    return SOURCES[config.source](config)


def _phantoms(config: DataConfig) -> Dataset:
    sizes = {name: modality.height for name, modality in config.modalities.items()}
    for name, modality in config.modalities.items():
        if modality.height != modality.width:
            raise UserError(f"config: data.modalities.{name} must be square for phantoms.")
    channels = {modality.channels for modality in config.modalities.values()}
    if len(channels) != 1:
        raise UserError("config: all phantom modalities must have the same number of channels.")
    counts = {
        "train": config.phantoms.num_train,
        "validation": config.phantoms.num_validation,
        "test": config.phantoms.num_test,
    }
    try:
        splits = {
            split: PhantomSource(split, count, config.phantoms.seed, sizes, channels=min(channels))
            for split, count in counts.items()
        }
    except ValueError as error:
        raise UserError(f"config: data.phantoms: {error}") from error
    return Dataset(**splits)


SOURCES: dict[str, Callable[[DataConfig], Dataset]] = {"phantoms": _phantoms}
"""Name in the configuration -> how its dataset is opened."""
