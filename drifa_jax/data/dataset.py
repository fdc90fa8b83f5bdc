"""The records of a run: three splits of one source, and how training records are augmented."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from drifa_jax.config import DataConfig, ModalityConfig
from drifa_jax.data.duplicates import (
    Duplicate,
    find_duplicates,
    groups_with_duplicates,
    remove_duplicates,
    write_table,
)
from drifa_jax.data.pairing import STRATEGIES, combine
from drifa_jax.data.pipeline import Transform
from drifa_jax.data.record import ModalitySpec, Source
from drifa_jax.data.sources.opening import Location, open_location
from drifa_jax.data.sources.phantoms import SPLITS, PhantomSource
from drifa_jax.data.split_manifest import describe_split, load_split
from drifa_jax.data.splits import Concatenated, k_folds, split_source
from drifa_jax.data.table import TableColumns, TableEncoding, add_table, read_table
from drifa_jax.data.transforms import PRESETS, Augment
from drifa_jax.data.views import InMemory, OnlyModalities, Regrouped
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
      parts: modality -> its splits before pairing; empty for the phantoms.
      duplicates: modality -> what was found across its splits and left training.
      split_seed: drew the splits that the data did not bring.
      tables: tabular modality -> how its rows become numbers, fitted on training rows.
    """

    train: Source
    validation: Source
    test: Source
    transform: Transform | None = None
    may_lack_modalities: bool = False
    parts: Mapping[str, Mapping[str, Source]] = dataclasses.field(default_factory=dict)
    duplicates: Mapping[str, list[Duplicate]] = dataclasses.field(default_factory=dict)
    split_seed: int = 0
    tables: Mapping[str, TableEncoding] = dataclasses.field(default_factory=dict)

    @property
    def synthetic(self) -> bool:
        return self.train.synthetic

    def save_splits(self, folder: Path) -> None:
        """Writes who is in which split, and which duplicates were removed, for each modality.

        `data.split_folder` reads such a folder again. What is there already stays.
        """
        for name, splits in self.parts.items():
            path = folder / f"{name}.json"
            if path.is_file():
                continue
            folder.mkdir(parents=True, exist_ok=True)
            describe_split(splits, self.split_seed).save(path)
            if self.duplicates.get(name):
                write_table(folder / f"{name}-duplicates.csv", self.duplicates[name])


def open_dataset(config: DataConfig) -> Dataset:
    """The dataset that a configuration names.

    Raises:
      UserError: naming the field, folder or file that is wrong.
    """
    for field, value, choices in (
        ("source", config.source, SOURCES),
        ("augmentation", config.augmentation, PRESETS),
        ("pairing", config.pairing, STRATEGIES),
        ("duplicates", config.duplicates, ("keep", "remove", "group")),
    ):
        if value not in choices:
            raise UserError(f"config: data.{field} is {value!r}; choose one of {sorted(choices)}.")
    known = modality_names(config)
    if unknown := sorted(set(config.only_modalities) - set(known)):
        raise UserError(
            f"config: data.only_modalities names {unknown}; the modalities are {list(known)}."
        )
    dataset = SOURCES[config.source](config)
    for task in dataset.train.tasks:
        if task.num_classes < 2:
            roots = [m.root for m in config.modalities.values() if m.task == task.name]
            raise UserError(
                f"The task {task.name!r} has one class only ({', '.join(task.classes)}), so there "
                f"is nothing to tell apart. Do the folders of its classes lie further down in "
                f"{', '.join(roots) or 'the data'}?"
            )
    return dataset


def modality_names(config: DataConfig) -> tuple[str, ...]:
    """Of the images and, where columns of a table are read, of the tables."""
    names = []
    for name, modality in config.modalities.items():
        names.append(name)
        if modality.numeric_columns or modality.categorical_columns:
            names.append(f"{name}_table")
    return tuple(names)


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
    if config.only_modalities:
        splits = {s: OnlyModalities(of, config.only_modalities) for s, of in splits.items()}
    if config.in_memory:
        splits = {split: InMemory(source) for split, source in splits.items()}
    return Dataset(
        **splits,
        transform=_augmentation(config, shared_geometry=True),
        may_lack_modalities=config.modality_dropout > 0,
    )


