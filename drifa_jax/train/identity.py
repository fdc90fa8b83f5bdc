"""What tells two models apart: everything kept beside a run carries the identity of its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from drifa_jax.digests import digest
from drifa_jax.train.packing import Entry


def model_identity(
    arrays: Sequence[Entry], checksums: Mapping[str, int], description: Mapping[str, Any] | None
) -> str:
    """Digest of the weights of a model and of the description of its network and data.

    Args:
      arrays: names and shapes.
      checksums: from `packing.checksums`.
      description: plain JSON values.
    """
    return digest([[list(entry) for entry in arrays], checksums, description])
