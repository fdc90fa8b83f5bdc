"""DICOM files: found by content, opened within limits, and silent about what headers say.

Patient names and all other identifying tags stay in the files: only the tags named here are ever
looked at, no message quotes a value, and pydicom's own warnings, which do, are not passed on.
Needs the extra "medical" (pydicom).
"""

from __future__ import annotations

import functools
import gzip
import io
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from drifa_jax.data.decode import MAX_PIXELS
from drifa_jax.data.problems import FileError, reading
from drifa_jax.extras import optional

READ_TAGS = (
    "BitsAllocated",
    "BurnedInAnnotation",
    "Columns",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "InstanceNumber",
    "Modality",
    "NumberOfFrames",
    "PatientID",
    "PerFrameFunctionalGroupsSequence",
    "PhotometricInterpretation",
    "PixelSpacing",
    "Rows",
    "SOPClassUID",
    "SamplesPerPixel",
    "SeriesInstanceUID",
    "SharedFunctionalGroupsSequence",
    "SliceThickness",
    "SpacingBetweenSlices",
    "StudyInstanceUID",
)
"""The header tags that are read. Patient and study only decide which slices belong together."""

PIXEL_TAGS = (
    "BitsStored",
    "BluePaletteColorLookupTableData",
    "BluePaletteColorLookupTableDescriptor",
    "DoubleFloatPixelData",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "FloatPixelData",
    "GreenPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableDescriptor",
    "HighBit",
    "ModalityLUTSequence",
    "PixelData",
    "PixelPaddingRangeLimit",
    "PixelPaddingValue",
    "PixelRepresentation",
    "PlanarConfiguration",
    "RedPaletteColorLookupTableData",
    "RedPaletteColorLookupTableDescriptor",
    "RescaleIntercept",
    "RescaleSlope",
    "SegmentedBluePaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData",
    "VOILUTFunction",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
)
"""What decoding pixels needs besides."""

MAX_UNPACKED_BYTES = 2**29
"""Compressed files (gzip, deflated transfer syntax) that hold more are refused."""

NO_IMAGE_MODALITIES = {
    "ANN": "annotations (ANN)",
    "DOC": "documents (DOC)",
    "ECG": "waveforms (ECG)",
    "FID": "fiducials (FID)",
    "HD": "waveforms (HD)",
    "KO": "key object selections (KO)",
    "M3D": "models for printing (M3D)",
    "PLAN": "plans (PLAN)",
    "PR": "presentation states (PR)",
    "REG": "registrations (REG)",
    "RTDOSE": "dose maps (RTDOSE)",
    "RTPLAN": "treatment plans (RTPLAN)",
    "RTRECORD": "treatment records (RTRECORD)",
    "RTSTRUCT": "structure sets (RTSTRUCT)",
    "RWV": "value maps (RWV)",
    "SEG": "segmentations (SEG)",
    "SR": "reports (SR)",
}
"""Modality -> what such files hold instead of an image of a patient."""

NO_IMAGE_CLASSES = {
    "1.2.840.10008.1.3.10": "indices (DICOMDIR)",
    "1.2.840.10008.5.1.4.1.1.104.": "encapsulated documents",
    "1.2.840.10008.5.1.4.1.1.11.": "presentation states (PR)",
    "1.2.840.10008.5.1.4.1.1.481.2": "dose maps (RTDOSE)",
    "1.2.840.10008.5.1.4.1.1.481.3": "structure sets (RTSTRUCT)",
    "1.2.840.10008.5.1.4.1.1.481.4": "treatment records (RTRECORD)",
    "1.2.840.10008.5.1.4.1.1.481.5": "treatment plans (RTPLAN)",
    "1.2.840.10008.5.1.4.1.1.66": "segmentations, registrations or raw data",
    "1.2.840.10008.5.1.4.1.1.67": "value maps (RWV)",
    "1.2.840.10008.5.1.4.1.1.88.": "reports (SR)",
    "1.2.840.10008.5.1.4.1.1.9.": "waveforms",
}
"""How SOP class UIDs begin -> the same, for files whose Modality does not tell."""

_DEFLATED = "1.2.840.10008.1.2.1.99"
_LOGGERS = ("pydicom", "pylibjpeg", "libjpeg", "openjpeg", "rle")
_WARNING_MODULES = r"(pydicom|pylibjpeg|libjpeg|openjpeg|rle)\b"


