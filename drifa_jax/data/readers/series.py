"""DICOM series as volumes: order of the slices, distance of the voxels, one canonical orientation.

A volume runs upwards along its depth, from front to back along its height and from the patient's
right to left along its width, as NIfTI volumes do here; a series in another plane is turned to the
nearest of these axes, without resampling.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drifa_jax.data.problems import FileError
from drifa_jax.data.readers.dicom import (
    ImageHeader,
    Plane,
    Windows,
    count_frames,
    read_frame,
    read_header,
    read_spacing,
)
from drifa_jax.data.readers.dicom_files import NoImageError, claims_dicom, is_dicom
from drifa_jax.data.volumes import Lengths

DIRECTION_TOLERANCE = 1e-3
"""By how much direction cosines of one series may differ: less than a tenth of a degree."""

SAME_PLACE = 1e-3
"""Slices that are as near to each other, in mm, lie at one place."""

WIDEST_GAP = 1.5
"""Distance of neighbouring slices over the usual one from which on a slice is missing."""


@dataclass(frozen=True)
class Slice:
    """One frame of a series; `patient` and `series` only tell what belongs together."""

    path: Path
    patient: str
    series: str
    number: int
    plane: Plane


@dataclass(frozen=True)
class Series:
    """A series that is one volume.

    Attributes:
      frames: (file, frame) of each slice, in their order along the normal.
      voxel: distance of slices, rows and columns in mm; None where the files do not say.
      turn: for depth, height and width of the canonical volume, the axis of the stacked slices and
        whether it runs backwards.
    """

    frames: tuple[tuple[Path, int], ...]
    voxel: Lengths | None
    turn: tuple[tuple[int, bool], ...] = ((0, False), (1, False), (2, False))


def slices_of(path: Path, header: ImageHeader) -> list[Slice]:
    """The slices in a file."""
    return [
        Slice(path, header.patient, header.series, header.number, plane) for plane in header.planes
    ]


def ordered(slices: Sequence[Slice], *, volumes: bool) -> list[Slice]:
    """Slices of one series from one end to the other.

    Raises:
      FileError: of mixed orientation; of volumes also one slice, slices without an order, several
        at one place, or missing ones.
    """
    slices = list(slices)
    folder, planes = slices[0].path.parent, [piece.plane for piece in slices]
    if len(slices) == 1:
        if volumes:
            raise FileError(
                folder,
                f"holds a series of one slice ({slices[0].path.name}), which is no volume; read "
                "slices as pictures with depth=0",
            )
        return slices
    directions = [plane.orientation for plane in planes]
    if any(d is None for d in directions) or any(plane.position is None for plane in planes):
        numbers = [(piece.number, piece.plane.frame) for piece in slices]
        if volumes and len(set(numbers)) < len(slices):
            files = f"{slices[0].path.name}, {slices[1].path.name}"
            raise FileError(
                folder, f"holds a series without slice positions or numbers ({files}, ...)"
            )
        # Single pictures, as of X-ray, need no order among themselves.
        return sorted(slices, key=lambda piece: (piece.number, piece.path, piece.plane.frame))
    spread = np.ptp(np.array(directions), axis=0).max()
    if spread > DIRECTION_TOLERANCE:
        raise FileError(folder, "holds a series with mixed orientations")
    places = _places(slices)
    order = sorted(
        range(len(slices)),
        key=lambda k: (places[k], slices[k].number, slices[k].path, slices[k].plane.frame),
    )
    if volumes:
        _check_gaps(np.diff(places[order]), folder)
    return [slices[k] for k in order]


def as_volume(slices: Sequence[Slice]) -> Series:
    """The volume of ordered slices.

    Raises:
      FileError: naming a tag whose value cannot be.
    """
    frames = tuple((piece.path, piece.plane.frame) for piece in slices)
    rows, columns, between = read_spacing(*frames[0])
    orientation = slices[0].plane.orientation
    placed = orientation is not None and all(piece.plane.position for piece in slices)
    if placed:
        between = float(np.median(np.diff(_places(slices))))
    voxel = (between, rows, columns) if between and rows and columns else None
    return Series(frames, voxel, _turn(orientation)) if placed else Series(frames, voxel)


def find_volume(path: Path) -> Series:
    """The one series in a folder, or in a file of several frames.

    Raises:
      FileError: no series, several of them, or one that is no volume.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    found: dict[tuple[str, str], list[Slice]] = {}
    for file in files:
        if file.name.startswith(".") or not file.is_file():
            continue
        if not (is_dicom(file) or claims_dicom(file)):
            continue
        try:
            for piece in slices_of(file, read_header(file)):
                found.setdefault((piece.patient, piece.series), []).append(piece)
        except NoImageError:
            continue
    if not found:
        raise FileError(path, "holds no DICOM series")
    if len(found) > 1:
        first, second = (slices[0].path.name for slices in list(found.values())[:2])
        raise FileError(
            path,
            f"holds {len(found)} series ({first} and {second} belong to different ones); give each "
            "a folder of its own",
        )
    (slices,) = found.values()
    if len(slices) == 1 and path.is_file():
        raise FileError(
            path, "holds one slice, which is no volume; give the folder of its series instead"
        )
    return as_volume(ordered(slices, volumes=True))


