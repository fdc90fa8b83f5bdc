"""DICOM series in class folders: `<class>/**/*.dcm`, any file names.

Slices are ordered by their position along the normal of the series, values become physical
units by rescale slope and intercept, and a window makes 8 bits of them. Patient names and all
other identifying tags stay in the files: records are called by numbers, and only the tags named
in `READ_TAGS` are ever looked at. Needs the extra "medical" (pydicom).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drifa_jax.data.decode import fit_image
from drifa_jax.data.problems import Problems
from drifa_jax.data.record import ModalitySpec, Source, TaskSpec, VolumeSpec
from drifa_jax.data.sources.slices import SliceEntry, SliceSource, to_uint8
from drifa_jax.errors import UserError
from drifa_jax.extras import optional

WINDOWS: Mapping[str, tuple[float, float]] = {
    "brain": (40, 80),
    "stroke": (40, 40),
    "subdural": (75, 215),
    "bone": (480, 2500),
    "soft_tissue": (50, 400),
    "lung": (-600, 1500),
    "mediastinum": (50, 350),
    "abdomen": (60, 400),
}
"""CT window -> (centre, width) in Hounsfield units, as customary in radiology."""

READ_TAGS = (
    "BurnedInAnnotation",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "InstanceNumber",
    "NumberOfFrames",
    "PatientID",
    "PhotometricInterpretation",
    "RescaleIntercept",
    "RescaleSlope",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "WindowCenter",
    "WindowWidth",
)
"""The header tags that are read. Patient and study only decide which slices belong together."""

PIXEL_TAGS = (
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelData",
    "PixelRepresentation",
    "PlanarConfiguration",
)
"""What decoding pixels needs besides."""


@dataclass(frozen=True)
class _Slice:
    path: Path
    label: int
    patient: str
    series: str
    position: float | None
    orientation: tuple[float, ...] | None
    number: int


def _pydicom():
    return optional("pydicom", "Reading DICOM", "medical")


def scan_series(
    root: str | Path,
    classes: Sequence[str] | None = None,
    quarantine: str | Path | None = None,
) -> tuple[list[list[_Slice]], tuple[str, ...]]:
    """Series of ordered slices below class folders, and the class names.

    With a `quarantine` file, broken files and series are listed there and left out.

    Raises:
      UserError: listing every problem: no class folder or file, files that are not DICOM or hold
        no pixels, series of mixed orientation or without positions.
    """
    pydicom = _pydicom()
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"The DICOM folder {root} does not exist.")
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    names = tuple(classes or (folder.name for folder in folders))
    problems = Problems(f"the DICOM folder {root}")
    structure = Problems(f"the DICOM folder {root}")
    if not names:
        structure.add(root, "holds no class folders")
    series: dict[tuple, list[_Slice]] = {}
    burned = 0
    for label, name in enumerate(names):
        files = sorted(p for p in (root / name).rglob("*") if _may_be_dicom(p))
        if not files:
            problems.add(root / name, "holds no DICOM files")
        for path in files:
            try:
                header = pydicom.dcmread(
                    path, stop_before_pixels=True, specific_tags=list(READ_TAGS)
                )
            except (pydicom.errors.InvalidDicomError, OSError, ValueError):
                problems.add(path, "is not a DICOM file")
                continue
            if "Rows" not in header or "Columns" not in header:
                problems.add(path, "has no pixel data")
                continue
            burned += str(header.get("BurnedInAnnotation", "")).upper() == "YES"
            one = _slice(header, path, label, problems)
            if one is not None:
                series.setdefault((label, one.patient, one.series), []).append(one)
    ordered = [_ordered(slices, problems) for slices in series.values()]
    ordered = [slices for slices in ordered if slices]
    structure.raise_any()
    problems.settle("Move these files away, or repair them.", quarantine)
    if not ordered:
        raise UserError(f"The DICOM folder {root} holds no series that can be read.")
    if burned:
        warnings.warn(
            f"{burned} images in {root} are flagged as holding burned-in annotation: names may be "
            "written in the pixels, which no header check can remove. Look at them first.",
            stacklevel=2,
        )
    return ordered, names


def dicom_splits(
    root: str | Path,
    modality: ModalitySpec | VolumeSpec,
    task: str,
    *,
    window: str | None = None,
    fractions: Mapping[str, float],
    seed: int,
    fit: str = "stretch",
    quarantine: str | Path | None = None,
) -> dict[str, Source]:
    """Drawn splits with whole patients."""
    source = dicom_source(root, modality, task, window=window, fit=fit, quarantine=quarantine)
    return source.splits(fractions, seed)


def dicom_source(
    root: str | Path,
    modality: ModalitySpec | VolumeSpec,
    task: str,
    *,
    window: str | None = None,
    fit: str = "stretch",
    quarantine: str | Path | None = None,
) -> SliceSource:
    """Slices (or, for a `VolumeSpec`, series) below class folders as records.

    Args:
      root: holds a folder for each class.
      modality: what every record is brought to.
      task: the task whose classes are the folders.
      window: a key of `WINDOWS`; three with commas become the colours of a 3-channel image;
        None takes the window of each file, or its range of values where it has none.
      quarantine: CSV file for broken files and series, which are then left out; None raises.

    Test: tests/data/sources/test_dicom.py.
    """
    windows = None if not window else [_window(name) for name in window.split(",")]
    if windows and len(windows) not in (1, modality.channels):
        raise ValueError(f"{len(windows)} windows cannot fill {modality.channels} channels")
    series, classes = scan_series(root, quarantine=quarantine)
    numbers = _patient_numbers(series)
    entries = []
    count: dict[str, int] = {}
    for slices in series:
        patient = f"patient-{numbers[slices[0].patient]:04d}"
        count[patient] = count.get(patient, 0) + 1
        name = f"{patient}/series-{count[patient]:02d}"
        paths = [one.path for one in slices]
        if isinstance(modality, VolumeSpec):
            entries.append(SliceEntry(name, patient, slices[0].label, tuple(paths)))
        else:
            entries += [
                SliceEntry(f"{name}/slice-{k:03d}", patient, slices[0].label, (path,))
                for k, path in enumerate(paths)
            ]
    volume = isinstance(modality, VolumeSpec)

    def read(paths: tuple[Path, ...]) -> np.ndarray:
        planes = [read_slice(path, windows) for path in paths]
        return np.stack(planes) if volume else planes[0]

    description = f"{len(entries)} DICOM {modality.name} records"
    return SliceSource(
        entries, modality, TaskSpec(task, classes), read, description=description, fit=fit
    )


def read_image(path: Path, spec: ModalitySpec, *, window: str = "", fit: str) -> np.ndarray:
    """`[height, width, channels]` uint8 of one file, as a record of `dicom_source` holds it."""
    windows = None if not window else [_window(name) for name in window.split(",")]
    return fit_image(read_slice(path, windows), spec, fit=fit, name=str(path))


def is_dicom_name(path: Path) -> bool:
    """Whether a file may be DICOM by its name: `.dcm`, `.ima` or no suffix."""
    return _may_be_dicom(path)


def read_slice(path: Path, windows: Sequence[tuple[float, float]] | None) -> np.ndarray:
    """`[h, w]` or, with several windows, `[h, w, c]` uint8 of one file."""
    pydicom = _pydicom()
    try:
        data = pydicom.dcmread(path, specific_tags=[*READ_TAGS, *PIXEL_TAGS])
        values = data.pixel_array
    except FileNotFoundError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except pydicom.errors.InvalidDicomError as error:
        raise UserError(f"{path}: is not a DICOM file.") from error
    except (AttributeError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        # The text of the library may quote header values; it is not passed on.
        raise UserError(f"{path}: its pixel data cannot be decoded.") from error
    photometric = str(data.get("PhotometricInterpretation", "MONOCHROME2"))
    if photometric == "RGB":
        return np.ascontiguousarray(values.astype(np.uint8))
    if not photometric.startswith("MONOCHROME") or values.ndim != 2:
        raise UserError(f"{path}: {photometric} pixels of shape {values.shape} are not supported.")
    slope = float(data.get("RescaleSlope", 1) or 1)
    intercept = float(data.get("RescaleIntercept", 0) or 0)
    physical = values.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if not np.isfinite(physical).all():
        raise UserError(f"{path}: has pixels that are NaN or infinite.")
    chosen = windows or [_own_window(data, physical)]
    channels = [to_uint8(physical, c - w / 2, c + w / 2) for c, w in chosen]
    if photometric == "MONOCHROME1":
        channels = [255 - channel for channel in channels]
    return channels[0] if len(channels) == 1 else np.stack(channels, axis=-1)


def _own_window(data, physical: np.ndarray) -> tuple[float, float]:
    centre, width = data.get("WindowCenter"), data.get("WindowWidth")
    if centre is None or width is None:
        low, high = float(physical.min()), float(physical.max())
        return (low + high) / 2, max(high - low, 1.0)
    first = [
        v[0] if hasattr(v, "__iter__") and not isinstance(v, str) else v for v in (centre, width)
    ]
    return float(first[0]), max(float(first[1]), 1.0)


def _window(name: str) -> tuple[float, float]:
    if name.strip() not in WINDOWS:
        raise UserError(f"The window {name!r} is unknown; choose among {sorted(WINDOWS)}.")
    return WINDOWS[name.strip()]


def _slice(header, path: Path, label: int, problems: Problems) -> _Slice | None:
    if int(header.get("NumberOfFrames", 1) or 1) > 1:
        problems.add(path, "is a multi-frame image; store one slice a file")
        return None
    position = header.get("ImagePositionPatient")
    orientation = header.get("ImageOrientationPatient")
    axes = None if orientation is None else tuple(round(float(v), 3) for v in orientation)
    along = None
    if position is not None and axes is not None:
        normal = np.cross(axes[:3], axes[3:])
        along = float(np.dot(np.array(position, float), normal))
    # A file without PatientID is its own patient, as far as anyone can know its study.
    patient = str(header.get("PatientID") or header.get("StudyInstanceUID") or path)
    series = str(header.get("SeriesInstanceUID") or path.parent)
    number = int(header.get("InstanceNumber") or 0)
    return _Slice(path, label, patient, series, along, axes, number)


def _ordered(slices: list[_Slice], problems: Problems) -> list[_Slice]:
    """Slices from one end to the other; none where the series has no order."""
    if len(slices) == 1:
        return slices
    folder = slices[0].path.parent
    if len({one.orientation for one in slices}) > 1:
        problems.add(folder, "holds a series with mixed orientations")
        return []
    if any(one.position is None for one in slices):
        if len({one.number for one in slices}) < len(slices):
            problems.add(folder, "holds a series without slice positions or numbers")
            return []
        return sorted(slices, key=lambda one: one.number)
    return sorted(slices, key=lambda one: (one.position, one.number))


def _patient_numbers(series: Sequence[Sequence[_Slice]]) -> dict[str, int]:
    """Patient -> number, in an order that does not follow the identifiers themselves."""
    patients = {slices[0].patient for slices in series}
    shuffled = sorted(patients, key=lambda p: hashlib.sha256(p.encode()).hexdigest())
    return {patient: number for number, patient in enumerate(shuffled, start=1)}


def _may_be_dicom(path: Path) -> bool:
    hidden = path.name.startswith(".") or path.name.upper() == "DICOMDIR"
    return path.is_file() and not hidden and path.suffix.lower() in (".dcm", ".ima", "")
