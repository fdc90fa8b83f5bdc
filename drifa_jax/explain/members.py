"""One compiled function, applied to each member of an ensemble and to records a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from drifa_jax.predict.restored import Restored

BATCH = 16
"""Records explained together; the last batch is filled up with its last record."""

Pixels = Mapping[str, np.ndarray]
Present = Mapping[str, np.ndarray]


def over_members(restored: Restored, function: Callable[..., Any], *records: Any) -> Any:
    """`function(params, statistics, *records)` of every member, stacked: leaves `[e, b, ...]`.

    Args:
      restored: the members.
      function: jitted; of one member and one batch, its result has the batch axis first.
      records: trees of arrays with the axis `b` first; None is passed on.
    """
    count = len(jax.tree.leaves(records)[0])
    size = min(BATCH, 1 << (count - 1).bit_length())
    of_members = []
    for member in range(len(jax.tree.leaves(restored.params)[0])):
        params, statistics = jax.tree.map(
            lambda leaf, i=member: leaf[i], (restored.params, restored.statistics)
        )
        pieces = []
        for start in range(0, count, size):
            rows = np.arange(start, min(start + size, count))
            filled = np.pad(rows, (0, size - len(rows)), mode="edge")
            batch = jax.tree.map(lambda x, at=filled: np.asarray(x)[at], records)
            answer = jax.device_get(function(params, statistics, *batch))
            own = slice(len(rows))
            pieces.append(jax.tree.map(lambda x, at=own: x[at], answer))
        of_members.append(jax.tree.map(lambda *parts: np.concatenate(parts), *pieces))
    return jax.tree.map(lambda *parts: np.stack(parts), *of_members)


def masks(restored: Restored, present: Present | None) -> Present | None:
    """Presence as the network takes it: None where all records hold everything and always did."""
    if present is None or (
        not restored.description.may_lack_modalities
        and all(np.all(held) for held in present.values())
    ):
        return None
    return dict(present)
