"""The records of a run: three splits of one source, and how training records are augmented."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from drifa_jax.config import DataConfig, ModalityConfig
from drifa_jax.data.pairing import STRATEGIES, combine
from drifa_jax.data.pipeline import Transform
from drifa_jax.data.record import ModalitySpec, Source
from drifa_jax.data.sources.opening import Location, open_location
from drifa_jax.data.sources.phantoms import SPLITS, PhantomSource
from drifa_jax.data.transforms import PRESETS, Augment
from drifa_jax.errors import UserError


@dataclass(frozen=True)
class Dataset:
    """Training, validation and test records that share modalities and tasks.

    Attributes:
      train: what is trained on.
      validation: chooses checkpoint, learning rate and thresholds.
      test: is looked at once, at the end.
      transform: `(record, generator) -> record`, for training records; None leaves them alone.
      may_lack_modalities: whether a record may lack a modality.
    """

    train: Source
    validation: Source
    test: Source
    transform: Transform | None = None
    may_lack_modalities: bool = False

    @property
    def synthetic(self) -> bool:
        return self.train.synthetic


def open_dataset(config: DataConfig) -> Dataset:
    """The dataset that a configuration names.

    Raises:
      UserError: naming the field, folder or file that is wrong.
    """
    for field, value, choices in (
        ("source", config.source, SOURCES),
        ("augmentation", config.augmentation, PRESETS),
        ("pairing", config.pairing, STRATEGIES),
    ):
        if value not in choices:
            raise UserError(f"config: data.{field} is {value!r}; choose one of {sorted(choices)}.")
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
    return Dataset(**splits, transform=_augmentation(config, shared_geometry=True))


def _files(config: DataConfig) -> Dataset:
    """One root per modality, put together by the pairing strategy."""
    by_split: dict[str, dict[str, Source]] = {name: {} for name in SPLITS}
    for name, modality in config.modalities.items():
        where = f"data.modalities.{name}"
        if not modality.task:
            raise UserError(f"config: {where}.task is empty; name the task that its data label.")
        if not modality.root:
            raise UserError(
                f"config: {where}.root is empty; give the folder with its images, "
                f"--config.{where}.root=FOLDER, or run the embedded phantoms instead: "
                "--config configs/brain.py:quick."
            )
        splits = open_location(location(name, modality, config))
        for split in SPLITS:
            if split not in splits:
                raise UserError(
                    f"{modality.root} is too small: its {split} split is empty. Add images, or "
                    "change data.validation_fraction and data.test_fraction."
                )
            by_split[split][name] = splits[split]
    sources = {
        split: combine(config.pairing, of_modality, evaluation=split != "train")
        for split, of_modality in by_split.items()
    }
    return Dataset(
        **sources,
        transform=_augmentation(config, shared_geometry=config.pairing == "paired"),
        may_lack_modalities=config.pairing in ("by_task", "paired"),
    )


def location(name: str, modality: ModalityConfig, config: DataConfig) -> Location:
    """Where the data of one modality lies, as its configuration says."""
    fields = dataclasses.asdict(modality)
    height, width, channels = (fields.pop(field) for field in ("height", "width", "channels"))
    return Location(
        ModalitySpec(name, height, width, channels),
        seed=config.split_seed,
        validation_fraction=config.validation_fraction,
        test_fraction=config.test_fraction,
        **fields,
    )


def _augmentation(config: DataConfig, *, shared_geometry: bool) -> Augment | None:
    if config.augmentation == "none":
        return None
    settings = PRESETS[config.augmentation]
    return Augment(dict.fromkeys(config.modalities, settings), shared_geometry=shared_geometry)


SOURCES: dict[str, Callable[[DataConfig], Dataset]] = {"phantoms": _phantoms, "files": _files}
"""Name in the configuration -> how its dataset is opened."""