def holds_series(path: Path) -> bool:
    """Whether slices of a volume lie in a folder itself, or a file holds several frames."""
    if path.is_file():
        return (is_dicom(path) or claims_dicom(path)) and count_frames(path) > 1
    return any(
        not file.name.startswith(".") and file.is_file() and (is_dicom(file) or claims_dicom(file))
        for file in path.iterdir()
    )


def read_volume(series: Series, windows: Windows) -> tuple[np.ndarray, Lengths | None]:
    """`[d, h, w]` or, of several windows or colours, `[d, h, w, c]` uint8, and its voxels' size.

    Raises:
      FileError: as `read_frame`, and for slices of unlike sizes.
    """
    planes = [read_frame(path, frame, windows) for path, frame in series.frames]
    if len({plane.shape for plane in planes}) > 1:
        sizes = sorted({plane.shape[:2] for plane in planes})
        raise FileError(series.frames[0][0].parent, f"holds a series of slices of {sizes} pixels")
    stacked = np.stack(planes)
    axes = [axis for axis, _ in series.turn]
    turned = stacked.transpose(*axes, *range(3, stacked.ndim))
    backwards = [axis for axis, (_, is_backwards) in enumerate(series.turn) if is_backwards]
    voxel = series.voxel and tuple(series.voxel[axis] for axis in axes)
    return np.ascontiguousarray(np.flip(turned, backwards)), voxel


def _places(slices: Sequence[Slice]) -> np.ndarray:
    """Where each slice lies along the normal of the series, in mm."""
    rows, columns = np.array(slices[0].plane.orientation).reshape(2, 3)
    return np.array([piece.plane.position for piece in slices]) @ np.cross(rows, columns)


def _check_gaps(gaps: np.ndarray, folder: Path) -> None:
    if gaps.min() < SAME_PLACE:
        raise FileError(
            folder,
            "holds a series with several slices at one place, as of phases or echoes; give each "
            "phase a series of its own",
        )
    if gaps.max() > WIDEST_GAP * np.median(gaps):
        raise FileError(
            folder,
            f"holds a series that lacks slices: they are {gaps.min():.1f} to {gaps.max():.1f} mm "
            "apart",
        )


def _turn(orientation: Sequence[float]) -> tuple[tuple[int, bool], ...]:
    """The nearest way from stacked slices to upwards, backwards and leftwards.

    Patient coordinates grow to the left, to the back and upwards (PS3.3 C.7.6.2).
    """
    along_columns, along_rows = np.array(orientation).reshape(2, 3)
    # Depth follows the normal, height runs down the rows, width along the columns.
    stacked = np.array([np.cross(along_columns, along_rows), along_rows, along_columns])
    wanted = (2, 1, 0)
    best = max(
        itertools.permutations(range(3)),
        key=lambda axes: sum(abs(stacked[a, w]) for a, w in zip(axes, wanted, strict=True)),
    )
    return tuple((a, bool(stacked[a, w] < 0)) for a, w in zip(best, wanted, strict=True))