def _files(config: DataConfig) -> Dataset:
    """One root per modality, put together by the pairing strategy."""
    by_split: dict[str, dict[str, Source]] = {name: {} for name in SPLITS}
    parts: dict[str, Mapping[str, Source]] = {}
    duplicates: dict[str, list[Duplicate]] = {}
    tables: dict[str, TableEncoding] = {}
    only = set(config.only_modalities or modality_names(config))
    for name, modality in config.modalities.items():
        where = f"data.modalities.{name}"
        # What is not read labels no task either.
        if not only & {name, f"{name}_table"}:
            continue
        if not modality.task:
            raise UserError(f"config: {where}.task is empty; name the task that its data label.")
        if not modality.root:
            raise UserError(
                f"config: {where}.root is empty; give the folder with its images, "
                f"--config.{where}.root=FOLDER, or run the embedded phantoms instead: "
                "--config configs/brain.py:quick."
            )
        splits = open_location(location(name, modality, config))
        if config.duplicates == "group" and not config.split_folder:
            splits = _drawn_anew(name, splits, config)
        elif config.num_folds and not config.split_folder:
            splits = _fold(name, splits, config)
        if config.split_folder:
            manifest = load_split(Path(config.split_folder) / f"{name}.json")
            whole = Concatenated(list(splits.values()), f"{name} records of {modality.root}")
            splits = manifest.apply(whole)
        elif config.duplicates == "remove":
            found = find_duplicates(splits)
            splits = remove_duplicates(splits, found)
            duplicates[name] = found
        for split in SPLITS:
            if split not in splits:
                raise UserError(
                    f"{modality.root} is too small: its {split} split is empty. Add images, or "
                    "change data.validation_fraction and data.test_fraction."
                )
            if not len(splits[split]):
                raise UserError(
                    f"{modality.root}: every {split} record is a duplicate of a held-out record. "
                    "Look at the data, or keep the set as distributed: data.duplicates=keep."
                )
        parts[name] = splits
        if modality.numeric_columns or modality.categorical_columns:
            splits, encoding = _with_table(name, modality, splits)
            tables[encoding.columns.name] = encoding
        for split in SPLITS:
            source = splits[split]
            if not {spec.name for spec in source.modalities} <= only:
                source = OnlyModalities(source, [m for m in modality_names(config) if m in only])
            by_split[split][name] = InMemory(source) if config.in_memory else source
    sources = {
        split: combine(config.pairing, of_modality, evaluation=split != "train")
        for split, of_modality in by_split.items()
    }
    return Dataset(
        **sources,
        transform=_augmentation(config, shared_geometry=config.pairing == "paired"),
        may_lack_modalities=config.pairing in ("by_task", "paired")
        or config.modality_dropout > 0
        # A record may have no row, or a row without a single value.
        or any(m.numeric_columns or m.categorical_columns for m in config.modalities.values()),
        parts=parts,
        duplicates=duplicates,
        split_seed=config.split_seed,
        tables=tables,
    )


def _drawn_anew(
    name: str, splits: Mapping[str, Source], config: DataConfig
) -> Mapping[str, Source]:
    """Splits of all records of a modality under which near duplicates share one."""
    whole = Concatenated(list(splits.values()), f"{name} records")
    grouped = Regrouped(whole, groups_with_duplicates(whole))
    if config.num_folds:
        return _fold(name, {"all": grouped}, config)
    held_out = {"validation": config.validation_fraction, "test": config.test_fraction}
    try:
        return split_source(
            grouped, {"train": 1 - sum(held_out.values()), **held_out}, config.split_seed
        )
    except ValueError as error:
        raise UserError(f"config: data.duplicates=group: {error}, in {name}.") from error


def _fold(name: str, splits: Mapping[str, Source], config: DataConfig) -> Mapping[str, Source]:
    """One fold of all records of a modality, whatever split they were distributed in."""
    whole = Concatenated(list(splits.values()), f"{name} records")
    if not 0 <= config.fold < config.num_folds:
        raise UserError(
            f"config: data.fold is {config.fold}; with data.num_folds={config.num_folds} choose "
            f"0 to {config.num_folds - 1}."
        )
    try:
        folds = list(k_folds(whole, config.num_folds, config.split_seed))
    except ValueError as error:
        raise UserError(f"config: data.num_folds: {error}, in {name}.") from error
    train, test = folds[config.fold]
    share = config.validation_fraction
    fractions = {"train": 1 - share, "validation": share}
    return {**split_source(train, fractions, config.split_seed), "test": test}


def _with_table(
    name: str, modality: ModalityConfig, splits: Mapping[str, Source]
) -> tuple[Mapping[str, Source], TableEncoding]:
    """The splits of one modality, with columns of its table as another modality."""
    columns = TableColumns(f"{name}_table", modality.numeric_columns, modality.categorical_columns)
    where = f"data.modalities.{name}"
    if not modality.table:
        raise UserError(f"config: {where}.table is empty; name the CSV or Parquet file.")
    rows = {}
    for row in read_table(Path(modality.root) / modality.table):
        if modality.id_column not in row:
            raise UserError(
                f"config: {where}.id_column {modality.id_column!r} is no column of "
                f"{modality.table}; it has {', '.join(row)}."
            )
        rows.setdefault(row[modality.id_column], row)
    return add_table(splits, rows, columns)


def location(name: str, modality: ModalityConfig, config: DataConfig) -> Location:
    """Where the data of one modality lies, as its configuration says."""
    fields = dataclasses.asdict(modality)
    for elsewhere in ("numeric_columns", "categorical_columns", "backbone"):
        fields.pop(elsewhere)
    height, width, channels = (fields.pop(field) for field in ("height", "width", "channels"))
    return Location(
        ModalitySpec(name, height, width, channels),
        seed=config.split_seed,
        validation_fraction=config.validation_fraction,
        test_fraction=config.test_fraction,
        **fields,
    )


def _augmentation(config: DataConfig, *, shared_geometry: bool) -> Augment | None:
    if config.augmentation == "none" and not config.modality_dropout:
        return None
    settings = PRESETS[config.augmentation]
    try:
        return Augment(
            dict.fromkeys(config.modalities, settings),
            shared_geometry=shared_geometry,
            drop_modality=config.modality_dropout,
        )
    except ValueError as error:
        raise UserError(f"config: data.modality_dropout: {error}") from error


SOURCES: dict[str, Callable[[DataConfig], Dataset]] = {"phantoms": _phantoms, "files": _files}
"""Name in the configuration -> how its dataset is opened."""
