"""NIfTI volumes as 8 bits in one canonical frame, by nibabel's loader.

Every volume is turned to right, anterior, superior by its affine, so that "axial slice 20" means
the same in every file. What a header declares is checked before anything is allocated. Needs the
extra "medical" (nibabel).
"""

from __future__ import annotations

import functools
import gzip
import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from drifa_jax.data.decode import fit_image
from drifa_jax.data.problems import FileError, reading
from drifa_jax.data.readers.levels import to_uint8
from drifa_jax.data.record import ModalitySpec
from drifa_jax.data.volumes import Lengths, Voxels
from drifa_jax.errors import UserError
from drifa_jax.extras import optional

PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Plane -> axis of the canonical volume that its slices are counted along."""

PERCENTILES = (0.5, 99.5)
"""Percentiles of a volume that become black and white; MRI has no absolute scale."""

SLICE_RANGE = (0.25, 0.75)
"""Share of a volume, from its lower end, whose slices are taken unless said otherwise."""

SUFFIXES = (".nii", ".nii.gz", ".hdr")
"""A `.hdr` is read with the `.img` beside it."""

MAX_VOXELS = 2**28
"""Larger volumes are refused before they are read; 512 x 512 x 1024 voxels are allowed."""

_CIFTI_INTENTS = range(3000, 3100)
_COLOUR_TYPES = (128, 2304)
_COMPLEX_TYPES = (32, 1792, 2048)
_DEFLATE_RATIO = 1032  # the most that gzip packs in one byte


def is_nifti_name(path: Path) -> bool:
    """Whether a file is NIfTI by its name; files of the system (`._scan.nii`) are not."""
    name = path.name.lower()
    return name.endswith(SUFFIXES) and not name.startswith(".") and path.is_file()


def stem(path: Path) -> str:
    """The path without the suffixes of NIfTI, with forward slashes."""
    text = path.as_posix()
    suffix = next((s for s in (".nii.gz", ".nii", ".hdr") if text.lower().endswith(s)), "")
    return text[: len(text) - len(suffix)]


def read_shape(path: Path) -> tuple[int, int, int]:
    """Voxels to the right, to the front and upwards, from the header alone.

    Raises:
      FileError: no file, no NIfTI, no volume of one number a voxel, no usable affine, more voxels
        than allowed or than the file holds.

    Test: tests/data/readers/test_nifti.py.
    """
    header = _header(path)
    shape, canonical = header.get_data_shape(), [0, 0, 0]
    axes = _nibabel().io_orientation(_affine(header, path))[:, 0].astype(int)
    for source, target in enumerate(axes):
        canonical[target] = shape[source]
    return tuple(canonical)


def read_volume(path: Path) -> np.ndarray:
    """`[right, anterior, superior]` uint8, windowed by percentiles of the volume.

    Where the percentiles meet, as in a mask, the whole range of values is shown.

    Raises:
      FileError: as `read_shape`; damaged or truncated data, NaN.
    """
    return _volume(path, _stamp(path)).copy()


def read_axial(path: Path) -> Voxels:
    """All axial slices from the lowest, the front up and the right on the left.

    Raises:
      FileError: as `read_volume`.
    """
    values = read_volume(path).transpose(2, 1, 0)[:, ::-1, ::-1]
    return Voxels(np.ascontiguousarray(values), read_voxel_size(path))


def read_voxel_size(path: Path) -> Lengths:
    """Distance of axial slices, of their rows and of their columns in mm, from the header."""
    affine = _affine(_header(path), path)
    axes = _nibabel().io_orientation(affine)[:, 0].astype(int)
    lengths = np.zeros(3)
    lengths[axes] = np.linalg.norm(affine[:3, :3], axis=0)
    return tuple(lengths[::-1].tolist())


def read_plane(path: Path, axis: int, number: int) -> np.ndarray:
    """A slice with the head up (or the front up, in axial planes) and the right on the left.

    Args:
      path: the file.
      axis: of the canonical volume, a value of `PLANES`.
      number: of the slice.
    """
    volume = _volume(path, _stamp(path))
    plane = np.take(volume, number, axis)
    return np.ascontiguousarray(plane.T[::-1, ::-1])


def read_image(
    path: Path, number: int, spec: ModalitySpec, *, fit: str, plane: str = "axial"
) -> np.ndarray:
    """`[height, width, channels]` uint8 of one slice, fitted to a modality."""
    return fit_image(read_slice(path, number, plane), spec, fit=fit, name=f"{path}:{number}")


def read_slice(path: Path, number: int, plane: str = "axial") -> np.ndarray:
    """`[h, w]` uint8 of one slice at its own size, turned as by `read_plane`.

    Raises:
      UserError: naming the slices that there are.
    """
    count = read_shape(path)[PLANES[plane]]
    if not 0 <= number < count:
        raise UserError(f"{path}: has the {plane} slices 0 to {count - 1}, but not {number}.")
    return read_plane(path, PLANES[plane], number)


def slice_numbers(
    path: Path, plane: str = "axial", slice_range: tuple[float, float] = SLICE_RANGE
) -> range:
    """The slices of one file that training makes records of."""
    count = read_shape(path)[PLANES[plane]]
    first, last = (round(share * (count - 1)) for share in slice_range)
    return range(first, last + 1)


def _nibabel():
    return optional("nibabel", "Reading NIfTI", "medical")


@functools.lru_cache(maxsize=2)
def _volume(path: Path, stamp: tuple) -> np.ndarray:
    """The last volumes are kept: slices are mostly read one after another."""
    del stamp
    nibabel, header = _nibabel(), _header(path)
    affine = _affine(header, path)
    with reading(path, "is damaged or truncated"):
        if path.suffix.lower() == ".hdr":
            image = nibabel.load(path)
        else:
            kind = nibabel.Nifti2Image if header.sizeof_hdr == 540 else nibabel.Nifti1Image
            image = kind.from_stream(_content(path, _end(header)))
        values = np.asarray(image.dataobj, np.float32).reshape(header.get_data_shape()[:3])
        values = nibabel.apply_orientation(values, nibabel.io_orientation(affine))
    if not np.isfinite(values).all():
        raise FileError(
            path,
            "has voxels that are NaN or infinite; set them to a number, as `fslmaths IN -nan OUT` "
            "does",
        )
    low, high = np.percentile(values, PERCENTILES)
    if low == high:
        low, high = values.min(), values.max()
    volume = to_uint8(values, low, high)
    volume.flags.writeable = False
    return volume


def _stamp(path: Path) -> tuple:
    """What changes when a file, or the image beside its header, does."""
    files = (path, path.with_suffix(".img"), path.with_suffix(".IMG"))
    stats = [file.stat() for file in files if file.is_file()]
    return tuple((stat.st_mtime_ns, stat.st_size) for stat in stats)


def _header(path: Path) -> Any:
    """A checked header of nibabel, of a file that can hold what it declares."""
    nibabel = _nibabel()
    if not path.exists():
        raise FileError(path, "there is no such file")
    with reading(path, "is damaged or truncated"):
        start, packed = _start(path)
    sizes = {int.from_bytes(start[:4], order) for order in ("little", "big")} & {348, 540}
    if not sizes:
        raise FileError(path, "is not a NIfTI file")
    kind = nibabel.Nifti2Header if 540 in sizes else nibabel.Nifti1Header
    if path.suffix.lower() == ".hdr":
        kind = nibabel.nifti1.Nifti1PairHeader if 348 in sizes else nibabel.nifti2.Nifti2PairHeader
    magic = start[4:8] if 540 in sizes else start[344:348]
    if magic[:2] not in (b"n+", b"ni"):
        raise FileError(path, "is an Analyze file without an affine; convert it to NIfTI")
    if magic[:2] == b"ni" and path.suffix.lower() != ".hdr":
        raise FileError(path, "is the header of a pair; call it .hdr, with its .img beside it")
    with reading(path, "has a header that cannot be used"):
        # Checking repairs what can be, and logs it; what matters is checked below.
        header = kind(start[: kind.sizeof_hdr], check=False)
        if int(header["intent_code"]) in _CIFTI_INTENTS:
            raise FileError(path, "is a CIFTI file, of surfaces and matrices, and no volume")
        if (code := int(header["datatype"])) in _COLOUR_TYPES:
            raise FileError(path, "is a colour volume; wanted one number a voxel")
        if code in _COMPLEX_TYPES:
            raise FileError(path, "holds complex numbers; store their magnitude instead")
        shape = tuple(int(n) for n in header.get_data_shape())
        if len(shape) < 3 or any(extra != 1 for extra in shape[3:]) or min(shape) < 1:
            raise FileError(path, f"has the shape {shape}; wanted one volume [x, y, z]")
        if math.prod(shape) > MAX_VOXELS:
            raise FileError(path, f"declares {shape} voxels, more than the {MAX_VOXELS:,} allowed")
        header.get_data_dtype()
        _check_size(header, path, packed)
    return header


def _start(path: Path) -> tuple[bytes, bool]:
    """The bytes that hold the header, and whether they were compressed."""
    with path.open("rb") as file:
        start = file.read(540)
        packed, named = start[:2] == b"\x1f\x8b", path.name.lower().endswith(".gz")
        if not start:
            raise FileError(path, "is empty")
        if named and not packed:
            raise FileError(path, "is not compressed; call it .nii, without .gz")
        if packed and not named and path.suffix.lower() in SUFFIXES:
            raise FileError(path, "is compressed; call it .nii.gz")
        if packed:
            file.seek(0)
            with gzip.open(file) as unpacked:
                start = unpacked.read(540)
    return start, packed


def _check_size(header: Any, path: Path, packed: bool) -> None:
    if path.suffix.lower() == ".hdr":
        images = [path.with_suffix(suffix) for suffix in (".img", ".IMG")]
        image = next((file for file in images if file.is_file()), None)
        if image is None:
            raise FileError(path, f"lacks the {images[0].name} that holds its voxels")
        size = image.stat().st_size
    else:
        size = path.stat().st_size
    if _end(header) > size * (_DEFLATE_RATIO if packed else 1):
        raise FileError(
            path,
            f"is damaged or truncated: {header.get_data_shape()} voxels do not fit in {size:,} "
            "bytes",
        )


def _end(header: Any) -> int:
    """How many bytes a file holds at least."""
    offset = float(header["vox_offset"])
    if not 0 <= offset < 2**40:
        raise ValueError("vox_offset is out of range")
    voxels = math.prod(int(n) for n in header.get_data_shape())
    first = max(int(offset), header.single_vox_offset if header.is_single else 0)
    return first + voxels * header.get_data_dtype().itemsize


def _content(path: Path, end: int) -> io.BytesIO:
    """The first `end` bytes, unpacked; gzip's checksum is at its very end, so all of it is read."""
    if not path.name.lower().endswith(".gz"):
        with path.open("rb") as file:
            return io.BytesIO(file.read(end))
    with gzip.open(path) as file:
        content = io.BytesIO(file.read(end))
        spare = end + 2**24
        while block := file.read(2**20):
            if (spare := spare - len(block)) < 0:
                raise ValueError("it holds far more than its header declares")
    return content


def _affine(header: Any, path: Path) -> np.ndarray:
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        raise FileError(path, "has no affine, so nobody knows left from right")
    with reading(path, "has an affine that cannot be used"):
        affine = header.get_best_affine()
    if not np.isfinite(affine).all():
        raise FileError(path, "has an affine that holds NaN, so nobody knows left from right")
    axes = affine[:3, :3]
    if np.linalg.matrix_rank(axes) < 3 or np.isnan(_nibabel().io_orientation(affine)).any():
        raise FileError(path, "has an affine that is singular, so nobody knows left from right")
    return affine