class NoImageError(FileError):
    """A DICOM file that holds no image of a patient.

    Args:
      where: the file.
      kind: what it belongs to, in the plural.
    """

    def __init__(self, where: str | Path, kind: str):
        super().__init__(where, f"is no image of a patient; it belongs to the {kind}")
        self.kind = kind

    def __reduce__(self):
        return type(self), (self.where, self.kind)


def pydicom():
    """The package, told to keep what it thinks of header values to itself."""
    package = _pydicom()
    if not any(getattr(f[3], "pattern", "") == _WARNING_MODULES for f in warnings.filters):
        # A filter that stays: files are read in threads, where catching and restoring races.
        warnings.filterwarnings("ignore", module=_WARNING_MODULES)
    return package


@functools.cache
def _pydicom():
    package = optional("pydicom", "Reading DICOM", "medical")
    package.config.settings.reading_validation_mode = package.config.IGNORE
    for name in _LOGGERS:
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    return package


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its first bytes, whatever its name; gzip is looked into."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
            if start[:2] == b"\x1f\x8b":
                file.seek(0)
                with gzip.open(file) as unpacked:
                    start = unpacked.read(132)
    except (OSError, EOFError, zlib.error):
        return False
    return start[128:] == b"DICM" or _begins_with_element(start)


def claims_dicom(path: Path) -> bool:
    """Whether the name of a file says that it is DICOM: .dcm, .ima, .dicom, a UID, no suffix."""
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    return suffix in (".dcm", ".ima", ".dicom", "") or suffix[1:].isdigit()


def _begins_with_element(start: bytes) -> bool:
    """Whether a file without the preamble begins with a plausible tag of group 2 or 8."""
    if len(start) < 12:
        return False
    for order in "<>":
        group, element = struct.unpack(order + "HH", start[:4])
        (length,) = struct.unpack(order + "I", start[4:8])
        explicit = start[4:6].isalpha() and start[4:6].isupper()
        if group in (2, 8) and element < 0x2000 and (explicit or length < 256):
            return True
    return False


def load(path: str | Path, *, pixels: bool, more: Sequence[str] = ()) -> Any:
    """The data set of one file, a `pydicom.Dataset` of `READ_TAGS` (and `PIXEL_TAGS`).

    Args:
      path: of the file.
      pixels: whether to read them too.
      more: keywords of further tags. Only `drifa_jax.archive` names any: what it writes belongs
        to the patient and study of its sources.

    Raises:
      FileError: no file, empty, not DICOM, damaged, without an image, larger than it can be.
      NoImageError: an object of another kind, such as a segmentation.
    """
    package, path = pydicom(), Path(path)
    with reading(path, "is damaged or truncated", quote=False), path.open("rb") as raw:
        start = raw.read(132)
        if not start:
            raise FileError(path, "is empty")
        raw.seek(0)
        file = _unzipped(raw, path) if start[:2] == b"\x1f\x8b" else raw
        start = file.read(132)
        if start[128:] != b"DICM" and not _begins_with_element(start):
            raise FileError(path, "is not a DICOM file")
        file.seek(0)
        _check_deflated(package, file, path)
        data = package.dcmread(
            file,
            force=True,
            stop_before_pixels=not pixels,
            specific_tags=[*READ_TAGS, *(PIXEL_TAGS if pixels else ()), *more],
        )
        data.file_meta.TransferSyntaxUID = _syntax(package, data, path)
        # Without pixels, reading has stopped before them.
        start = 0 if pixels or data.file_meta.TransferSyntaxUID == _DEFLATED else file.tell()
        size = file.seek(0, io.SEEK_END) - start
    if kind := _kind(data):
        raise NoImageError(path, kind)
    _check_size(data, size, path)
    return data


def integer(data: Any, keyword: str, path: str | Path, default: int | None = None) -> int:
    """A whole number of a header; the default where the tag is absent or empty."""
    found = numbers(data, keyword, path, 1)
    if found is None:
        if default is None:
            raise FileError(path, f"lacks the tag {keyword}")
        return default
    return int(found[0])


def numbers(
    data: Any, keyword: str, path: str | Path, count: int | None = None
) -> tuple[float, ...] | None:
    """Finite numbers of a tag; None where it is absent or empty.

    Args:
      data: of pydicom.
      keyword: of the tag.
      path: of the file, for messages.
      count: how many there must be; None takes any number of them.
    """
    try:
        value = data.get(keyword)
        if value is None or value == "":
            return None
        several = not isinstance(value, str | bytes | int | float) and hasattr(value, "__iter__")
        found = tuple(float(number) for number in (value if several else (value,)))
    except Exception:
        # The words of the library quote the value, which may be anything in a header gone wrong.
        raise FileError(path, f"holds something else than numbers in the tag {keyword}") from None
    if not found:
        return None
    if count is not None and len(found) != count:
        wanted = "1 number" if count == 1 else f"{count} numbers"
        raise FileError(path, f"holds {len(found)} values in the tag {keyword}; wanted {wanted}")
    if not all(map(math.isfinite, found)):
        raise FileError(path, f"holds a value in the tag {keyword} that is not finite")
    return found


