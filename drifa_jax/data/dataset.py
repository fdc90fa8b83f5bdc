"""The records of a run: three splits of one table, and how training records are augmented."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from drifa_jax.buckets import here
from drifa_jax.config import DataConfig, ModalityConfig
from drifa_jax.data import duplicates
from drifa_jax.data.duplicates import Duplicate
from drifa_jax.data.label_checks import label_findings, refuse_labels
from drifa_jax.data.pairing import STRATEGIES, combine, join
from drifa_jax.data.pipeline import Transform
from drifa_jax.data.problems import some_of
from drifa_jax.data.record import SPLITS, Source
from drifa_jax.data.records import Records, as_records, notes_of
from drifa_jax.data.sources.opening import scan_modality
from drifa_jax.data.sources.phantoms import PhantomSource
from drifa_jax.data.split_manifest import describe_split, load_split
from drifa_jax.data.splits import k_folds, shares, split_records, split_source
from drifa_jax.data.table import TableColumns, TableEncoding, add_table, read_table
from drifa_jax.data.transforms import PRESETS, Augment
from drifa_jax.errors import UserError

PAIRED = "paired"
"""Name, among the parts of a dataset, of the table that joins the modalities of one person."""


@dataclass(frozen=True)
class Dataset:
    """Training, validation and test records that share modalities and tasks.

    Attributes:
      train: what is trained on.
      validation: chooses checkpoint, learning rate and thresholds.
      test: is looked at once, at the end.
      transform: `(record, generator) -> record`, for training records; None leaves them alone.
      may_lack_modalities: whether a record may lack a modality.
      parts: modality -> its splits, or, of paired data, `PAIRED` -> those of the joined table;
        empty for the phantoms.
      duplicates: the same names -> what was found across splits and left training.
      left_out: the same names -> ids of the records that are in no split.
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
    left_out: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    split_seed: int = 0
    tables: Mapping[str, TableEncoding] = dataclasses.field(default_factory=dict)

    @property
    def synthetic(self) -> bool:
        return self.train.synthetic

    @property
    def splits(self) -> dict[str, Source]:
        return {split: getattr(self, split) for split in SPLITS}

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out, what was guessed, and what labels do not let say, a line each."""
        told = [*notes_of((self.train, self.validation, self.test))]
        for name, ids in self.left_out.items():
            known = {duplicate.removed_id for duplicate in self.duplicates.get(name, ())}
            if rest := len(set(ids) - known):
                told.append(f"{name}: left out: {rest} records that are in none of the splits")
        found = label_findings(self.splits)
        return (*told, *(f"{finding.task}: {finding.text}" for finding in found))

    def refuse_labels(self) -> None:
        """An error where labels cannot be trained on; phantoms are nobody's to correct."""
        if not self.synthetic:
            refuse_labels(self.splits)

    def save_splits(self, folder: Path) -> None:
        """Writes who is in which split, and which duplicates were removed, for each part.

        `data.split_folder` reads such a folder again. What is there already stays.
        """
        for name, splits in self.parts.items():
            path = folder / f"{name}.json"
            if path.is_file():
                continue
            folder.mkdir(parents=True, exist_ok=True)
            left_out = self.left_out.get(name, ())
            # The manifest comes last: where it is there, all is.
            if self.duplicates.get(name):
                duplicates.write_table(folder / f"{name}-duplicates.csv", self.duplicates[name])
            describe_split(splits, self.split_seed, left_out=left_out).save(path)

    def refuse_changes(self, folder: Path) -> None:
        """An error where the data are no longer what was split when `folder` was saved.

        Raises:
          UserError: naming what is new or changed, and the field that goes on all the same.
        """
        for name, splits in self.parts.items():
            path = folder / f"{name}.json"
            if not path.is_file():
                continue
            manifest = load_split(path)
            known = set(manifest.left_out)
            # Earlier releases did not say what was left out.
            new = [i for i in self.left_out[name] if manifest.descriptions and i not in known]
            changed = manifest.changed(splits)
            said = [
                f"{len(ids)} {what} ({some_of(ids)})"
                for ids, what in ((new, "records are new"), (changed, "records hold other images"))
                if ids
            ]
            if said:
                raise UserError(
                    f"The data changed since this run split them: {'; '.join(said)}. Restore "
                    "them, or go on with the splits that were saved, without what is new: "
                    f"--config.data.split_folder={folder}"
                )


