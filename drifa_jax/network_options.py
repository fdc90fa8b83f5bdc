"""What shapes a network besides its modalities and tasks: the config group `model`, as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

PADDINGS = ("same", "symmetric")
DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float64": np.dtype(np.float64),
}
MFA_PARTS, MIFA_PARTS = ("hifa", "clia"), ("mgifa", "mlifa")
GATE_PARTS = ("within", "across")
FUSE_AT_ALL, FUSE_AT_RESOLUTIONS = "all", "resolutions"
READ_LAST, READ_RESOLUTIONS = "last", "resolutions"
DROPOUT_AT_STAGES, DROPOUT_AT_HEADS = "stages", "heads"
LATER_FIELDS = {"dropout_at", "fuse_at", "gate_parts", "gate_rank", "read_stages"}


@dataclass(frozen=True)
class NetworkOptions:
    """What shapes a DRIFA-Net besides its modalities and tasks. Defaults are the paper's.

    Attributes:
      width: channels after the stem, of the backbones that can be built in any width (ResNets);
        a network of others alone keeps the default.
      backbone: a name in `models.registry.BACKBONES`; a modality may name another.
      dropout_rate: of Monte Carlo dropout.
      dropout_at: what dropout drops: "stages" is the maps after every stage but those of the last
        resolution, and the last before the heads, as in the paper; "heads" only the numbers that
        the heads read, which leaves pretrained features whole and lets all samples of a record
        share everything before the heads.
      fusion: what happens between stages, a name in `models.registry.FUSIONS`.
      fuse_at: after which stages it happens: "all" is every stage that a backbone declares (every
        block of a ResNet, as in the paper, and every resolution of the others), "resolutions"
        the last stage of every resolution; or a list of stages by number (from 0, or from the
        end: -1) or name. How unlike branches are matched: `models/matching.py`.
      mfa_parts: parts of MFA inside stem and RRA blocks, of "hifa" and "clia".
      stage_mfa_parts: parts of the extra MFA after each stage but the last.
      mifa_parts: parts of MIFA, of "mgifa" and "mlifa"; none leaves the branches apart.
      gate_parts: of the fusion "identity_gates": gates "within" a modality and "across" all.
      gate_rank: numbers to which those gates reduce the pooled features of a modality.
      readout: how heads read the branches, a name in `models.registry.READOUTS`: "concatenate"
        gives each head the features of all modalities, as in the paper; "average" gives each
        modality its own head and averages their probabilities; "experts" multiplies the
        probabilities of a head a modality and a fused one, over the prior; "auxiliary" trains
        those heads and answers by the fused one.
      read_stages: what heads read of a branch: "last" is the mean over space after its last stage,
        as in the paper; "resolutions" the mean and the deviation over space after every
        resolution (`models/reading.py`).
      compute_dtype: of convolutions and activations; parameters and statistics stay float32.
      padding: "same" pads strided convolutions at the end, as TensorFlow and JAX do;
        "symmetric" pads both sides alike, as PyTorch does. They differ where the stride is 2,
        so weights trained under one give other features under the other.
      batch_norm_epsilon: added to the variance (authors 1e-3, PyTorch 1e-5).
      batch_norm_momentum: weight of the old moving average.
      batch_norm_unbiased: whether moving variances take the unbiased batch variance, as in
        Keras 2 and PyTorch.

    Raises:
      ValueError: naming every field that is out of its range.
    """

    width: int = 64
    backbone: str = "resnet18"
    dropout_rate: float = 0.25
    dropout_at: str = DROPOUT_AT_STAGES
    fusion: str = "drifa"
    fuse_at: tuple[int | str, ...] = (FUSE_AT_ALL,)
    mfa_parts: tuple[str, ...] = MFA_PARTS
    stage_mfa_parts: tuple[str, ...] = MFA_PARTS
    mifa_parts: tuple[str, ...] = MIFA_PARTS
    gate_parts: tuple[str, ...] = GATE_PARTS
    gate_rank: int = 16
    readout: str = "concatenate"
    read_stages: str = READ_LAST
    compute_dtype: str = "float32"
    padding: str = "same"
    batch_norm_epsilon: float = 1e-3
    batch_norm_momentum: float = 0.99
    batch_norm_unbiased: bool = False

    def __post_init__(self):
        problems = []
        if self.width < 1:
            problems.append(f"width is {self.width}; it must be at least 1")
        if self.gate_rank < 1:
            problems.append(f"gate_rank is {self.gate_rank}; it must be at least 1")
        if not 0.0 <= self.dropout_rate < 1.0:
            problems.append(f"dropout_rate is {self.dropout_rate}; it must be in [0, 1)")
        for name, choices in (
            ("compute_dtype", tuple(DTYPES)),
            ("dropout_at", (DROPOUT_AT_STAGES, DROPOUT_AT_HEADS)),
            ("padding", PADDINGS),
            ("read_stages", (READ_LAST, READ_RESOLUTIONS)),
        ):
            value = getattr(self, name)
            if value not in choices:
                problems.append(f"{name} is {value!r}; choose one of {', '.join(choices)}")
        for name, allowed in (
            ("mfa_parts", MFA_PARTS),
            ("stage_mfa_parts", MFA_PARTS),
            ("mifa_parts", MIFA_PARTS),
            ("gate_parts", GATE_PARTS),
        ):
            unknown = sorted(set(getattr(self, name)) - set(allowed))
            if unknown:
                problems.append(f"{name} names {unknown}; choose among {allowed}")
        words = {FUSE_AT_ALL, FUSE_AT_RESOLUTIONS} & set(self.fuse_at)
        if not self.fuse_at or (words and len(self.fuse_at) > 1):
            problems.append(
                f"fuse_at is {list(self.fuse_at)}; it must be {FUSE_AT_ALL!r} or "
                f"{FUSE_AT_RESOLUTIONS!r} alone, or a list of stages"
            )
        if problems:
            raise ValueError("; ".join(problems) + ".")

    def identity(self) -> dict[str, Any]:
        """Fields and values that tell networks apart.

        Fields that came after the first runs count where they were set, so that the identity of
        earlier runs stays what it was.
        """
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in LATER_FIELDS or value != getattr(PAPER, name)
        }

    @property
    def dtype(self) -> np.dtype:
        """`compute_dtype` as arrays take it."""
        return DTYPES[self.compute_dtype]

    def window_padding(self, window: int, num_axes: int = 2) -> str | Sequence[tuple[int, int]]:
        """The padding argument of a convolution or pool with this window."""
        if self.padding == "same":
            return "SAME"
        return (((window - 1) // 2, window // 2),) * num_axes


PAPER = NetworkOptions()
"""The paper's network."""
