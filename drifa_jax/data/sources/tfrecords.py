"""Files of TFRecord, TensorFlow's own format, read record by record and without TensorFlow.

A record is its length (8 bytes, little endian), the checksum of that (4), its content, and the
checksum of the content (4). The checksum is CRC-32C, rotated by 15 bits, plus a constant.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from drifa_jax.errors import UserError

HEADER = struct.Struct("<QI")
POLYNOMIAL, ADDED = 0x82F63B78, 0xA282EAD8


class TFRecords(Sequence[bytes]):
    """The records of several files, one after the other; only their places are held.

    Raises:
      UserError: naming the file that is damaged or cut off.

    Test: tests/data/sources/test_tfds_sets.py.
    """

    def __init__(self, files: Sequence[Path]):
        self._files = tuple(files)
        places = [
            (number, start, length)
            for number, file in enumerate(self._files)
            for start, length in _places(file)
        ]
        self._places = np.array(places, np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> bytes:
        number, start, length = self._places[index].tolist()
        with self._files[number].open("rb") as content:
            content.seek(start)
            return content.read(length)


def _places(file: Path) -> list[tuple[int, int]]:
    """Start and length of each record of a file."""
    found = []
    try:
        size = file.stat().st_size
        with file.open("rb") as content:
            while (start := content.tell()) < size:
                length = _length(content)
                end = start + HEADER.size + length + 4
                if length < 0 or end > size:
                    raise UserError(
                        f"{file}: is cut off or no TFRecord (at byte {start} of {size}); copy it "
                        "again."
                    )
                found.append((start + HEADER.size, length))
                content.seek(end)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}).") from error
    return found


def _length(content: BinaryIO) -> int:
    """Of the record that begins here; -1 where the checksum of its length is another."""
    header = content.read(HEADER.size)
    if len(header) < HEADER.size:
        return -1
    length, checksum = HEADER.unpack(header)
    return length if _checksum(header[:8]) == checksum else -1


def _checksum(content: bytes) -> int:
    rest = 0xFFFFFFFF
    for byte in content:
        rest ^= byte
        for _ in range(8):
            rest = rest >> 1 ^ (POLYNOMIAL if rest & 1 else 0)
    rest ^= 0xFFFFFFFF
    return (rest >> 15 | rest << 17) + ADDED & 0xFFFFFFFF
