"""Stored values of one DICOM frame, by pydicom and the decoders that are installed."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from drifa_jax.data.problems import FileError, reading
from drifa_jax.data.readers.dicom_files import integer, pydicom
from drifa_jax.extras import install_command

_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""Of JPEG and JPEG-LS: the segments that declare sizes."""


def decode(data: Any, frame: int, path: Path) -> np.ndarray:
    """Stored values `[h, w]`, or RGB `[h, w, 3]`, of one frame."""
    package, syntax = pydicom(), data.file_meta.TransferSyntaxUID
    name = syntax.name if syntax in package.uid.UID_dictionary else "an unknown transfer syntax"
    rewrite = "or rewrite the file uncompressed, as `gdcmconv --raw` does"
    try:
        decoder = package.pixels.get_decoder(syntax)
    except NotImplementedError:
        raise FileError(
            path,
            f"its pixel data cannot be decoded: it is {name}, which no package here reads; "
            f"{rewrite.removeprefix('or ')}",
        ) from None
    if not decoder.is_available:
        raise FileError(
            path,
            f"its pixel data cannot be decoded: it is {name}, which needs one of "
            f"{'; '.join(decoder.missing_dependencies)}: {install_command('medical')}, {rewrite}",
        )
    what = "its pixel data cannot be decoded: it is damaged or truncated"
    if syntax.is_encapsulated:
        what += f", or its {name} needs another decoder: {install_command('medical')}, {rewrite}"
    if syntax.is_encapsulated and syntax != package.uid.RLELossless:
        _check_sizes(data, frame, path)
    # Run-length decoders in Rust are quicker but panic on damaged files, past every `except`.
    plugin = "pydicom" if syntax == package.uid.RLELossless else ""
    with reading(path, what, quote=False):
        return package.pixels.pixel_array(data, index=frame, decoding_plugin=plugin)


def _check_sizes(data: Any, frame: int, path: Path) -> None:
    """Refuses a compressed frame that declares other sizes than the header of its file.

    Decoders allocate what JPEG and JPEG 2000 declare inside, before they find that it is not there.

    Raises:
      FileError: naming both sizes.
    """
    rows, columns = integer(data, "Rows", path), integer(data, "Columns", path)
    with reading(path, "its pixel data cannot be decoded: it is damaged", quote=False):
        offsets = None
        if "ExtendedOffsetTable" in data and "ExtendedOffsetTableLengths" in data:
            offsets = (data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths)
        stream = pydicom().encaps.get_frame(
            data.PixelData,
            frame,
            extended_offsets=offsets,
            number_of_frames=integer(data, "NumberOfFrames", path, 1) or 1,
        )
        sizes = _declared_sizes(stream)
    for height, width in sizes:
        # A height of 0 is told at the end of the picture.
        if width != columns or height not in (rows, 0):
            raise FileError(
                path,
                f"its pixel data cannot be decoded: it declares {width} x {height} pixels inside a "
                f"file of {columns} x {rows}",
            )


def _declared_sizes(stream: bytes) -> list[tuple[int, int]]:
    """(height, width) of every frame header before the pixels of JPEG; of JPEG 2000 its one."""
    if (start := stream[:256].find(b"\xff\x4f\xff\x51")) >= 0:
        right, bottom, left, top = struct.unpack(">4I", stream[start + 8 : start + 24])
        return [(bottom - top, right - left)]
    found, place = [], 2
    while stream[:2] == b"\xff\xd8" and place + 9 <= len(stream):
        if stream[place] != 0xFF:
            place += 1
            continue
        marker = stream[place + 1]
        if marker == 0xDA:
            break
        if marker in _FRAME_MARKERS:
            found.append(struct.unpack(">HH", stream[place + 5 : place + 9]))
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:
            place += 1 if marker == 0xFF else 2
        else:
            place += 2 + struct.unpack(">H", stream[place + 2 : place + 4])[0]
    return found
