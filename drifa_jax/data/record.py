"""What one example is: named images, named labels, and who it belongs to.

Everything that reads data produces `Record`s, as a table (`records.Records`) that is a `Source`;
everything after it (splits, transforms, batching) sees nothing else. A modality or a task is a
name, never a position, so two modalities may differ in size and channels and a record may lack
the label of a task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from drifa_jax.config import ModalityConfig
from drifa_jax.errors import UserError

SPLITS = ("train", "validation", "test")

MISSING_LABEL = -1
"""Label of a task that this record says nothing about; the losses and metrics mask it."""


@dataclass(frozen=True)
class ModalitySpec:
    """The image that every record holds for one modality: `[height, width, channels]`, uint8."""

    name: str
    height: int
    width: int
    channels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.height, self.width, self.channels)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)


@dataclass(frozen=True)
class VolumeSpec:
    """A modality of whole volumes: `[depth, height, width, channels]`, uint8."""

    name: str
    depth: int
    height: int
    width: int
    channels: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.depth, self.height, self.width, self.channels)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)


@dataclass(frozen=True)
class TabularSpec:
    """A modality of `num_features` numbers a record, `[num_features]` float32."""

    name: str
    num_features: int

    @property
    def shape(self) -> tuple[int]:
        return (self.num_features,)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)


PixelSpec = ModalitySpec | VolumeSpec
Spec = PixelSpec | TabularSpec


def pixel_spec(name: str, at: ModalityConfig) -> PixelSpec:
    """What the images or volumes of a configured modality are brought to."""
    if at.depth:
        return VolumeSpec(name, at.depth, at.height, at.width, at.channels)
    return image_spec(name, at)


def image_spec(name: str, at: ModalityConfig) -> ModalitySpec:
    """What the images of a configured modality are brought to.

    Raises:
      UserError: where the configuration asks for volumes.
    """
    if at.depth:
        raise UserError(
            f"config: data.modalities.{name}.depth is {at.depth}, but its data are pictures; set "
            "it to 0."
        )
    return ModalitySpec(name, at.height, at.width, at.channels)


def described_spec(fields: Mapping[str, Any]) -> Spec:
    """A spec from its own fields, as plain values.

    Raises:
      TypeError: for the fields of none.
    """
    if "num_features" in fields:
        return TabularSpec(**fields)
    return (VolumeSpec if "depth" in fields else ModalitySpec)(**fields)


@dataclass(frozen=True)
class TaskSpec:
    """One classification task and its class names; a label is an index into `classes`."""

    name: str
    classes: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class Record:
    """One multimodal example.

    Attributes:
      record_id: unique within its source; what error messages and prediction tables show.
      group_id: patient, lesion or slide. Records of one group never straddle a split.
      images: modality name -> array of the modality's `shape` and `dtype`. A modality that the
        record lacks is not in the mapping: absence is a value, never a picture of zeros.
      labels: task name -> class index, or `MISSING_LABEL`.
    """

    record_id: str
    group_id: str
    images: Mapping[str, np.ndarray]
    labels: Mapping[str, int]


@runtime_checkable
class Source(Protocol):
    """Random access to the records of one split.

    `source[i]` is a pure function of `i`: any order, any process, any number of times gives
    the same record. `synthetic` sources are labelled SYNTHETIC wherever results are shown.
    `labels(task)`, `record_id(i)`, `group_id(i)` and `attributes(i)` answer without decoding
    images, so that class weights, sampling and splits cost nothing; labels are `[len(source)]`
    int32, attributes what else is known of a record (sex, age, scanner), column -> text.
    """

    description: str
    synthetic: bool
    modalities: tuple[Spec, ...]
    tasks: tuple[TaskSpec, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def labels(self, task: str) -> np.ndarray: ...

    def record_id(self, index: int) -> str: ...

    def group_id(self, index: int) -> str: ...

    def attributes(self, index: int) -> dict[str, str]: ...


def stack_records(
    records: Sequence[Record], specs: Sequence[Spec]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Records as arrays: modality -> `[b, *shape]` of its dtype, and modality -> `[b]` presence.

    The place of an absent modality is filled with zeros.
    """
    arrays = {spec.name: np.zeros((len(records), *spec.shape), spec.dtype) for spec in specs}
    present = {spec.name: np.zeros(len(records), bool) for spec in specs}
    for row, record in enumerate(records):
        for name, image in record.images.items():
            arrays[name][row], present[name][row] = image, True
    return arrays, present
