"""Optional packages, imported where they are used; where one lacks, its extra is named."""

from __future__ import annotations

import importlib
from types import ModuleType

from drifa_jax.errors import UserError


def optional(package: str, purpose: str, extra: str) -> ModuleType:
    """The imported package.

    Args:
      package: its import name, which is also its name on the package index.
      purpose: what needs it, as the subject of a sentence ("Reading DICOM").
      extra: of this package, that installs it.

    Raises:
      UserError: where it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f'{purpose} needs {package}: pip install "drifa-jax[{extra}]".') from error
