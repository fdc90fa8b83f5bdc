"""NIfTI volumes in class folders: `<class>/**/*.nii`, `.nii.gz` or pairs, as slices or whole."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from drifa_jax.config import ModalityConfig
from drifa_jax.data.problems import FileError, LeftOut, Problems
from drifa_jax.data.readers.any_file import NIFTI
from drifa_jax.data.readers.nifti import (
    PLANES,
    SLICE_RANGE,
    SUFFIXES,
    read_axial,
    read_plane,
    read_shape,
    slice_numbers,
    stem,
)
from drifa_jax.data.record import PixelSpec, TaskSpec, VolumeSpec, pixel_spec
from drifa_jax.data.records import Records
from drifa_jax.data.sources.slices import SliceEntry, slice_records
from drifa_jax.data.sources.walking import class_folders, files_below, held_instead
from drifa_jax.data.volumes import Voxels
from drifa_jax.errors import UserError

ONE_SLICE = "is one slice thick, which is no volume; read slices as pictures with depth=0"


def nifti_records(
    root: str | Path,
    modality: PixelSpec,
    task: str,
    *,
    plane: str = "axial",
    slice_range: tuple[float, float] = SLICE_RANGE,
    group_pattern: str | None = None,
    fit: str = "stretch",
    spacing: tuple[float, ...] = (),
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
      spacing: of volumes, see `data.volumes.fit_volume`; empty fits the whole volume.
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
    entries, left_out = [], LeftOut()
    classes = tuple(folder.name for folder in class_folders(root, left_out))
    problems = Problems(f"the NIfTI folder {root}")
    if not classes:
        raise UserError(f"The NIfTI folder {root} holds no class folders.")
    for label, name in enumerate(classes):
        found = 0
        for path in files_below(root / name, left_out):
            if not path.name.lower().endswith(SUFFIXES):
                if path.suffix.lower() != ".img" or not path.with_suffix(".hdr").is_file():
                    left_out.add(f"files that are not NIfTI ({path.suffix.lower()})")
                continue
            found += 1
            match = re.search(group_pattern, path.name) if group_pattern else None
            if group_pattern and match is None:
                problems.add(path, f"does not match the group pattern {group_pattern!r}")
            try:
                numbers = slice_numbers(path, plane, slice_range)
                # A volume has slices along every axis.
                is_volume = min(read_shape(path)) > 1
            except FileError as error:
                problems.add(error.where, error.what)
                continue
            if group_pattern and match is None:
                continue
            case = stem(path.relative_to(root))
            group = match.group(1 if match.re.groups else 0) if match else case
            if isinstance(modality, VolumeSpec):
                if not is_volume:
                    problems.add(path, ONE_SLICE)
                    continue
                entries.append(SliceEntry(case, group, label, path))
                continue
            entries += [
                SliceEntry(f"{case}/{plane}-{k:03d}", group, label, (path, PLANES[plane], k))
                for k in numbers
            ]
        if not found:
            what = held_instead(root / name, NIFTI) or "holds no .nii or .nii.gz files"
            problems.add(root / name, what)
    problems.settle("Move these files away, or repair them.", quarantine, left_out)
    if not entries:
        raise UserError(f"The NIfTI folder {root} holds no volume that can be read.")
    description = f"{len(entries)} NIfTI {modality.name} records of {root}"
    return slice_records(
        entries,
        modality,
        TaskSpec(task, classes),
        _read_place,
        description=description,
        fit=fit,
        notes=left_out.notes(root),
        spacing=spacing,
    )


def _read_place(place: Path | tuple[Path, int, int]) -> Voxels | np.ndarray:
    return read_axial(place) if isinstance(place, Path) else read_plane(*place)


def scan(name: str, config: ModalityConfig, quarantine: str | None = None) -> Records:
    """The format `nifti`."""
    return nifti_records(
        config.root,
        pixel_spec(name, config),
        config.task,
        group_pattern=config.group_pattern or None,
        fit=config.fit,
        spacing=config.spacing,
        quarantine=quarantine,
    )
