"""A volume from any file that may hold one: NIfTI, a folder of a DICOM series, an array."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from drifa_jax.data.problems import FileError, reading
from drifa_jax.data.readers import nifti, series
from drifa_jax.data.readers.any_file import DICOM, NIFTI, kind_of, split_slice
from drifa_jax.data.readers.dicom import windows_of
from drifa_jax.data.record import VolumeSpec
from drifa_jax.data.volumes import Voxels, fit_voxels

ARRAY_SUFFIX = ".npy"


def read_any_volume(
    text: str,
    spec: VolumeSpec,
    *,
    fit: str,
    spacing: tuple[float, ...] = (),
    window: str = "",
    kind: str | None = None,
) -> np.ndarray:
    """`[depth, height, width, channels]` uint8 of a volume, fitted to a modality.

    Args:
      text: path of a NIfTI file, of a folder with one DICOM series (or a file of several frames),
        or of an array `[d, h, w]` uint8 in a `.npy` file.
      spec: the grid wanted.
      fit, spacing: see `fit_volume`.
      window: of DICOM, a preset; "" takes the window of each file.
      kind: what the file is; None finds it out.

    Raises:
      UserError: naming the file, and what is wrong with it.

    Test: tests/data/readers/test_any_volume.py.
    """
    path, number = split_slice(text)
    if number is not None:
        raise FileError(text, f"names a slice, and the network reads whole volumes; give {path}")
    if kind is None and path.is_file() and path.suffix.lower() != ARRAY_SUFFIX:
        kind = kind_of(path)
    if kind == DICOM or path.is_dir():
        voxels = Voxels(*series.read_volume(series.find_volume(path), windows_of(window)))
    elif kind == NIFTI:
        voxels = nifti.read_axial(path)
    elif path.suffix.lower() == ARRAY_SUFFIX:
        voxels = Voxels(_array(path), None)
    else:
        raise FileError(
            text,
            "is a picture, and the network reads volumes: NIfTI, a folder with a DICOM series, or "
            "an array .npy",
        )
    return fit_voxels(voxels, spec, fit=fit, spacing=spacing, name=text)


def _array(path: Path) -> np.ndarray:
    with reading(path, "is not a readable .npy file"):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype != np.uint8:
        raise FileError(path, f"has the type {array.dtype}; wanted uint8 from 0 to 255")
    return np.asarray(array)
