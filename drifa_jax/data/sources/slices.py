"""Volumes and series in class folders, as slices or whole, the shared part of DICOM and NIfTI.

Ids are numbers, never names from files or headers: `patient-0003/series-01/slice-012`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from drifa_jax.data.decode import fit_image
from drifa_jax.data.record import ModalitySpec, TaskSpec, VolumeSpec
from drifa_jax.data.records import Records, make_records


@dataclass(frozen=True)
class SliceEntry:
    """One record: where it comes from, and what it may be called."""

    record_id: str
    group: str
    label: int
    place: tuple


@dataclass(frozen=True)
class FittedSlices:
    """Reads places by a function and brings them to the size of a modality."""

    read: Callable[[tuple], np.ndarray]
    places: Sequence[tuple]
    ids: Sequence[str]
    modality: ModalitySpec | VolumeSpec
    fit: str

    def __call__(self, number: int) -> np.ndarray:
        pixels = self.read(self.places[number])
        if isinstance(self.modality, VolumeSpec):
            return fit_volume(pixels, self.modality)
        return fit_image(pixels, self.modality, fit=self.fit, name=self.ids[number])


def slice_records(
    entries: Sequence[SliceEntry],
    modality: ModalitySpec | VolumeSpec,
    task: TaskSpec,
    read: Callable[[tuple], np.ndarray],
    *,
    description: str,
    fit: str = "stretch",
    notes: Sequence[str] = (),
) -> Records:
    """Records read one at a time by a function.

    Args:
      entries: the records.
      read: place -> `[h, w]` or `[h, w, c]` uint8, or `[d, h, w, c]` for volumes.
    """
    ids = tuple(entry.record_id for entry in entries)
    return make_records(
        modality,
        task,
        ids=ids,
        groups=[entry.group for entry in entries],
        labels=[entry.label for entry in entries],
        places=np.arange(len(entries)),
        reader=FittedSlices(read, tuple(entry.place for entry in entries), ids, modality, fit),
        description=description,
        notes=notes,
    )


def fit_volume(pixels: np.ndarray, spec: VolumeSpec) -> np.ndarray:
    """`[d, h, w]` uint8 at any size to `[depth, height, width, channels]`, by linear sampling."""
    if pixels.ndim == 4:
        pixels = pixels[..., 0]
    planes = np.stack([_plane(plane, spec.height, spec.width) for plane in pixels])
    if len(planes) != spec.depth:
        flat = planes.reshape(len(planes), -1)
        flat = _plane(flat, spec.depth, flat.shape[1])
        planes = flat.reshape(spec.depth, spec.height, spec.width)
    return np.repeat(planes[..., None], spec.channels, axis=-1)


def _plane(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    if plane.shape == (height, width):
        return plane
    shrinks = height <= plane.shape[0] and width <= plane.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(plane, (width, height), interpolation=method)
