"""Volumes and series in class folders, as slices or whole, the shared part of DICOM and NIfTI.

Ids are numbers, never names from files or headers: `patient-0003/series-01/slice-012`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from drifa_jax.data.decode import fit_image
from drifa_jax.data.record import ModalitySpec, Record, Source, TaskSpec, VolumeSpec
from drifa_jax.data.splits import split_source


@dataclass(frozen=True)
class SliceEntry:
    """One record: where it comes from, and what it may be called."""

    record_id: str
    group: str
    label: int
    place: tuple


class SliceSource:
    """Records read one at a time by a function, a `Source`.

    Args:
      entries: the records.
      read: place -> `[h, w]` or `[h, w, c]` uint8, or `[d, h, w, c]` for volumes.
    """

    synthetic = False

    def __init__(
        self,
        entries: Sequence[SliceEntry],
        modality: ModalitySpec | VolumeSpec,
        task: TaskSpec,
        read: Callable[[tuple], np.ndarray],
        *,
        description: str,
        fit: str = "stretch",
    ):
        self.modalities, self.tasks, self.description = (modality,), (task,), description
        self._entries, self._read, self._fit = tuple(entries), read, fit
        self._labels = np.array([entry.label for entry in entries], np.int32)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Record:
        entry = self._entries[operator.index(index)]
        pixels, modality = self._read(entry.place), self.modalities[0]
        if isinstance(modality, VolumeSpec):
            image = fit_volume(pixels, modality)
        else:
            image = fit_image(pixels, modality, fit=self._fit, name=entry.record_id)
        labels = {self.tasks[0].name: entry.label}
        return Record(entry.record_id, entry.group, {modality.name: image}, labels)

    def labels(self, task: str) -> np.ndarray:
        if task != self.tasks[0].name:
            raise ValueError(f"task {task!r} is unknown; choose {self.tasks[0].name!r}")
        return self._labels.copy()

    def record_id(self, index: int) -> str:
        return self._entries[index].record_id

    def group_id(self, index: int) -> str:
        return self._entries[index].group

    def splits(self, fractions: Mapping[str, float], seed: int) -> dict[str, Source]:
        """Drawn splits, patients whole."""
        return dict(split_source(self, fractions, seed))


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
