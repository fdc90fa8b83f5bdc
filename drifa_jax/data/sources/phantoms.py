"""Paired brain phantoms: SYNTHETIC MRI-like and CT-like slices, drawn on demand.

No files and no downloads: `source[i]` draws its head from the seed, so the rest of the
project can be run, tested and timed anywhere. A lesion shows in both modalities, in one of
them or in neither, in the proportions stated here; that is why fusing them helps, and why
nobody can reach 100 %. The phantoms test methods; they say nothing about real patients.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from drifa_jax.data.record import SPLITS, ModalitySpec, Record, TaskSpec
from drifa_jax.data.sources import phantom_anatomy

MIN_IMAGE_SIZE = 16

# First word of every random stream; 0 and 1 are the noise of the two modalities. The seed
# comes last because it alone may take several 32-bit words: whatever its length, it cannot
# then be mistaken for a purpose, a split or an index.
_HEAD_STREAM, _FINDING_STREAM = 2, 3


@dataclass(frozen=True)
class EvidenceSplit:
    """Share of the lesions of one task that shows in both, one or none of the modalities."""

    both: float
    mri_only: float
    ct_only: float
    neither: float

    def __post_init__(self) -> None:
        """Reject shares that are not a distribution."""
        if min(self.shares) < 0 or not math.isclose(sum(self.shares), 1.0, abs_tol=1e-9):
            raise ValueError(f"{self} must have non-negative shares that add up to 1")

    @property
    def shares(self) -> tuple[float, float, float, float]:
        """The four shares, in the order of `EVIDENCE_KINDS`."""
        return (self.both, self.mri_only, self.ct_only, self.neither)

    @property
    def visible(self) -> Mapping[str, float]:
        """Share of the lesions that an observer of "mri", "ct" or "fused" can see."""
        return {
            "mri": self.both + self.mri_only,
            "ct": self.both + self.ct_only,
            "fused": self.both + self.mri_only + self.ct_only,
        }


EVIDENCE_KINDS: tuple[tuple[str, ...], ...] = (("mri", "ct"), ("mri",), ("ct",), ())
"""Modalities that show a lesion, for each share of an `EvidenceSplit`."""


@dataclass(frozen=True)
class PhantomTask:
    """One task of the phantoms: its classes, how frequent they are, where they show.

    Attributes:
      spec: name and classes; class names other than `healthy` are kinds of lesion.
      healthy: the class without a lesion.
      prevalences: probability of each class.
      evidence: where the lesions of this task show.
    """

    spec: TaskSpec
    healthy: str
    prevalences: tuple[float, ...]
    evidence: EvidenceSplit


TASKS: Mapping[str, PhantomTask] = MappingProxyType(
    {
        "tumour": PhantomTask(
            spec=TaskSpec("tumour", ("glioma", "meningioma", "pituitary", "no_tumour")),
            healthy="no_tumour",
            prevalences=(0.23, 0.23, 0.23, 0.31),
            evidence=EvidenceSplit(both=0.30, mri_only=0.33, ct_only=0.30, neither=0.07),
        ),
        "stroke": PhantomTask(
            spec=TaskSpec("stroke", ("normal", "ischaemic", "haemorrhagic")),
            healthy="normal",
            prevalences=(0.4, 0.3, 0.3),
            evidence=EvidenceSplit(both=0.27, mri_only=0.35, ct_only=0.30, neither=0.08),
        ),
    }
)
"""The two tasks, drawn independently of each other."""


def ideal_observer_accuracy(
    prevalences: Sequence[float], healthy: int, evidence: EvidenceSplit
) -> dict[str, float]:
    """Best accuracy that anyone can reach, from the proportions alone.

    The ideal observer names every lesion it can see. When it sees none, the head is healthy
    or the lesion does not show, and it answers whichever class is then the most probable.

    Args:
      prevalences: probability of each class, adding up to 1.
      healthy: index of the class without a lesion.
      evidence: where lesions show.

    Returns:
      Bayes-optimal accuracy for "mri", "ct" and "fused", each in 0..1.

    Raises:
      ValueError: if `prevalences` is not a distribution or `healthy` is not one of its indices.

    Source: Bayes' rule, none from the paper. The one assumption is that visible lesions are
    recognised without error, so real observers stay below.
    Test: tests/data/test_phantoms.py.
    """
    if not 0 <= healthy < len(prevalences):
        raise ValueError(f"healthy={healthy} is not an index of {len(prevalences)} prevalences")
    if min(prevalences) < 0 or not math.isclose(sum(prevalences), 1.0, abs_tol=1e-9):
        raise ValueError(f"prevalences {tuple(prevalences)} must be >= 0 and add up to 1")
    accuracy = {}
    for observer, visible in evidence.visible.items():
        hidden = [
            prevalence if index == healthy else prevalence * (1.0 - visible)
            for index, prevalence in enumerate(prevalences)
        ]
        accuracy[observer] = (1.0 - prevalences[healthy]) * visible + max(hidden)
    return accuracy


class PhantomSource:
    """Random access to SYNTHETIC paired brain slices, a `Source`.

    Every record is its own patient. Splits and seeds draw from disjoint random streams, and
    record `i` does not depend on `num_records`, so a longer source begins with a shorter one.

    Example:
      >>> source = PhantomSource("train", num_records=8, seed=0, image_size=64)
      >>> source[3].images["mri"].shape
      (64, 64, 1)

    Args:
      split: "train", "validation" or "test".
      num_records: how many patients, at least 1.
      seed: non-negative integer; other seeds are other patients.
      image_size: height and width in pixels, one for both modalities or one for each by name.
      channels: 1, or 3 to repeat the grey picture for backbones that expect colour.

    Raises:
      ValueError: naming the argument, its value and what is accepted.
    """

    synthetic = True

    def __init__(
        self,
        split: str,
        num_records: int,
        seed: int,
        image_size: Mapping[str, int] | int = 64,
        *,
        channels: int = 1,
    ):
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is unknown; choose one of {SPLITS}")
        if not 1 <= num_records < 2**32:
            raise ValueError(f"num_records is {num_records}; ask for at least 1 (below 2**32)")
        if seed < 0:
            raise ValueError(f"seed is {seed}; choose a non-negative integer")
        if channels not in (1, 3):
            raise ValueError(f"channels is {channels}; choose 1, or 3 to repeat the grey picture")
        sizes = _sizes_by_modality(image_size)
        self.description = (
            f"SYNTHETIC paired brain phantoms, MRI-like and CT-like, {split} split, seed {seed}"
        )
        self.modalities = tuple(
            ModalitySpec(name, sizes[name], sizes[name], channels)
            for name in phantom_anatomy.MODALITIES
        )
        self.tasks = tuple(task.spec for task in TASKS.values())
        self._split, self._num_records, self._seed = split, num_records, seed
        self._labels, self._evidence = self._draw_findings()

    def __len__(self) -> int:
        """Number of records, each its own patient."""
        return self._num_records

    def __getitem__(self, index: int) -> Record:
        """One record; the same pictures whenever and wherever it is read."""
        patient = self.patient(index)
        images, anatomies = {}, {}
        for modality in self.modalities:
            size = modality.height
            if size not in anatomies:
                anatomies[size] = phantom_anatomy.anatomy(patient.head, size)
            picture = phantom_anatomy.render(patient, modality.name, size, anatomies[size])
            images[modality.name] = np.repeat(picture[:, :, None], modality.channels, axis=2)
        record_id = self.record_id(index)
        labels = {task: int(column[index]) for task, column in self._labels.items()}
        return Record(record_id=record_id, group_id=record_id, images=images, labels=labels)

    def record_id(self, index: int) -> str:
        """Name of one record, which is also its patient's: "phantom-train-000123"."""
        return f"phantom-{self._split}-{self._checked(index):06d}"

    def group_id(self, index: int) -> str:
        """The patient, of whom the record is the only one."""
        return self.record_id(index)

    def labels(self, task: str) -> np.ndarray:
        """Class index of every record, `[len(source)]` int32, without drawing a picture."""
        return self._column(self._labels, task).copy()

    def evidence(self, task: str) -> np.ndarray:
        """Where every record's lesion shows, `[len(source)]` int32 index of `EVIDENCE_KINDS`.

        Healthy records carry a value as well; it has no effect on them.
        """
        return self._column(self._evidence, task).copy()

    def attributes(self, index: int) -> dict[str, str]:
        """Of each task, the modalities that show its lesion, for subgroups."""
        shown = {}
        for name, task in TASKS.items():
            kind = task.spec.classes[self._labels[name][index]]
            visible = EVIDENCE_KINDS[self._evidence[name][index]]
            shown[f"{name}/lesion shows in"] = (
                "no lesion" if kind == task.healthy else " and ".join(visible) or "neither modality"
            )
        return shown

    def patient(self, index: int) -> phantom_anatomy.Patient:
        """The numbers behind one record: head and lesions, before any picture is drawn."""
        index = self._checked(index)
        findings = {}
        for name, task in TASKS.items():
            kind = task.spec.classes[self._labels[name][index]]
            if kind != task.healthy:
                findings[kind] = EVIDENCE_KINDS[self._evidence[name][index]]
        return phantom_anatomy.draw_patient(
            self._generator(_HEAD_STREAM, index),
            findings,
            noise_seed=(SPLITS.index(self._split), index, self._seed),
        )

    def _draw_findings(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Class and evidence of every record, in one pass; a prefix of any longer source."""
        chance = self._generator(_FINDING_STREAM, 0).random((self._num_records, 2, len(TASKS)))
        labels, evidence = {}, {}
        for column, (name, task) in enumerate(TASKS.items()):
            labels[name] = _choose(chance[:, 0, column], task.prevalences)
            evidence[name] = _choose(chance[:, 1, column], task.evidence.shares)
        return labels, evidence

    def _generator(self, stream: int, index: int) -> np.random.Generator:
        entropy = [stream, SPLITS.index(self._split), index, self._seed]
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))

    def _column(self, columns: Mapping[str, np.ndarray], task: str) -> np.ndarray:
        if task not in columns:
            raise ValueError(f"task {task!r} is unknown; choose one of {tuple(columns)}")
        return columns[task]

    def _checked(self, index: int) -> int:
        index = operator.index(index)
        if not 0 <= index < self._num_records:
            raise IndexError(
                f"record {index} is outside this {self._split} source; "
                f"use an index from 0 to {self._num_records - 1}"
            )
        return index


def _sizes_by_modality(image_size: Mapping[str, int] | int) -> dict[str, int]:
    """One picture size for every modality, checked."""
    names = phantom_anatomy.MODALITIES
    sizes = (
        dict(image_size) if isinstance(image_size, Mapping) else dict.fromkeys(names, image_size)
    )
    if set(sizes) != set(names):
        raise ValueError(f"image_size names {sorted(sizes)}; give one size for each of {names}")
    for name, size in sizes.items():
        if size < MIN_IMAGE_SIZE:
            raise ValueError(
                f"image_size for {name!r} is {size}; use at least {MIN_IMAGE_SIZE} pixels"
            )
    return sizes


def _choose(chance: np.ndarray, probabilities: Sequence[float]) -> np.ndarray:
    """Index drawn with the given probabilities from each uniform number in [0, 1)."""
    # The last bound is left out: rounding in the sum could put it below 1 and add an index.
    bounds = np.cumsum(probabilities)[:-1]
    return np.searchsorted(bounds, chance, side="right").astype(np.int32)
