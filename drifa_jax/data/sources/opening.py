"""Opening the data of one modality by the name of its format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from drifa_jax.data.record import ModalitySpec, Source, TaskSpec
from drifa_jax.data.sources.folders import folder_splits, scan_folders
from drifa_jax.data.sources.manifest import ManifestColumns, ManifestSource
from drifa_jax.errors import UserError


@dataclass(frozen=True)
class Location:
    """Where the data of one modality lies and how it is read.

    Attributes:
      modality: name, size and channels.
      root: folder or file.
      task: name of the task that the data labels.
      format: a key of `FORMATS`.
      classes: class names, or none to take those of the data.
      group_pattern, include: of folders, as in `scan_folders`.
      table, id_column, image_column, label_column, group_column, split_column: of manifests.
      window: of DICOM, a preset; "" takes the window of the file.
      fit: how another aspect ratio is fitted.
      seed, validation_fraction, test_fraction: of splits that are drawn.
      quarantine: of manifest, dicom and nifti: a file that lists what is wrong and left out;
        None makes it an error.
    """

    modality: ModalitySpec
    root: str
    task: str
    format: str = "folders"
    classes: tuple[str, ...] = ()
    group_pattern: str = ""
    include: str = ""
    table: str = ""
    id_column: str = "image_id"
    image_column: str = "image_id"
    label_column: str = "label"
    group_column: str = ""
    split_column: str = ""
    window: str = ""
    fit: str = "stretch"
    seed: int = 0
    validation_fraction: float = 0.15
    test_fraction: float = 0.2
    quarantine: str | None = None

    @property
    def fractions(self) -> dict[str, float]:
        """Shares of the splits of data that brings none."""
        shares = {"validation": self.validation_fraction, "test": self.test_fraction}
        shares = {split: share for split, share in shares.items() if share > 0}
        return {"train": 1 - sum(shares.values()), **shares}


def open_location(location: Location) -> dict[str, Source]:
    """Split -> single-modality source.

    Raises:
      UserError: naming the format, folder, file or column that is wrong.

    Test: tests/data/sources/test_opening.py.
    """
    if location.format not in FORMATS:
        raise UserError(
            f"The format {location.format!r} of {location.modality.name} is unknown; choose one "
            f"of {sorted(FORMATS)}."
        )
    return FORMATS[location.format](location)


def _folders(location: Location) -> Mapping[str, Source]:
    index = scan_folders(
        location.root,
        classes=location.classes or None,
        group_pattern=location.group_pattern or None,
        include=location.include or None,
    )
    return folder_splits(
        index,
        location.modality,
        location.task,
        seed=location.seed,
        validation_fraction=location.validation_fraction,
        test_fraction=location.test_fraction,
        fit=location.fit,
    )


def _manifest(location: Location) -> Mapping[str, Source]:
    if not location.table:
        raise UserError(f"The manifest of {location.modality.name} is not named (table).")
    table = Path(location.table)
    columns = ManifestColumns(
        location.id_column,
        images={location.modality.name: location.image_column},
        tasks={location.task: location.label_column},
        group=location.group_column,
        split=location.split_column,
    )
    source = ManifestSource(
        table if table.is_absolute() else Path(location.root) / table,
        location.root,
        columns,
        [location.modality],
        classes={location.task: location.classes} if location.classes else None,
        fit=location.fit,
        quarantine=location.quarantine,
    )
    return source.splits(seed=location.seed, fractions=location.fractions)


def _npz(location: Location) -> Mapping[str, Source]:
    from drifa_jax.data.sources.arrays import npz_splits

    return npz_splits(location.root, location.modality, _declared(location), fit=location.fit)


def _npy(location: Location) -> Mapping[str, Source]:
    """`x_train.npy` with `y_train.npy`, and the same for val and test."""
    from drifa_jax.data.sources.arrays import NPZ_SPLITS, npy_splits

    root = Path(location.root)
    files = {
        split: (root / f"x_{prefix}.npy", root / f"y_{prefix}.npy")
        for prefix, split in NPZ_SPLITS.items()
        if prefix != "val" or (root / "x_val.npy").is_file()
    }
    return npy_splits(files, location.modality, _declared(location), fit=location.fit)


def _prepared(location: Location) -> Mapping[str, Source]:
    from drifa_jax.data.sources.prepared import open_prepared

    splits = open_prepared(location.root)
    for source in splits.values():
        if source.modalities != (location.modality,):
            raise UserError(
                f"{location.root} was prepared as {source.modalities}, the configuration asks for "
                f"{location.modality}. Change the configuration, or prepare the set again."
            )
        if [task.name for task in source.tasks] != [location.task]:
            raise UserError(
                f"{location.root} was prepared for the tasks {[t.name for t in source.tasks]}, "
                f"the configuration asks for {location.task!r}."
            )
    return splits


def _dicom(location: Location) -> Mapping[str, Source]:
    from drifa_jax.data.sources.dicom import dicom_splits

    return dicom_splits(
        location.root,
        location.modality,
        location.task,
        window=location.window or None,
        fractions=location.fractions,
        seed=location.seed,
        fit=location.fit,
        quarantine=location.quarantine,
    )


def _nifti(location: Location) -> Mapping[str, Source]:
    from drifa_jax.data.sources.nifti import nifti_splits

    return nifti_splits(
        location.root,
        location.modality,
        location.task,
        group_pattern=location.group_pattern or None,
        fractions=location.fractions,
        seed=location.seed,
        fit=location.fit,
        quarantine=location.quarantine,
    )


def _tfds(location: Location) -> Mapping[str, Source]:
    from drifa_jax.data.builders.building import built_splits

    return built_splits(
        location.root,
        location.modality,
        seed=location.seed,
        fractions=location.fractions,
        fit=location.fit,
    )


def _declared(location: Location) -> TaskSpec:
    if not location.classes:
        raise UserError(
            f"Arrays carry no class names: name the classes of {location.task!r} "
            f"(modality {location.modality.name})."
        )
    return TaskSpec(location.task, location.classes)


FORMATS: dict[str, Callable[[Location], Mapping[str, Source]]] = {
    "folders": _folders,
    "manifest": _manifest,
    "npz": _npz,
    "npy": _npy,
    "prepared": _prepared,
    "dicom": _dicom,
    "nifti": _nifti,
    "tfds": _tfds,
}
"""Format -> how the splits of one modality are opened."""
