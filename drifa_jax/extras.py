"""Optional packages, imported where they are used; where one lacks, its extra is named."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import shlex
import sys
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
        raise UserError(f"{purpose} needs {package}: {install_command(extra)}") from error


def install_command(extra: str) -> str:
    """The command that installs the packages of an extra for the Python that runs this.

    It names them one by one, so that it holds however this package itself was installed.
    """
    wanted = re.compile(rf"""extra\s*==\s*['"]{re.escape(extra)}['"]""")
    packages = [
        requirement.partition(";")[0].strip()
        for requirement in importlib.metadata.requires("drifa-jax") or ()
        if wanted.search(requirement)
    ]
    return shlex.join([sys.executable, "-m", "pip", "install", *packages])
