"""Arrays: `.npz` files in the layout of MedMNIST and MedMNIST3D, and pairs of `.npy` files.

MedMNIST stores `train_images`, `train_labels` and the same for `val` and `test`. The authors'
notebooks read one `.npy` of images and one of labels for each modality and split.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drifa_jax.config import ModalityConfig
from drifa_jax.data.decode import FITS, fit_image
from drifa_jax.data.problems import Problems, reading
from drifa_jax.data.readers.containers import read_npz
from drifa_jax.data.record import MISSING_LABEL, PixelSpec, TaskSpec, VolumeSpec, pixel_spec
from drifa_jax.data.records import Records, concatenate, make_records
from drifa_jax.data.volumes import fit_volume
from drifa_jax.errors import UserError

CHANNELS = (1, 3)
FEW = 8
"""A last axis as short as this is one of channels."""

NPZ_SPLITS = {"train": "train", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class ArrayImages:
    """Reads images or volumes by their number in an array `[n, (d,) h, w]` or `[..., 1 or 3]`.

    `scale` brings pixels to 0..255; 0 where they are uint8 already.
    """

    name: str
    images: np.ndarray
    scale: float
    modality: PixelSpec
    fit: str

    def __call__(self, index: int) -> np.ndarray:
        name, pixels = record_name(self.name, index), np.asarray(self.images[index])
        if self.scale:
            if not np.isfinite(pixels).all():
                raise UserError(f"{name}: has pixels that are NaN or infinite.")
            pixels = np.rint(np.clip(pixels * self.scale, 0, 255)).astype(np.uint8)
        fit = fit_volume if isinstance(self.modality, VolumeSpec) else fit_image
        return fit(pixels, self.modality, fit=self.fit, name=name)


def record_name(name: str, index: int) -> str:
    return f"{name}/{index:06d}"


def array_records(
    name: str,
    images: np.ndarray,
    labels: np.ndarray,
    modality: PixelSpec,
    task: TaskSpec,
    *,
    split: str = "",
    fit: str = "stretch",
) -> Records:
    """Images and labels in memory (or memory-mapped) as records.

    Args:
      name: first part of every record id.
      images: `[n, h, w]` or `[n, h, w, 1 or 3]`, of volumes `[n, d, h, w]` or
        `[n, d, h, w, 1 or 3]`; uint8, or float in 0..1 or 0..255.
      labels: `[n]`, `[n, 1]` integers, or one-hot `[n, k]`.
      modality: the size and channels that every image or volume is brought to.
      task: the task and its classes.
      split: that the records bring.

    Raises:
      UserError: listing what is wrong with the arrays.

    Test: tests/data/sources/test_arrays.py.
    """
    if fit not in FITS:
        raise ValueError(f"fit is {fit!r}; choose one of {tuple(FITS)}.")
    problems = Problems(f"the arrays of {name}")
    if wrong := _wrong_shape(images.shape, modality):
        problems.add("images", f"have the shape {images.shape}; {wrong}")
    scale = _scale(images, problems)
    classes = _integer_labels(labels, task, problems)
    if len(images) != len(labels):
        problems.add("labels", f"are {len(labels)} for {len(images)} images")
    if len(images) == 0:
        problems.add("images", "are none")
    problems.raise_any("Correct the files.")
    unlabelled = int((classes == MISSING_LABEL).sum())
    what = f"{name}: {unlabelled} labels are {MISSING_LABEL}, taken for no label"
    return make_records(
        modality,
        task,
        ids=[record_name(name, index) for index in range(len(images))],
        labels=classes,
        places=np.arange(len(images)),
        splits=[split] * len(images),
        reader=ArrayImages(name, images, scale, modality, fit),
        description=f"{len(images)} {modality.name} images of {name}",
        notes=[what] if unlabelled else [],
    )


def scan_npz(name: str, at: ModalityConfig, quarantine: str | None = None) -> Records:
    """The format `npz`: one MedMNIST file."""
    path, modality, task = Path(at.root), pixel_spec(name, at), _declared(name, at)
    if not path.is_file():
        raise UserError(f"The file {path} does not exist.")
    problems = Problems(str(path))
    parts = []
    names = [f"{prefix}_{kind}" for prefix in NPZ_SPLITS for kind in ("images", "labels")]
    arrays = read_npz(path, names)
    for prefix, split in NPZ_SPLITS.items():
        keys = (f"{prefix}_images", f"{prefix}_labels")
        missing = [key for key in keys if key not in arrays]
        if missing:
            problems.add(prefix, f"lacks {missing}; of those needed it has {sorted(arrays)}")
            continue
        images, labels = (arrays[key] for key in keys)
        called = f"{path.stem}/{split}"
        parts.append(array_records(called, images, labels, modality, task, split=split, fit=at.fit))
    problems.raise_any("Give a file in the layout of MedMNIST.")
    return concatenate(parts, f"{name} images of {path}")


def scan_npy(name: str, at: ModalityConfig, quarantine: str | None = None) -> Records:
    """The format `npy`: `x_train.npy` with `y_train.npy`, and the same for val and test.

    Images stay on disk until they are read; a validation pair may be absent.
    """
    root, parts = Path(at.root), []
    for prefix, split in NPZ_SPLITS.items():
        if prefix == "val" and not (root / "x_val.npy").is_file():
            continue
        arrays = []
        for path in (root / f"x_{prefix}.npy", root / f"y_{prefix}.npy"):
            if not path.is_file():
                raise UserError(f"The file {path} does not exist.")
            with reading(path, "is not a readable .npy file"):
                arrays.append(np.load(path, mmap_mode="r", allow_pickle=False))
        called, modality, task = f"x_{prefix}/{split}", pixel_spec(name, at), _declared(name, at)
        parts.append(array_records(called, *arrays, modality, task, split=split, fit=at.fit))
    return concatenate(parts, f"{name} images of {root}")


def _declared(name: str, at: ModalityConfig) -> TaskSpec:
    if not at.classes:
        raise UserError(
            f"Arrays carry no class names: name the classes of {at.task!r} (modality {name})."
        )
    return TaskSpec(at.task, at.classes)


def _wrong_shape(shape: tuple[int, ...], modality: PixelSpec) -> str:
    """What is wanted instead, and the field that says so; nothing where the shape fits."""
    field = f"data.modalities.{modality.name}.depth"
    is_volume = isinstance(modality, VolumeSpec)
    axes = "n, d, h, w" if is_volume else "n, h, w"
    num_axes = axes.count(",") + 1
    # A volume is no pixel wide: these are pictures, in colour or with an axis for grey.
    are_pictures = is_volume and len(shape) == num_axes and shape[-1] in CHANNELS
    if (len(shape) == num_axes and not are_pictures) or (
        len(shape) == num_axes + 1 and shape[-1] in CHANNELS
    ):
        few = is_volume and shape[1] < 2
        return f"volumes need 2 slices or more; of pictures set {field}=0" if few else ""
    wanted = f"wanted {'volumes ' * is_volume}[{axes}] or [{axes}, 1 or 3]"
    if len(shape) == num_axes + 1 and shape[-1] <= FEW:
        return (
            f"{wanted}: {shape[-1]} channels cannot be read. Make each a modality of its own, with "
            f"files of the same name, [{axes}], and data.pairing=paired; or fill them up to 3"
        )
    if len(shape) == num_axes + 1 and shape[1] in CHANNELS:
        wanted += "; channels come last, as numpy.moveaxis(images, 1, -1) puts them"
    if is_volume:
        return f"{wanted}; of pictures set {field}=0"
    return f"{wanted}; of volumes set {field}" if len(shape) in (4, 5) else wanted


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
    if labels.ndim != 1:
        problems.add("labels", f"have the shape {labels.shape}; wanted [n] class numbers")
        return np.zeros(len(labels), np.int32)
    if labels.dtype.kind not in "biuf":
        problems.add("labels", f"have the type {labels.dtype}; wanted [n] class numbers, no text")
        return np.zeros(len(labels), np.int32)
    if not (np.isfinite(labels).all() and (labels == np.floor(labels)).all()):
        problems.add("labels", "hold NaN or fractions; wanted [n] class numbers")
        return np.zeros(len(labels), np.int32)
    wrong = sorted({int(y) for y in labels if not MISSING_LABEL <= y < task.num_classes})
    if wrong:
        problems.add("labels", f"hold {wrong}, outside the {task.num_classes} classes declared")
    return labels.astype(np.int32)
