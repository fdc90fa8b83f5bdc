"""NIfTI volumes in class folders: `<class>/**/*.nii` or `.nii.gz`, as slices or whole.

Every volume is turned to one canonical frame (right, anterior, superior) by its affine, so that
"axial slice 20" means the same in every file. Needs the extra "medical" (nibabel).
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np

from drifa_jax.config import ModalityConfig
from drifa_jax.data.decode import fit_image
from drifa_jax.data.problems import Problems
from drifa_jax.data.readers.levels import to_uint8
from drifa_jax.data.record import ModalitySpec, TaskSpec, VolumeSpec, image_spec
from drifa_jax.data.records import Records
from drifa_jax.data.sources.slices import SliceEntry, slice_records
from drifa_jax.errors import UserError
from drifa_jax.extras import optional

PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Plane -> axis of the canonical volume that its slices are counted along."""

PERCENTILES = (0.5, 99.5)
"""Percentiles of a volume that become black and white; MRI has no absolute scale."""

SLICE_RANGE = (0.25, 0.75)
"""Share of a volume, from its lower end, whose slices are taken unless said otherwise."""


def _nibabel():
    return optional("nibabel", "Reading NIfTI", "medical")


def nifti_records(
    root: str | Path,
    modality: ModalitySpec | VolumeSpec,
    task: str,
    *,
    plane: str = "axial",
    slice_range: tuple[float, float] = SLICE_RANGE,
    group_pattern: str | None = None,
    fit: str = "stretch",
    quarantine: str | Path | None = None,
) -> Records:
    """Slices (or, for a `VolumeSpec`, volumes) below class folders as records.

    Args:
      root: holds a folder for each class.
      modality: what every record is brought to.
      task: the task whose classes are the folders.
      plane: of the slices, a key of `PLANES`.
      slice_range: share of the volume, from its lower end, whose slices are taken.
      group_pattern: regular expression searched in the file name; its first parentheses match the
        patient. None: every volume is its own patient.
      quarantine: CSV file for broken files, which are then left out; None raises.

    Raises:
      UserError: listing every problem: not NIfTI, no affine, not a volume.

    Test: tests/data/sources/test_nifti.py.
    """
    if plane not in PLANES:
        raise ValueError(f"plane is {plane!r}; choose one of {tuple(PLANES)}.")
    if not 0 <= slice_range[0] < slice_range[1] <= 1:
        raise ValueError(f"slice_range is {slice_range}; give two shares in order, within 0..1.")
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"The NIfTI folder {root} does not exist.")
    classes = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != "."))
    problems = Problems(f"the NIfTI folder {root}")
    if not classes:
        raise UserError(f"The NIfTI folder {root} holds no class folders.")
    entries = []
    for label, name in enumerate(classes):
        files = sorted(p for p in (root / name).rglob("*") if _is_nifti(p))
        if not files:
            problems.add(root / name, "holds no .nii or .nii.gz files")
        for path in files:
            shape = _canonical_shape(path, problems)
            match = re.search(group_pattern, path.name) if group_pattern else None
            if group_pattern and match is None:
                problems.add(path, f"does not match the group pattern {group_pattern!r}")
            if shape is None or (group_pattern and match is None):
                continue
            volume = path.relative_to(root).as_posix().removesuffix(".gz").removesuffix(".nii")
            group = match.group(1 if match.re.groups else 0) if match else volume
            if isinstance(modality, VolumeSpec):
                entries.append(SliceEntry(volume, group, label, (path, None, 0)))
                continue
            entries += [
                SliceEntry(f"{volume}/{plane}-{k:03d}", group, label, (path, PLANES[plane], k))
                for k in _numbers(shape[PLANES[plane]], slice_range)
            ]
    problems.settle("Move these files away, or repair them.", quarantine)
    if not entries:
        raise UserError(f"The NIfTI folder {root} holds no volume that can be read.")
    description = f"{len(entries)} NIfTI {modality.name} records of {root}"
    return slice_records(
        entries, modality, TaskSpec(task, classes), _read, description=description, fit=fit
    )


