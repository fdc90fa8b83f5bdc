"""Models in checkpoints of the releases that stored a whole state as one item.

Their `state` holds parameters, statistics, optimiser and the rest packed together, in the order of
`names`; they have no checksums and no description. Everything can be done with such a model but to
go on training it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from drifa_jax.errors import UserError
from drifa_jax.sharding import is_large
from drifa_jax.train.identity import model_identity
from drifa_jax.train.packing import Entry, checksums, entries, packed, unpacked


def is_older(checkpoint: Path) -> bool:
    """Whether a checkpoint is of this kind."""
    return (checkpoint / "state").is_dir()


def losses(checkpoint: Path) -> list[float] | None:
    """Validation loss of each member; None where no epoch ended with it.

    Raises:
      UserError: when the file that says so is damaged.
    """
    path = checkpoint / "metrics" / "metrics"
    if not path.parent.is_dir():
        return None
    try:
        found = np.atleast_1d(np.asarray(json.loads(path.read_text())["validation_loss"], float))
        if not (found.size and np.isfinite(found).all()):
            raise ValueError(f"the loss is {found.tolist()}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}), so that it is unknown which epoch was the best. "
            f"Delete {checkpoint}, and the best of the others is taken."
        ) from error
    return found.tolist()


def read_model(checkpoint: Path, template: Any, lead: int) -> tuple[Any, dict[str, Any]]:
    """Parameters and statistics on the host, and the part of an index that can be said of them.

    Args:
      checkpoint: its folder.
      template: `{"params", "statistics"}` of shapes.
      lead: 1 for an ensemble, otherwise 0.

    Raises:
      UserError: when it cannot be read or holds another network.
    """
    try:
        shapes = json.loads((checkpoint / "names" / "metadata").read_text())
        stored = [
            Entry(name, tuple(shape), "float32", is_large(shape[lead:]))
            for name, shape in shapes.items()
            if name.startswith(("params/", "statistics/"))
        ]
        wanted = {entry.name: list(entry.shape) for entry in entries(template, lead)}
        if wanted != {entry.name: list(entry.shape) for entry in stored}:
            raise ValueError("it holds another network")
        alone = [entry.name for entry in stored if entry.alone]
        # The float32 parameters and statistics come first of all float32 arrays.
        like = {"large": dict.fromkeys(alone, 0), "small": {"float32": 0}}
        on_host = ocp.RestoreArgs(restore_type=np.ndarray)
        arguments = {
            "large": dict.fromkeys(alone, on_host),
            "small": {"float32": on_host},
        }
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            read = reader.restore(
                (checkpoint / "state").absolute(),
                args=ocp.args.PyTreeRestore(like, arguments, partial_restore=True),
            )
        tree = unpacked(read, stored, template, lead)
    except Exception as error:
        raise UserError(
            f"The checkpoint {checkpoint}, of an earlier release, cannot be read: {error}"
        ) from error
    description = None
    sums = checksums(packed(tree, lead))
    return tree, {"identity": model_identity(stored, sums, description), "description": None}
