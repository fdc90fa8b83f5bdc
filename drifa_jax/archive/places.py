"""Where objects go, and the package that writes them: checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drifa_jax.errors import UserError
from drifa_jax.extras import optional

SUFFIX = ".dcm"


def highdicom() -> Any:
    """The package, which writes the objects."""
    return optional("highdicom", "Writing DICOM reports and secondary captures", "archive")


def check_places(places: Mapping[str, Path | None]) -> None:
    """Refuses folders that cannot take objects.

    Args:
      places: flag -> folder, None where it was not given.

    Raises:
      UserError: naming the flag; where highdicom is not installed, with the command that installs
        it.
    """
    given = {flag: path for flag, path in places.items() if path is not None}
    if len({path.resolve() for path in given.values()}) < len(given):
        raise UserError(f"{' and '.join(given)} name the same folder; give each its own.")
    for flag, path in given.items():
        if path.exists() and not path.is_dir():
            raise UserError(f"{flag} {path} is a file; name a folder.")
        if not path.parent.is_dir():
            raise UserError(f"{flag} {path}: the folder {path.parent} does not exist.")
        if path.is_dir() and any(file.suffix != SUFFIX for file in path.iterdir()):
            raise UserError(
                f"{flag} {path} holds other files than {SUFFIX}; choose an empty or a new folder."
            )
    if given:
        highdicom()
