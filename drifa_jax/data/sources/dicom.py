"""DICOM series in class folders: `<class>/**`, files found by content, whatever their names.

Slices are ordered by their position along the normal of the series; a file of several frames is a
series of its own. Records are called by numbers, never by what a header holds.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drifa_jax.config import ModalityConfig
from drifa_jax.data.problems import FileError, LeftOut, Problems
from drifa_jax.data.readers.any_file import DICOM
from drifa_jax.data.readers.dicom import Windows, read_frame, read_header, windows_of
from drifa_jax.data.readers.dicom_files import NoImageError, claims_dicom, is_dicom
from drifa_jax.data.readers.series import (
    Series,
    Slice,
    as_volume,
    ordered,
    read_volume,
    slices_of,
)
from drifa_jax.data.record import PixelSpec, TaskSpec, VolumeSpec, pixel_spec
from drifa_jax.data.records import Records
from drifa_jax.data.sources.slices import SliceEntry, slice_records
from drifa_jax.data.sources.walking import class_folders, files_below, held_instead
from drifa_jax.data.volumes import Voxels
from drifa_jax.errors import UserError


@dataclass(frozen=True)
class _Entry:
    """One series; `volume` where it is read whole."""

    label: int
    patient: str
    slices: list[Slice]
    volume: Series | None


@dataclass(frozen=True)
class DicomScan:
    """What class folders hold.

    Attributes:
      entries: one a slice, whose place is (file, frame), or one a series, whose place is it.
      classes: names of the folders.
      left_out: what is there and is no record.
      burned_in: slices flagged as holding annotation in their pixels.
    """

    entries: tuple[SliceEntry, ...]
    classes: tuple[str, ...]
    left_out: LeftOut
    burned_in: int

    def notes(self, root: str | Path) -> tuple[str, ...]:
        """What a person should know of them."""
        told = self.left_out.notes(root)
        if not self.burned_in:
            return told
        return (
            *told,
            f"{root}: {self.burned_in} images are flagged as holding burned-in annotation: names "
            "may be written in the pixels, which no header check can remove; look at them first",
        )


def scan_dicom(
    root: str | Path, *, volumes: bool = False, quarantine: str | Path | None = None
) -> DicomScan:
    """The slices (or, as `volumes`, the series) below class folders, without reading pixels.

    With a `quarantine` file, broken files and series are listed there and left out.

    Raises:
      UserError: listing every problem: no class folder or file, damaged files, header values
        that cannot be, series of mixed orientation, volumes without an order.

    Test: tests/data/sources/test_dicom.py.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"The DICOM folder {root} does not exist.")
    problems, left_out = Problems(f"the DICOM folder {root}"), LeftOut()
    folders = class_folders(root, left_out)
    if not folders:
        raise UserError(f"The DICOM folder {root} holds no class folders.")
    series: dict[tuple, list[Slice]] = {}
    burned = 0
    for label, folder in enumerate(folders):
        found = 0
        for path in files_below(folder, left_out):
            if not is_dicom(path) and not claims_dicom(path):
                left_out.add(f"files that are not DICOM ({path.suffix.lower()})")
                continue
            found += 1
            try:
                header = read_header(path)
            except NoImageError as error:
                left_out.add(error.kind)
                continue
            except FileError as error:
                problems.add(error.where, error.what)
                continue
            burned += header.burned_in
            key = (label, header.patient, header.series)
            series.setdefault(key, []).extend(slices_of(path, header))
        if not found:
            problems.add(folder, held_instead(folder, DICOM) or "holds no DICOM files")
    entries: list[_Entry] = []
    for (label, patient, _), slices in series.items():
        try:
            in_order = ordered(slices, volumes=volumes)
            volume = as_volume(in_order) if volumes else None
        except FileError as error:
            problems.add(error.where, error.what)
            continue
        entries.append(_Entry(label, patient, in_order, volume))
    problems.settle("Move these files away, or repair them.", quarantine, left_out)
    if not entries:
        raise UserError(f"The DICOM folder {root} holds no series that can be read.")
    names = tuple(folder.name for folder in folders)
    return DicomScan(tuple(_slice_entries(entries)), names, left_out, burned)


def dicom_records(
    root: str | Path,
    modality: PixelSpec,
    task: str,
    *,
    window: str | None = None,
    fit: str = "stretch",
    spacing: tuple[float, ...] = (),
    quarantine: str | Path | None = None,
) -> Records:
    """Slices (or, for a `VolumeSpec`, series) below class folders as records.

    Args:
      root: holds a folder for each class.
      modality: what every record is brought to.
      task: the task whose classes are the folders.
      window: a key of `WINDOWS`; three with commas become the colours of a 3-channel image;
        None takes the window of each file, or its range of values where it has none.
      fit: how another aspect ratio is fitted.
      spacing: of volumes, see `data.volumes.fit_volume`; empty fits the whole series.
      quarantine: CSV file for broken files and series, which are then left out; None raises.

    Test: tests/data/sources/test_dicom.py.
    """
    windows = windows_of(window or "")
    if windows and len(windows) not in (1, modality.channels):
        raise ValueError(f"{len(windows)} windows cannot fill {modality.channels} channels")
    volumes = isinstance(modality, VolumeSpec)
    found = scan_dicom(root, volumes=volumes, quarantine=quarantine)
    return slice_records(
        found.entries,
        modality,
        TaskSpec(task, found.classes),
        functools.partial(_read, windows),
        description=f"{len(found.entries)} DICOM {modality.name} records",
        fit=fit,
        notes=found.notes(root),
        spacing=spacing,
    )


def scan(name: str, config: ModalityConfig, quarantine: str | None = None) -> Records:
    """The format `dicom`."""
    return dicom_records(
        config.root,
        pixel_spec(name, config),
        config.task,
        window=config.window,
        fit=config.fit,
        spacing=config.spacing,
        quarantine=quarantine,
    )


def _read(windows: Windows, place: Series | tuple[Path, int]) -> Voxels | np.ndarray:
    if isinstance(place, Series):
        return Voxels(*read_volume(place, windows))
    return read_frame(*place, windows)


def _slice_entries(series: Sequence[_Entry]) -> Iterator[SliceEntry]:
    numbers = _patient_numbers(series)
    count: dict[str, int] = {}
    for entry in series:
        patient = f"patient-{numbers[entry.patient]:04d}"
        count[patient] = count.get(patient, 0) + 1
        name = f"{patient}/series-{count[patient]:02d}"
        if entry.volume is not None:
            yield SliceEntry(name, patient, entry.label, entry.volume)
            continue
        for number, piece in enumerate(entry.slices):
            place = (piece.path, piece.plane.frame)
            yield SliceEntry(f"{name}/slice-{number:03d}", patient, entry.label, place)


def _patient_numbers(series: Sequence[_Entry]) -> dict[str, int]:
    """Patient -> number, in an order that does not follow the identifiers themselves."""
    patients = {entry.patient for entry in series}
    shuffled = sorted(patients, key=lambda p: hashlib.sha256(p.encode()).hexdigest())
    return {patient: number for number, patient in enumerate(shuffled, start=1)}
