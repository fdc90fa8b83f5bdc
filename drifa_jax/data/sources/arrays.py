"""Arrays: `.npz` files in the layout of MedMNIST and pairs of `.npy` files.

MedMNIST stores `train_images`, `train_labels` and the same for `val` and `test`. The authors'
notebooks read one `.npy` of images and one of labels for each modality and split.
"""

from __future__ import annotations

import operator
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from drifa_jax.data.decode import FITS, fit_image
from drifa_jax.data.problems import Problems
from drifa_jax.data.record import MISSING_LABEL, ModalitySpec, Record, TaskSpec
from drifa_jax.errors import UserError

NPZ_SPLITS = {"train": "train", "val": "validation", "test": "test"}


class ArraySource:
    """Images and labels in memory (or memory-mapped) as records, a `Source`.

    Args:
      name: first part of every record id.
      images: `[n, h, w]` or `[n, h, w, 1 or 3]`; uint8, or float in 0..1 or 0..255.
      labels: `[n]`, `[n, 1]` integers, or one-hot `[n, k]`.
      modality: the size and channels that every image is brought to.
      task: the task and its classes.
      groups: the group of every record, or None for every record its own.

    Raises:
      UserError: listing what is wrong with the arrays.

    Test: tests/data/sources/test_arrays.py.
    """

    synthetic = False

    def __init__(
        self,
        name: str,
        images: np.ndarray,
        labels: np.ndarray,
        modality: ModalitySpec,
        task: TaskSpec,
        *,
        groups: Sequence[str] | None = None,
        fit: str = "stretch",
    ):
        if fit not in FITS:
            raise ValueError(f"fit is {fit!r}; choose one of {tuple(FITS)}.")
        problems = Problems(f"the arrays of {name}")
        if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
            problems.add(
                "images",
                f"have the shape {images.shape}; wanted [n, h, w], [n, h, w, 1] or [n, h, w, 3]",
            )
        self._scale = _scale(images, problems)
        self._labels = _integer_labels(labels, task, problems)
        if len(images) != len(labels):
            problems.add("labels", f"are {len(labels)} for {len(images)} images")
        if len(images) == 0:
            problems.add("images", "are none")
        if groups is not None and len(groups) != len(images):
            problems.add("groups", f"are {len(groups)} for {len(images)} images")
        problems.raise_any("Correct the files.")
        self.description = f"{len(images)} {modality.name} images of {name}"
        self.modalities, self.tasks = (modality,), (task,)
        self._name, self._images, self._groups, self._fit = name, images, groups, fit

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Record:
        index = self._checked(index)
        pixels = np.asarray(self._images[index])
        if self._scale:
            if not np.isfinite(pixels).all():
                raise UserError(f"{self.record_id(index)}: has pixels that are NaN or infinite.")
            pixels = np.rint(np.clip(pixels * self._scale, 0, 255)).astype(np.uint8)
        modality = self.modalities[0]
        image = fit_image(pixels, modality, fit=self._fit, name=self.record_id(index))
        label = {self.tasks[0].name: int(self._labels[index])}
        return Record(self.record_id(index), self.group_id(index), {modality.name: image}, label)

    def labels(self, task: str) -> np.ndarray:
        if task != self.tasks[0].name:
            raise ValueError(f"task {task!r} is unknown; choose {self.tasks[0].name!r}")
        return self._labels.copy()

    def record_id(self, index: int) -> str:
        return f"{self._name}/{self._checked(index):06d}"

    def group_id(self, index: int) -> str:
        return self.record_id(index) if self._groups is None else str(self._groups[index])

    def _checked(self, index: int) -> int:
        index = operator.index(index)
        if not 0 <= index < len(self._images):
            raise IndexError(f"record {index} is outside the {len(self._images)} of {self._name}")
        return index


def npz_splits(
    path: str | Path, modality: ModalitySpec, task: TaskSpec, *, fit: str = "stretch"
) -> dict[str, ArraySource]:
    """Split -> source of one MedMNIST file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"The file {path} does not exist.")
    problems = Problems(str(path))
    splits = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for prefix, split in NPZ_SPLITS.items():
                keys = (f"{prefix}_images", f"{prefix}_labels")
                missing = [key for key in keys if key not in arrays]
                if missing:
                    problems.add(prefix, f"lacks {missing}; the file has {sorted(arrays)}")
                    continue
                images, labels = (arrays[key] for key in keys)
                name = f"{path.stem}/{split}"
                splits[split] = ArraySource(name, images, labels, modality, task, fit=fit)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: is not a readable .npz file ({error}).") from error
    problems.raise_any("Give a file in the layout of MedMNIST.")
    return splits


def npy_splits(
    files: Mapping[str, tuple[str | Path, str | Path]],
    modality: ModalitySpec,
    task: TaskSpec,
    *,
    fit: str = "stretch",
) -> dict[str, ArraySource]:
    """Split -> source of (images.npy, labels.npy); images stay on disk until they are read."""
    splits = {}
    for split, (image_path, label_path) in files.items():
        arrays = []
        for path in (Path(image_path), Path(label_path)):
            try:
                arrays.append(np.load(path, mmap_mode="r", allow_pickle=False))
            except FileNotFoundError as error:
                raise UserError(f"The file {path} does not exist.") from error
            except (ValueError, OSError) as error:
                raise UserError(f"{path}: is not a readable .npy file ({error}).") from error
        name = f"{Path(image_path).stem}/{split}"
        splits[split] = ArraySource(name, arrays[0], arrays[1], modality, task, fit=fit)
    return splits


def _scale(images: np.ndarray, problems: Problems) -> float:
    """What brings the pixels to 0..255; 0 when they are uint8 already."""
    if images.dtype == np.uint8:
        return 0.0
    if images.dtype.kind not in "fiu" or images.size == 0:
        problems.add("images", f"have the type {images.dtype}; wanted uint8 or float")
        return 0.0
    low, high = float(np.min(images)), float(np.max(images))
    if not np.isfinite([low, high]).all():
        bad = [i for i in range(len(images)) if not np.isfinite(images[i]).all()]
        problems.add("images", f"hold NaN or infinite pixels in records {bad[:10]}")
        return 0.0
    if low < 0 or high > 255:
        problems.add("images", f"range from {low:g} to {high:g}; wanted 0..1 or 0..255")
    return 255.0 if high <= 1.0 and images.dtype.kind == "f" else 1.0


def _integer_labels(labels: np.ndarray, task: TaskSpec, problems: Problems) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == task.num_classes and labels.shape[1] > 1:
        if not ((labels == 0) | (labels == 1)).all() or not (labels.sum(1) == 1).all():
            problems.add("labels", "are neither class numbers nor one-hot rows")
        return labels.argmax(1).astype(np.int32)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or (labels.size and not (labels == np.floor(labels)).all()):
        problems.add("labels", f"have the shape {labels.shape}; wanted [n] class numbers")
        return np.zeros(len(labels), np.int32)
    wrong = sorted({int(y) for y in labels if not MISSING_LABEL <= y < task.num_classes})
    if wrong:
        problems.add("labels", f"hold {wrong}, outside the {task.num_classes} classes declared")
    return labels.astype(np.int32)
