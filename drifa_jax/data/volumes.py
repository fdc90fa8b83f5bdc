"""From voxels of any size to the grid of a modality, `[depth, height, width, channels]` uint8."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from drifa_jax.data.decode import FITS, convert_channels, resize
from drifa_jax.data.problems import FileError
from drifa_jax.data.record import VolumeSpec

Lengths = tuple[float, float, float]
"""Of the depth, height and width of a voxel, in mm."""

CUBES: Lengths = (1.0, 1.0, 1.0)
"""Voxels whose size nobody knows."""


class Voxels(NamedTuple):
    """A volume in the canonical orientation.

    Attributes:
      values: `[d, h, w]` or `[d, h, w, c]` uint8.
      size: of a voxel, in mm; None where nobody knows.
    """

    values: np.ndarray
    size: Lengths | None


def fit_volume(
    voxels: np.ndarray,
    spec: VolumeSpec,
    *,
    fit: str = "stretch",
    voxel: Lengths = CUBES,
    spacing: tuple[float, ...] = (),
    name: str = "volume",
) -> np.ndarray:
    """`[d, h, w]` or `[d, h, w, c]` uint8 of any size to `[depth, height, width, channels]`.

    Each axis is averaged where it shrinks and sampled linearly where it grows.

    Args:
      voxels: the volume, in one canonical orientation.
      spec: the grid wanted.
      fit: without a spacing, how other proportions are fitted: "stretch" distorts them; "pad" and
        "crop" keep those of the body, and fill with black or cut.
      voxel: size of a voxel.
      spacing: distance of the grid's voxels; the volume is then cut or filled with black about its
        centre, whatever `fit` says.
      name: what messages call the volume.

    Raises:
      FileError: for something that is no volume.

    Test: tests/data/test_volumes.py.
    """
    if fit not in FITS:
        raise ValueError(f"fit is {fit!r}; choose one of {tuple(FITS)}.")
    if voxels.ndim not in (3, 4) or (voxels.ndim == 4 and voxels.shape[3] not in (1, 3)):
        raise FileError(
            name, f"has the shape {voxels.shape}; a volume is [d, h, w] or [d, h, w, 1 or 3]"
        )
    if len(voxels) < 2:
        raise FileError(
            name,
            "holds one slice, which is no volume; leave it out, or read slices as pictures: "
            f"data.modalities.{spec.name}.depth=0",
        )
    grid = np.array(spec.shape[:3])
    size = np.array(voxels.shape[:3])
    scale = _scale(size, grid, fit, np.array(voxel, float), np.array(spacing, float))
    # What lies outside the grid is cut before it is resampled.
    kept = np.clip(np.rint(grid / scale).astype(int), 1, size)
    start = (size - kept) // 2
    voxels = voxels[tuple(slice(s, s + k) for s, k in zip(start, kept, strict=True))]
    inner = np.clip(np.rint(kept * scale).astype(int), 1, grid)
    voxels = _resampled(voxels, inner, spec.channels, name)
    if (inner == grid).all():
        return voxels
    low = (grid - inner) // 2
    filled = np.zeros(spec.shape, np.uint8)
    filled[tuple(slice(a, a + n) for a, n in zip(low, inner, strict=True))] = voxels
    return filled


def _scale(size, grid, fit: str, voxel: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Voxels of the grid over voxels of the volume along each axis."""
    if len(spacing):
        return voxel / spacing
    if fit == "stretch":
        return grid / size
    by_length = grid / (size * voxel)
    return (by_length.min() if fit == "pad" else by_length.max()) * voxel


def _resampled(voxels: np.ndarray, size: np.ndarray, channels: int, name: str) -> np.ndarray:
    depth, height, width = (int(n) for n in size)
    planes = [resize(convert_channels(plane, channels, name), height, width) for plane in voxels]
    if len(planes) == depth:
        return np.stack(planes)
    # Along the depth every pixel is a column of its own.
    columns = np.stack(planes).reshape(len(planes), -1)
    method = cv2.INTER_AREA if depth < len(planes) else cv2.INTER_LINEAR
    resized = cv2.resize(columns, (columns.shape[1], depth), interpolation=method)
    return resized.reshape(depth, height, width, channels)


def fit_voxels(
    voxels: Voxels, spec: VolumeSpec, *, fit: str, spacing: tuple[float, ...], name: str
) -> np.ndarray:
    """`fit_volume` of what a file holds.

    Raises:
      FileError: where a spacing is asked for and the file does not tell its own.
    """
    if spacing and voxels.size is None:
        raise FileError(
            name,
            "does not say how far its voxels are apart, which a spacing needs; leave "
            f"data.modalities.{spec.name}.spacing empty",
        )
    return fit_volume(
        voxels.values, spec, fit=fit, voxel=voxels.size or CUBES, spacing=spacing, name=name
    )
