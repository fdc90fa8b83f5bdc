"""JSON files with a digest of themselves, so that a reader knows they are what was written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drifa_jax.digests import is_whole, sealed
from drifa_jax.errors import UserError
from drifa_jax.whole_files import written_whole


def unsealed(values: Any) -> dict[str, Any]:
    """The values without their digest; those of earlier releases have none.

    Raises:
      ValueError: when they are no JSON object or not what was written.
    """
    if not isinstance(values, dict):
        raise ValueError(f"it holds {type(values).__name__}, not an object")
    if "digest" in values and not is_whole(values):
        raise ValueError("it is not what was written: its digest is another")
    return {name: value for name, value in values.items() if name != "digest"}


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON file, whole or not at all, with the digest."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(sealed(values), indent=2) + "\n")


def read_sealed(path: Path, cure: str) -> dict[str, Any]:
    """What `write_sealed` wrote, or a JSON object without a digest.

    Args:
      path: the file.
      cure: a sentence for the user whose file is damaged.

    Raises:
      UserError: naming the file and the cure.

    Test: tests/robustness/test_sealed_files.py.
    """
    try:
        return unsealed(json.loads(path.read_text()))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is damaged or was changed ({error}). {cure}") from error
