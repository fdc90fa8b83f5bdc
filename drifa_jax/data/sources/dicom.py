"""DICOM series in class folders: `<class>/**`, files found by content, whatever their names.

Slices are ordered by their position along the normal of the series; a file of several frames is a
series of its own. Records are called by numbers, never by what a header holds.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drifa_jax.config import ModalityConfig
from drifa_jax.data.problems import FileError, LeftOut, Problems
from drifa_jax.data.readers.dicom import Plane, Windows, read_frame, read_header, windows_of
from drifa_jax.data.readers.dicom_files import NoImageError, claims_dicom, is_dicom
from drifa_jax.data.record import ModalitySpec, TaskSpec, VolumeSpec, image_spec
from drifa_jax.data.records import Records
from drifa_jax.data.sources.slices import SliceEntry, slice_records
from drifa_jax.data.sources.walking import class_folders, files_below
from drifa_jax.errors import UserError

DIRECTION_TOLERANCE = 1e-3
"""By how much direction cosines of one series may differ: less than a tenth of a degree."""


@dataclass(frozen=True)
class _Slice:
    path: Path
    label: int
    patient: str
    series: str
    number: int
    plane: Plane


@dataclass(frozen=True)
class DicomScan:
    """What class folders hold.

    Attributes:
      entries: one a slice, or one a series; a place is ((file, frame), ...), lowest slice first.
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
    series: dict[tuple, list[_Slice]] = {}
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
            series.setdefault((label, header.patient, header.series), []).extend(
                _Slice(path, label, header.patient, header.series, header.number, plane)
                for plane in header.planes
            )
        if not found:
            problems.add(folder, "holds no DICOM files")
    ordered = [_ordered(slices, volumes, problems) for slices in series.values()]
    problems.settle("Move these files away, or repair them.", quarantine, left_out)
    if not (ordered := [slices for slices in ordered if slices]):
        raise UserError(f"The DICOM folder {root} holds no series that can be read.")
    names = tuple(folder.name for folder in folders)
    return DicomScan(tuple(_entries(ordered, volumes)), names, left_out, burned)


def dicom_records(
    root: str | Path,
    modality: ModalitySpec | VolumeSpec,
    task: str,
    *,
    window: str | None = None,
    fit: str = "stretch",
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
        functools.partial(_read, windows, volumes),
        description=f"{len(found.entries)} DICOM {modality.name} records",
        fit=fit,
        notes=found.notes(root),
    )


def scan(name: str, config: ModalityConfig, quarantine: str | None = None) -> Records:
    """The format `dicom`."""
    spec = image_spec(name, config)
    return dicom_records(
        config.root, spec, config.task, window=config.window, fit=config.fit, quarantine=quarantine
    )


def _read(windows: Windows, volumes: bool, places: tuple[tuple[Path, int], ...]) -> np.ndarray:
    planes = [read_frame(path, frame, windows) for path, frame in places]
    return np.stack(planes) if volumes else planes[0]


def _entries(series: Sequence[Sequence[_Slice]], volumes: bool):
    numbers = _patient_numbers(series)
    count: dict[str, int] = {}
    for slices in series:
        patient = f"patient-{numbers[slices[0].patient]:04d}"
        count[patient] = count.get(patient, 0) + 1
        name = f"{patient}/series-{count[patient]:02d}"
        places = [(piece.path, piece.plane.frame) for piece in slices]
        if volumes:
            yield SliceEntry(name, patient, slices[0].label, tuple(places))
            continue
        for number, place in enumerate(places):
            yield SliceEntry(f"{name}/slice-{number:03d}", patient, slices[0].label, (place,))


def _ordered(slices: list[_Slice], volumes: bool, problems: Problems) -> list[_Slice]:
    """Slices from one end to the other; none where they cannot be one series."""
    if len(slices) == 1:
        return slices
    folder, planes = slices[0].path.parent, [piece.plane for piece in slices]
    directions = [plane.orientation for plane in planes]
    if any(d is None for d in directions) or any(plane.position is None for plane in planes):
        numbers = [(piece.number, piece.plane.frame) for piece in slices]
        if volumes and len(set(numbers)) < len(slices):
            files = f"{slices[0].path.name}, {slices[1].path.name}"
            problems.add(
                folder, f"holds a series without slice positions or numbers ({files}, ...)"
            )
            return []
        # Single pictures, as of X-ray, need no order among themselves.
        return sorted(slices, key=lambda piece: (piece.number, piece.path, piece.plane.frame))
    spread = np.ptp(np.array(directions), axis=0).max()
    if spread > DIRECTION_TOLERANCE:
        problems.add(folder, "holds a series with mixed orientations")
        return []
    normal = np.cross(directions[0][:3], directions[0][3:])

    def along(piece: _Slice) -> tuple:
        place = float(np.dot(piece.plane.position, normal))
        return (place, piece.number, piece.path, piece.plane.frame)

    return sorted(slices, key=along)


def _patient_numbers(series: Sequence[Sequence[_Slice]]) -> dict[str, int]:
    """Patient -> number, in an order that does not follow the identifiers themselves."""
    patients = {slices[0].patient for slices in series}
    shuffled = sorted(patients, key=lambda p: hashlib.sha256(p.encode()).hexdigest())
    return {patient: number for number, patient in enumerate(shuffled, start=1)}