def scan(name: str, config: ModalityConfig, quarantine: str | None = None) -> Records:
    """The format `nifti`."""
    return nifti_records(
        config.root,
        image_spec(name, config),
        config.task,
        group_pattern=config.group_pattern or None,
        fit=config.fit,
        quarantine=quarantine,
    )


def slice_numbers(
    path: Path, plane: str = "axial", slice_range: tuple[float, float] = SLICE_RANGE
) -> range:
    """The slices of one file that `nifti_records` makes records of."""
    return _numbers(_checked_shape(path)[PLANES[plane]], slice_range)


def read_image(
    path: Path, number: int, spec: ModalitySpec, *, fit: str, plane: str = "axial"
) -> np.ndarray:
    """`[height, width, channels]` uint8 of one slice, as a record of `nifti_records` holds it."""
    count = _checked_shape(path)[PLANES[plane]]
    if not 0 <= number < count:
        raise UserError(f"{path}: has the {plane} slices 0 to {count - 1}, but not {number}.")
    pixels = _read((path, PLANES[plane], number))
    return fit_image(pixels, spec, fit=fit, name=f"{path}:{number}")


def is_nifti_name(path: Path) -> bool:
    """Whether a file is NIfTI by its name: `.nii` or `.nii.gz`."""
    return _is_nifti(path)


def _numbers(count: int, slice_range: tuple[float, float]) -> range:
    first, last = (round(share * (count - 1)) for share in slice_range)
    return range(first, last + 1)


def _checked_shape(path: Path) -> tuple[int, ...]:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file.")
    problems = Problems(f"the volume {path}")
    shape = _canonical_shape(path, problems)
    problems.raise_any()
    return shape


def read_volume(path: Path) -> np.ndarray:
    """`[right, anterior, superior]` uint8, windowed by percentiles of the volume."""
    return _read_volume(path).copy()


@functools.lru_cache(maxsize=2)
def _read_volume(path: Path) -> np.ndarray:
    """The last volumes are kept: slices are mostly read one after another."""
    nibabel = _nibabel()
    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
        values = np.asarray(image.dataobj, np.float32)
    except (OSError, EOFError, ValueError, nibabel.filebasedimages.ImageFileError) as error:
        raise UserError(f"{path}: is damaged or truncated ({error}).") from error
    values = values.reshape(values.shape[:3])
    if not np.isfinite(values).all():
        raise UserError(f"{path}: has voxels that are NaN or infinite.")
    low, high = np.percentile(values, PERCENTILES)
    volume = to_uint8(values, low, high)
    volume.flags.writeable = False
    return volume


def _read(place: tuple) -> np.ndarray:
    """A slice with the head up (or the front up, in axial planes) and the right on the left."""
    path, axis, number = place
    volume = _read_volume(path)
    if axis is None:
        return np.ascontiguousarray(volume.transpose(2, 1, 0)[:, ::-1, ::-1])
    plane = np.take(volume, number, axis)
    return np.ascontiguousarray(plane.T[::-1, ::-1])


def _canonical_shape(path: Path, problems: Problems) -> tuple[int, ...] | None:
    nibabel = _nibabel()
    try:
        image = nibabel.load(path)
    except (OSError, EOFError, nibabel.filebasedimages.ImageFileError):
        problems.add(path, "is not a NIfTI file")
        return None
    header = image.header
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        problems.add(path, "has no affine, so nobody knows left from right")
        return None
    shape = image.shape
    if len(shape) < 3 or any(extra != 1 for extra in shape[3:]):
        problems.add(path, f"has the shape {shape}; wanted one volume [x, y, z]")
        return None
    axes = nibabel.io_orientation(image.affine)[:, 0]
    canonical = [0, 0, 0]
    for source, target in enumerate(axes.astype(int)):
        canonical[target] = shape[source]
    return tuple(canonical)


def _is_nifti(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith((".nii", ".nii.gz"))
