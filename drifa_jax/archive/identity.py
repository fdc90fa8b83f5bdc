"""Which network and which post-processing answered, in words that name no place and no person."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drifa_jax.console import printable
from drifa_jax.digests import digest
from drifa_jax.post_processing.saved import PostProcessing
from drifa_jax.predictions.table import Provenance

MANUFACTURER = "drifa_jax"
RESEARCH = "Research use only. Not for diagnosis."
MOST_NAMED = 3
"""Runs of an ensemble that are named."""


@dataclass(frozen=True)
class ModelIdentity:
    """What made an answer.

    Attributes:
      name: of the run, without its folder; of an ensemble several.
      identity: digest of the weights and of what they read and answer.
      version: of drifa_jax.
      steps: training step of each member's checkpoint.
      num_members, num_samples, seed: of the samples behind each answer.
      post_processing: digest of calibration, sets, threshold and distance; "" without any.
      how: task -> what was fitted, in words.
      tasks: task -> class names.
      synthetic: whether the network was trained on drawn data.
    """

    name: str
    identity: str
    version: str
    steps: tuple[int, ...]
    num_members: int
    num_samples: int
    seed: int
    post_processing: str
    how: Mapping[str, str]
    tasks: Mapping[str, tuple[str, ...]]
    synthetic: bool

    @property
    def parameters(self) -> tuple[str, ...]:
        """What to repeat for the same answers, a line each."""
        steps = ", ".join(map(str, self.steps))
        return (
            f"run: {self.name}",
            f"weights and preprocessing: {self.identity or 'unknown'}",
            f"training steps: {steps}",
            f"members: {self.num_members}",
            f"Monte Carlo samples of each member: {self.num_samples}",
            f"seed: {self.seed}",
            f"post-processing: {self.post_processing or 'none'}",
        )


def model_identity(
    provenance: Provenance,
    tasks: Mapping[str, tuple[str, ...]],
    fitted: PostProcessing | None,
) -> ModelIdentity:
    """The identity of a predictor: `model_identity(p.provenance, p.description.tasks, ...)`.

    Args:
      provenance: of its answers; folders of runs are left out.
      tasks: task -> class names.
      fitted: the post-processing; None where there was none.
    """
    names = [line(Path(run).name.removesuffix(".drifa"), 40) for run in provenance.runs]
    more = f" and {len(names) - MOST_NAMED} more" * (len(names) > MOST_NAMED)
    facts: dict[str, Any] = {}
    if fitted is not None:
        facts = {task: found.to_json() for task, found in fitted.tasks.items()}
        if fitted.detector is not None:
            facts["distances"] = hashlib.sha256(fitted.detector.known.tobytes()).hexdigest()
    return ModelIdentity(
        ", ".join(names[:MOST_NAMED]) + more or "unnamed",
        provenance.identity,
        importlib.metadata.version("drifa-jax"),
        tuple(provenance.steps),
        provenance.num_members,
        provenance.num_samples,
        provenance.seed,
        digest(facts) if facts else "",
        {} if fitted is None else {task: _how(found) for task, found in fitted.tasks.items()},
        dict(tasks),
        provenance.synthetic,
    )


def _how(fitted: Any) -> str:
    threshold = fitted.referral
    referral = "none" if threshold is None else f"predictive entropy above {threshold:.4g} nats"
    return (
        f"calibration {fitted.calibrator.method}; sets {fitted.sets.method.upper()}, which hold "
        f"the truth in {1 - fitted.sets.alpha:.0%} of records like the {fitted.sets.num_records} "
        f"validation records; referral: {referral}"
    )


def uid(*facts: Any) -> str:
    """A UID that is the same for the same plain JSON values, and for no others.

    It is that of a UUID (PS3.5 B.2), made of a digest in the place of a random number.
    """
    packed = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).digest()
    return f"2.25.{uuid.UUID(bytes=packed, version=5).int}"


def line(text: str, limit: int = 64) -> str:
    """Text as one value of a DICOM header: no controls, no backslash, no longer than allowed."""
    text = " ".join(printable(text).replace("\\", "/").split())
    return text if len(text) <= limit else text[: limit - 3].rstrip() + "..."
