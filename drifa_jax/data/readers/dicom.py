"""One frame of a DICOM file as a picture of 8 bits, by pydicom's own transforms.

The order is the standard's (PS3.3 C.7.6.16 and C.11): stored values, modality lookup table or
rescale, window or value-of-interest lookup table, inversion of MONOCHROME1. Transforms of a frame
come from its functional groups where an enhanced image keeps them there. Needs the extra
"medical": pydicom, and pylibjpeg with its decoders of compressed transfer syntaxes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drifa_jax.data.decode import fit_image
from drifa_jax.data.problems import FileError, reading
from drifa_jax.data.readers.dicom_decoding import decode
from drifa_jax.data.readers.dicom_display import Windows, grey, own_window
from drifa_jax.data.readers.dicom_files import (
    integer,
    load,
    numbers,
    pydicom,
    text,
)
from drifa_jax.data.readers.levels import to_uint8
from drifa_jax.data.record import ModalitySpec
from drifa_jax.errors import UserError

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

GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
"""Colour spaces that pydicom and its decoders hand out as RGB."""


@dataclass(frozen=True)
class Plane:
    """Where one frame lies.

    Attributes:
      frame: its place in the file, from 0.
      position: of its first pixel in the patient, mm; None where the file does not say.
      orientation: direction cosines of its rows and columns; None likewise.
    """

    frame: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None


@dataclass(frozen=True)
class ImageHeader:
    """What a scan needs of one file. `patient` and `series` only tell what belongs together.

    Attributes:
      patient, series: identifiers; they must not leave the program.
      number: of the image in its series, 0 where the file does not say.
      planes: one a frame.
      burned_in: whether the file says that annotation is burned into its pixels.
    """

    patient: str
    series: str
    number: int
    planes: tuple[Plane, ...]
    burned_in: bool


def windows_of(names: str) -> Windows:
    """Window presets of names separated by commas; None where there are none."""
    chosen = [name.strip() for name in names.split(",")] if names else []
    for name in chosen:
        if name not in WINDOWS:
            raise UserError(f"The window {name!r} is unknown; choose among {sorted(WINDOWS)}.")
    return [WINDOWS[name] for name in chosen] or None


def read_header(path: Path) -> ImageHeader:
    """What a file says of itself, without its pixels.

    Raises:
      FileError: as `load`, and naming a tag whose value cannot be.

    Test: tests/data/readers/test_dicom.py.
    """
    data = load(path, pixels=False)
    frames = integer(data, "NumberOfFrames", path, 1) or 1
    planes = []
    for frame in range(frames):
        view = _of_frame(data, frame, path, ("ImagePositionPatient", "ImageOrientationPatient"))
        planes.append(
            Plane(
                frame,
                numbers(view, "ImagePositionPatient", path, 3),
                numbers(view, "ImageOrientationPatient", path, 6),
            )
        )
    series = text(data, "SeriesInstanceUID") or str(path.parent)
    return ImageHeader(
        # A file without PatientID is its own patient, as far as anyone can know its study.
        patient=text(data, "PatientID") or text(data, "StudyInstanceUID") or str(path),
        # Frames of one file are ordered among themselves.
        series=series if frames == 1 else f"{series} {path}",
        number=integer(data, "InstanceNumber", path, 0),
        planes=tuple(planes),
        burned_in=text(data, "BurnedInAnnotation").upper() == "YES",
    )


def read_spacing(path: Path, frame: int = 0) -> tuple[float, float, float]:
    """Distance of rows, of columns and of slices in mm; 0 where the file does not say.

    Raises:
      FileError: as `load`, and naming a tag whose value cannot be.
    """
    tags = ("PixelSpacing", "SpacingBetweenSlices", "SliceThickness")
    view = _of_frame(load(path, pixels=False), frame, path, tags)
    rows, columns = numbers(view, "PixelSpacing", path, 2) or (0.0, 0.0)
    between = [numbers(view, tag, path, 1) for tag in tags[1:]]
    return rows, columns, next((abs(value[0]) for value in between if value), 0.0)


def count_frames(path: Path) -> int:
    """How many pictures a file holds."""
    return integer(load(path, pixels=False), "NumberOfFrames", path, 1) or 1


def modality_of(path: Path) -> str:
    """The kind of machine that a file says it comes from, a word of DICOM such as MR."""
    return text(load(path, pixels=False), "Modality").upper()[:16]


def read_image(
    path: Path, spec: ModalitySpec, *, frame: int | None = None, window: str = "", fit: str
) -> np.ndarray:
    """`[height, width, channels]` uint8 of one frame, fitted to a modality.

    Args:
      path: the file.
      spec: the size and channels wanted.
      frame: which; None where the file holds one.
      window: names of presets, see `read_frame`.
      fit: how another aspect ratio is fitted.
    """
    return fit_image(read_picture(path, frame, window), spec, fit=fit, name=path)


def read_picture(path: Path, frame: int | None = None, window: str = "") -> np.ndarray:
    """`[h, w]` or `[h, w, c]` uint8 of one frame at its own size, as of `read_image`."""
    if frame is None and (count := count_frames(path)) > 1:
        raise UserError(
            f"{path} holds {count} frames, and the network reads one: name it, as "
            f"{path}:{count // 2}."
        )
    return read_frame(path, frame or 0, windows_of(window))


def read_frame(path: Path, frame: int = 0, windows: Windows = None) -> np.ndarray:
    """`[h, w]` or `[h, w, c]` uint8 of one frame.

    Args:
      path: the file.
      frame: which of its frames, from 0.
      windows: (centre, width) in physical units, by `WINDOWS` for CT: one a channel. None takes
        what the file says: its value-of-interest lookup table, its first window, or its range of
        values without padding.

    Raises:
      FileError: as `load`; a frame that is not there, pixels that cannot be decoded (with the
        package that decodes them), colour spaces that are not read, NaN.

    Test: tests/data/readers/test_dicom.py.
    """
    stat = path.stat() if path.is_file() else None
    data = _loaded(path, stat and stat.st_mtime_ns, stat and stat.st_size)
    count = integer(data, "NumberOfFrames", path, 1) or 1
    if not 0 <= frame < count:
        raise FileError(path, f"holds the frames 0 to {count - 1}, but not {frame}")
    photometric = text(data, "PhotometricInterpretation") or GREY[1]
    if photometric not in (*GREY, *COLOUR, "PALETTE COLOR"):
        known = ", ".join((*GREY, *COLOUR, "PALETTE COLOR"))
        # A word of a closed list may be told; anything else in its place may be a name.
        raise FileError(path, f"has a PhotometricInterpretation other than {known}")
    stored = decode(data, frame, path)
    if photometric == "PALETTE COLOR":
        with reading(path, "has a palette that cannot be applied", quote=False):
            return _palette_colours(stored, data)
    if stored.ndim == 3:
        return _upper_bits(stored, integer(data, "BitsStored", path, 8))
    view = _of_frame(data, frame, path, _DISPLAY_TAGS)
    return grey(stored, view, windows, inverted=photometric == GREY[0], path=path)


def window_used(path: Path, frame: int = 0, window: str = "") -> str:
    """How `read_frame` brings values to black and white, in words; no other tag is told.

    Args:
      path: the file.
      frame: which of its frames, from 0.
      window: names of presets; "" takes what the file says.
    """
    if presets := windows_of(window):
        names = [name.strip() for name in window.split(",")]
        told = zip(names, presets, strict=True)
        return "; ".join(f"{name}: centre {c:g}, width {w:g} HU" for name, (c, w) in told)
    stat = path.stat()
    data = _loaded(path, stat.st_mtime_ns, stat.st_size)
    if (text(data, "PhotometricInterpretation") or GREY[1]) not in GREY:
        return "colours as stored"
    return own_window(_of_frame(data, frame, path, _DISPLAY_TAGS), path)


@functools.lru_cache(maxsize=2)
def _loaded(path: Path, changed: int | None, size: int | None) -> Any:
    """The last files are kept: frames are mostly read one after another."""
    del changed, size
    return load(path, pixels=True)


_DISPLAY_TAGS = (
    "BitsStored",
    "ModalityLUTSequence",
    "PhotometricInterpretation",
    "PixelPaddingRangeLimit",
    "PixelPaddingValue",
    "PixelRepresentation",
    "RescaleIntercept",
    "RescaleSlope",
    "VOILUTFunction",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
)

_GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "VOILUTFunction": "FrameVOILUTSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "WindowCenter": "FrameVOILUTSequence",
    "WindowWidth": "FrameVOILUTSequence",
}
"""Tag -> the functional group that holds it in enhanced images."""


def _of_frame(data: Any, frame: int, path: Path, keywords: Sequence[str]) -> Any:
    """A data set of the tags that hold for one frame: its own, shared ones, those of the file."""
    view = pydicom().Dataset()
    view.file_meta = data.file_meta
    view.set_original_encoding(*data.original_encoding)
    with reading(path, "has functional groups that cannot be read", quote=False):
        each = data.get("PerFrameFunctionalGroupsSequence") or []
        shared = data.get("SharedFunctionalGroupsSequence") or []
        places = [*each[frame : frame + 1], *shared[:1]]
        for keyword in keywords:
            groups = (place.get(_GROUPS.get(keyword, "")) for place in places)
            holders = [*(group[0] for group in groups if group), data]
            if (holder := next((place for place in holders if keyword in place), None)) is not None:
                view[keyword] = holder[keyword]
    return view


def _palette_colours(stored: np.ndarray, data: Any) -> np.ndarray:
    """RGB uint8 by the palette; one of 16 bits gives its upper half, where it uses it."""
    count, first, _ = data.RedPaletteColorLookupTableDescriptor
    palette = pydicom().pixels.apply_color_lut(np.arange(first, first + (count or 2**16)), data)
    if data.file_meta.TransferSyntaxUID == pydicom().uid.ExplicitVRBigEndian:
        # pydicom takes these tables for little-endian.
        palette = palette.byteswap()
    palette = (palette >> (8 if palette.max() > 255 else 0)).astype(np.uint8)[..., :3]
    return palette[np.clip(stored.astype(np.int64) - first, 0, len(palette) - 1)]


def _upper_bits(colours: np.ndarray, bits: int) -> np.ndarray:
    """RGB of `bits` stored bits as uint8: the upper 8 of them, or fewer spread over 0..255."""
    if bits > 8:
        return (colours >> (bits - 8)).astype(np.uint8)
    if bits == 8:
        return np.ascontiguousarray(colours.astype(np.uint8))
    return to_uint8(colours, 0, 2**bits - 1)