def text(data: Any, keyword: str) -> str:
    """A tag as text, "" where it is absent or cannot be read."""
    try:
        return str(data.get(keyword) or "").strip()
    except Exception:
        return ""


def _unzipped(raw: BinaryIO, path: Path) -> BinaryIO:
    with gzip.open(raw) as packed:
        content = packed.read(MAX_UNPACKED_BYTES + 1)
    _check_unpacked(len(content), path)
    return io.BytesIO(content)


def _check_deflated(package, file: BinaryIO, path: Path) -> None:
    """Refuses a deflated data set that unpacks to more than is allowed, before it is unpacked."""
    syntax = package.filereader.read_preamble(file, force=True) and (
        package.filereader._read_file_meta_info(file).get("TransferSyntaxUID")
    )
    if syntax == _DEFLATED:
        stream, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while not stream.eof and (block := stream.unconsumed_tail or file.read(2**16)):
            total += len(stream.decompress(block, 2**20))
            _check_unpacked(total, path)
    file.seek(0)


def _check_unpacked(size: int, path: Path) -> None:
    if size > MAX_UNPACKED_BYTES:
        raise FileError(
            path,
            f"unpacks to more than {MAX_UNPACKED_BYTES // 2**20} MiB; it may be a decompression "
            "bomb. Unpack it yourself if it is not",
        )


def _syntax(package, data, path: Path) -> Any:
    """The transfer syntax; of a file that names none, the one it was found to be written in."""
    if told := data.file_meta.get("TransferSyntaxUID"):
        with reading(path, "names a transfer syntax that DICOM does not know", quote=False):
            syntax = package.uid.UID(told)
            syntax.is_encapsulated  # noqa: B018, raises for what is no transfer syntax
            return syntax
    implicit, little = data.original_encoding
    if implicit:
        return package.uid.ImplicitVRLittleEndian
    return package.uid.ExplicitVRLittleEndian if little else package.uid.ExplicitVRBigEndian


def _kind(data) -> str | None:
    """What a file holds that is no image of a patient; None where it may be one."""
    if kind := NO_IMAGE_MODALITIES.get(text(data, "Modality").upper()):
        return kind
    sop_class = text(data, "SOPClassUID") or text(data.file_meta, "MediaStorageSOPClassUID")
    return next((kind for uid, kind in NO_IMAGE_CLASSES.items() if sop_class.startswith(uid)), None)


def _check_size(data, size: int, path: Path) -> None:
    """Refuses images without extent, or with one that the file cannot hold."""
    if "Rows" not in data or "Columns" not in data or not size:
        raise FileError(path, "has no pixel data")
    rows, columns = integer(data, "Rows", path), integer(data, "Columns", path)
    frames = integer(data, "NumberOfFrames", path, 1) or 1
    if rows < 1 or columns < 1 or frames < 1:
        raise FileError(path, "has no pixel data: rows, columns or frames are 0")
    if rows * columns > MAX_PIXELS:
        raise FileError(
            path,
            f"declares {columns} x {rows} pixels, more than the {MAX_PIXELS:,} allowed; it may be "
            "a decompression bomb",
        )
    samples = integer(data, "SamplesPerPixel", path, 1)
    if samples not in (1, 3):
        raise FileError(path, f"declares {samples} samples a pixel; wanted 1 (grey) or 3 (colour)")
    bits = rows * columns * samples * integer(data, "BitsAllocated", path, 1)
    if text(data, "PhotometricInterpretation") == "YBR_FULL_422":
        bits = bits * 2 // 3
    syntax = data.file_meta.TransferSyntaxUID
    if syntax == _DEFLATED:
        bits /= 1032  # the most that deflate packs in one
    elif syntax.is_encapsulated:
        bits = 64  # every frame has an item of its own
    if frames * bits / 8 > size:
        raise FileError(
            path,
            f"is truncated: its pixel data cannot be decoded, {frames} x {columns} x {rows} "
            f"pixels do not fit in {size:,} bytes",
        )
