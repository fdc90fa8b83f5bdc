"""Volumes and series in class folders, as slices or whole, the shared part of DICOM and NIfTI.

Ids are numbers, never names from files or headers: `patient-0003/series-01/slice-012`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drifa_jax.data.decode import fit_image
from drifa_jax.data.record import PixelSpec, TaskSpec, VolumeSpec
from drifa_jax.data.records import Records, make_records
from drifa_jax.data.volumes import Voxels, fit_voxels


@dataclass(frozen=True)
class SliceEntry:
    """One record: where it comes from, as its reader knows it, and what it may be called."""

    record_id: str
    group: str
    label: int
    place: Any


@dataclass(frozen=True)
class FittedSlices:
    """Reads places by a function and brings them to the size of a modality."""

    read: Callable[[Any], Voxels | np.ndarray]
    places: Sequence[Any]
    ids: Sequence[str]
    modality: PixelSpec
    fit: str
    spacing: tuple[float, ...] = ()

    def __call__(self, number: int) -> np.ndarray:
        pixels, name = self.read(self.places[number]), self.ids[number]
        if isinstance(self.modality, VolumeSpec):
            return fit_voxels(pixels, self.modality, fit=self.fit, spacing=self.spacing, name=name)
        return fit_image(pixels, self.modality, fit=self.fit, name=name)


def slice_records(
    entries: Sequence[SliceEntry],
    modality: PixelSpec,
    task: TaskSpec,
    read: Callable[[Any], Voxels | np.ndarray],
    *,
    description: str,
    fit: str = "stretch",
    notes: Sequence[str] = (),
    spacing: tuple[float, ...] = (),
) -> Records:
    """Records read one at a time by a function.

    Args:
      entries: the records.
      read: place -> `[h, w]` or `[h, w, c]` uint8, or voxels for a `VolumeSpec`.
      spacing: of volumes, in mm; see `data.volumes.fit_volume`.
    """
    ids = tuple(entry.record_id for entry in entries)
    return make_records(
        modality,
        task,
        ids=ids,
        groups=[entry.group for entry in entries],
        labels=[entry.label for entry in entries],
        places=np.arange(len(entries)),
        reader=FittedSlices(
            read, tuple(entry.place for entry in entries), ids, modality, fit, spacing
        ),
        description=description,
        notes=notes,
    )