def open_dataset(config: DataConfig, saved: Path | None = None) -> Dataset:
    """The dataset that a configuration names.

    Args:
      config: of the data.
      saved: folder with the splits that a run saved. Where it is there, those are taken, whatever
        came to the data since (`Dataset.refuse_changes` tells); None draws splits, or reads
        `data.split_folder`.

    Raises:
      UserError: naming the field, folder or file that is wrong, ids and groups that would lie in
        several splits, and records that are gone.
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
    return SOURCES[config.source](config, saved)


def modality_names(config: DataConfig) -> tuple[str, ...]:
    """Of the images and, where columns of a table are read, of the tables."""
    names = []
    for name, modality in config.modalities.items():
        names.append(name)
        if modality.numeric_columns or modality.categorical_columns:
            names.append(f"{name}_table")
    return tuple(names)


def _phantoms(config: DataConfig, saved: Path | None) -> Dataset:
    del saved  # drawn anew, they are what they were
    if config.num_folds:
        raise UserError(
            f"config: data.num_folds is {config.num_folds}, but phantoms are drawn split by split; "
            "set it to 0."
        )
    sizes = {name: modality.height for name, modality in config.modalities.items()}
    for name, modality in config.modalities.items():
        if modality.depth:
            raise UserError(
                f"config: data.modalities.{name}.depth is {modality.depth}, but phantoms are "
                "pictures; set it to 0."
            )
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
        splits = {
            s: as_records(source).only(config.only_modalities) for s, source in splits.items()
        }
    if config.in_memory:
        splits = {split: as_records(source).in_memory() for split, source in splits.items()}
    return Dataset(
        **splits,
        transform=_augmentation(config, shared_geometry=True),
        may_lack_modalities=config.modality_dropout > 0,
    )


def _files(config: DataConfig, saved: Path | None) -> Dataset:
    """One root per modality, put together by the pairing strategy."""
    names = modality_names(config)
    only = tuple(m for m in names if m in (config.only_modalities or names))
    # What is not read labels no task either.
    read = {n: m for n, m in config.modalities.items() if {n, f"{n}_table"} & set(only)}
    # A bucket is listed once, however many modalities and tables lie in it.
    places = {root: here(root) for root in dict.fromkeys(m.root for m in read.values())}
    read = {n: dataclasses.replace(m, root=places[m.root]) for n, m in read.items()}
    scanned = {name: _scanned(name, modality) for name, modality in read.items()}
    paired = config.pairing == "paired"
    if paired and _saved_split(config, saved, PAIRED) is None:
        # An earlier release saved the splits of paired modalities one by one.
        paths = {name: _saved_split(config, saved, name) for name in scanned}
        absent = [f"{name}.json" for name, path in paths.items() if path is None]
        if absent and (config.split_folder or len(absent) < len(paths)):
            where = f"data.split_folder: {config.split_folder}" if config.split_folder else saved
            raise UserError(
                f"{where} holds no {PAIRED}.json, and not the splits of every modality either "
                f"(no {', '.join(absent)}). Give the folder `splits` of a run of these modalities."
            )
        if not absent:
            scanned = {n: load_split(path).assigned(scanned[n]) for n, path in paths.items()}
            config = dataclasses.replace(config, num_folds=0, duplicates="keep", split_folder="")
    tables = {PAIRED: join(scanned)} if paired else scanned
    parts: dict[str, Mapping[str, Records]] = {}
    found: dict[str, list[Duplicate]] = {}
    left_out: dict[str, tuple[str, ...]] = {}
    encodings: dict[str, TableEncoding] = {}
    by_split: dict[str, dict[str, Records]] = {split: {} for split in SPLITS}
    for name, records in tables.items():
        splits, found[name] = _split(name, records, config, saved)
        parts[name] = splits
        kept = {record_id for part in splits.values() for record_id in part.ids}
        left_out[name] = tuple(i for i in records.ids if i not in kept)
        for modality in scanned if paired else (name,):
            splits, encoding = _with_table(modality, read[modality], splits)
            encodings |= encoding
        for split in SPLITS:
            records = splits[split]
            if not {spec.name for spec in records.modalities} <= set(only):
                records = records.only(only)
            by_split[split][name] = records.in_memory() if config.in_memory else records
    sources = {
        split: part[PAIRED]
        if paired
        else combine(config.pairing, part, evaluation=split != "train")
        for split, part in by_split.items()
    }
    return Dataset(
        **sources,
        transform=_augmentation(config, shared_geometry=paired),
        may_lack_modalities=config.pairing in ("by_task", "paired")
        or config.modality_dropout > 0
        # A record may have no row, or a row without a single value.
        or bool(encodings),
        parts=parts,
        duplicates=found,
        left_out=left_out,
        split_seed=config.split_seed,
        tables=encodings,
    )


def _scanned(name: str, modality: ModalityConfig) -> Records:
    where = f"data.modalities.{name}"
    if not modality.task:
        raise UserError(f"config: {where}.task is empty; name the task that its data label.")
    if not modality.root:
        raise UserError(
            f"config: {where}.root is empty; give the folder with its images, "
            f"--config.{where}.root=FOLDER, or run the embedded phantoms instead: "
            "--config configs/brain.py:quick."
        )
    return scan_modality(name, modality)


def _saved_split(config: DataConfig, saved: Path | None, name: str) -> Path | None:
    """The file with the splits that are to be taken instead of drawn, if there is one."""
    for folder in (saved, Path(config.split_folder) if config.split_folder else None):
        if folder is not None and (folder / f"{name}.json").is_file():
            return folder / f"{name}.json"
    return None


def _split(
    name: str, records: Records, config: DataConfig, saved: Path | None
) -> tuple[dict[str, Records], list[Duplicate]]:
    """The splits of one table, and the duplicates that were taken out of training."""
    roots = ", ".join(m.root for n, m in config.modalities.items() if name in (n, PAIRED))
    path = _saved_split(config, saved, name)
    found: list[Duplicate] = []
    if path is not None:
        splits = load_split(path).apply(records)
        found = duplicates.read_table(path.with_name(f"{name}-duplicates.csv"))
    elif config.split_folder:
        raise UserError(f"data.split_folder: {config.split_folder} holds no {name}.json.")
    else:
        if config.duplicates == "group":
            records = records.regrouped(duplicates.groups_with_duplicates(records)).without_splits()
        if config.num_folds:
            splits = _fold(name, records, config)
        else:
            held_out = shares(config.validation_fraction, config.test_fraction)
            splits = split_records(records, held_out, config.split_seed)
        if config.duplicates == "remove":
            found = duplicates.find_duplicates(splits)
            splits = duplicates.remove_duplicates(splits, found)
    for split in SPLITS:
        if split not in splits:
            raise UserError(
                f"{roots} is too small: its {split} split is empty. Add images, or "
                "change data.validation_fraction and data.test_fraction."
            )
        if not len(splits[split]):
            raise UserError(
                f"{roots}: every {split} record is a duplicate of a held-out record. "
                "Look at the data, or keep the set as distributed: data.duplicates=keep."
            )
    return splits, found


def _fold(name: str, records: Records, config: DataConfig) -> dict[str, Records]:
    """One fold of all records, whatever split they were distributed in."""
    if not 0 <= config.fold < config.num_folds:
        raise UserError(
            f"config: data.fold is {config.fold}; with data.num_folds={config.num_folds} choose "
            f"0 to {config.num_folds - 1}."
        )
    try:
        folds = list(k_folds(records, config.num_folds, config.split_seed))
    except ValueError as error:
        raise UserError(f"config: data.num_folds: {error}, in {name}.") from error
    train, test = folds[config.fold]
    share = config.validation_fraction
    fractions = {"train": 1 - share, "validation": share}
    return {**split_source(train, fractions, config.split_seed), "test": test}


def _with_table(
    name: str, modality: ModalityConfig, splits: Mapping[str, Records]
) -> tuple[Mapping[str, Records], dict[str, TableEncoding]]:
    """Splits with the columns of a modality's table as another modality, where it has any."""
    if not (modality.numeric_columns or modality.categorical_columns):
        return splits, {}
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
    splits, encoding = add_table(splits, rows, columns)
    return splits, {encoding.columns.name: encoding}


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


SOURCES: dict[str, Callable[[DataConfig, Path | None], Dataset]] = {
    "phantoms": _phantoms,
    "files": _files,
}
"""Name in the configuration -> how its dataset is opened."""
