"""One picture from any file that a table may name: a picture, a DICOM frame, a NIfTI slice."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from drifa_jax.data.decode import IMAGE_SUFFIXES, decode_pixels, fit_image, read_file
from drifa_jax.data.readers import dicom, nifti
from drifa_jax.data.readers.dicom_files import claims_dicom, is_dicom
from drifa_jax.data.record import ModalitySpec
from drifa_jax.errors import UserError

PICTURE, DICOM, NIFTI = "image", "dicom", "nifti"


def kind_by_name(name: str) -> str | None:
    """What a file of this name may be; None where it is none of them."""
    lower = name.lower()
    if lower.endswith(IMAGE_SUFFIXES):
        return PICTURE
    if lower.endswith(nifti.SUFFIXES):
        return NIFTI
    return DICOM if claims_dicom(Path(name)) else None


def kind_of(path: Path) -> str:
    """What a file is: by its name, and where that does not tell by its content."""
    kind = kind_by_name(path.name)
    if kind in (PICTURE, NIFTI):
        return kind
    return DICOM if is_dicom(path) or kind == DICOM else PICTURE


def split_slice(text: str) -> tuple[Path, int | None]:
    """`scan.nii.gz:43` as path and slice, a frame as well; None where there is no number."""
    match = re.fullmatch(r"(.+):(\d{1,9})", text)
    if match and (re.search(r"\.nii(\.gz)?$", match[1], flags=re.I) or Path(match[1]).is_file()):
        return Path(match[1]), int(match[2])
    return Path(text), None


def read_any(
    text: str, spec: ModalitySpec, *, fit: str, window: str = "", kind: str | None = None
) -> np.ndarray:
    """`[height, width, channels]` uint8 of a file, or of `FILE:NUMBER`, fitted to a modality.

    Args:
      text: path of a picture, a DICOM file (or a frame of one), a slice of a NIfTI volume.
      spec: the size and channels wanted.
      fit: how another aspect ratio is fitted.
      window: of DICOM, a preset; "" takes the window of the file.
      kind: what the file is; None finds it out.

    Raises:
      UserError: naming the file, and what is wrong with it.

    Test: tests/data/readers/test_any_file.py.
    """
    pixels = read_picture(text, spec.channels, window=window, kind=kind)
    return fit_image(pixels, spec, fit=fit, name=text)


def read_picture(
    text: str, channels: int, *, window: str = "", kind: str | None = None
) -> np.ndarray:
    """`[h, w]` or `[h, w, c]` uint8 of a file at its own size; `read_any` fits it to a modality.

    Args:
      text: as of `read_any`.
      channels: that pictures are brought to; DICOM and NIfTI have their own.
      window, kind: as of `read_any`.

    Raises:
      UserError: naming the file, and what is wrong with it.
    """
    path, number = split_slice(text)
    kind = kind or kind_of(path)
    if kind == PICTURE:
        return decode_pixels(read_file(path), channels, name=str(path))
    if kind == DICOM:
        return dicom.read_picture(path, number, window)
    if number is None:
        numbers = nifti.slice_numbers(path)
        raise UserError(
            f"{path} is a volume, and the network reads slices: name one, as "
            f"{path}:{numbers[len(numbers) // 2]}."
        )
    return nifti.read_slice(path, number)
