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


def fitting(package: str, purpose: str, extra: str) -> ModuleType:
    """The imported package, whose version must be one that the extra asks for.

    Raises:
      UserError: where it is not installed, or another version is.
    """
    from packaging.requirements import Requirement

    module = optional(package, purpose, extra)
    version = importlib.metadata.version(package)
    for requirement in map(Requirement, _required(extra)):
        if requirement.name == package and version not in requirement.specifier:
            raise UserError(
                f"{purpose} needs {package} {requirement.specifier}, and {version} is installed: "
                f"{install_command(extra)}"
            )
    return module


def install_command(extra: str) -> str:
    """The command that installs the packages of an extra for the Python that runs this.

    It names them one by one, so that it holds however this package itself was installed.
    """
    return shlex.join([sys.executable, "-m", "pip", "install", *_required(extra)])


def _required(extra: str) -> list[str]:
    wanted = re.compile(rf"""extra\s*==\s*['"]{re.escape(extra)}['"]""")
    return [
        requirement.partition(";")[0].strip()
        for requirement in importlib.metadata.requires("drifa-jax") or ()
        if wanted.search(requirement)
    ]
