"""Unpacking a downloaded archive, without letting it write anywhere else."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

from drifa_jax.data.problems import Problems
from drifa_jax.errors import UserError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_UNPACKED_BYTES = 500 * 2**30


def is_archive(path: str | Path) -> bool:
    """Whether the name is that of an archive."""
    return str(path).lower().endswith(SUFFIXES)


def unpack(path: str | Path, into: str | Path) -> Path:
    """Unpack a zip or tar file into a folder of its own; returns the folder.

    Nothing is written unless every name stays inside the folder. A folder that an earlier call
    finished is used again.

    Raises:
      UserError: listing names with `..`, absolute names, links and devices.

    Test: tests/data/test_archive.py.
    """
    path, into = Path(path), Path(into)
    if not path.is_file():
        raise UserError(f"The archive {path} does not exist.")
    if into.is_dir():
        return into
    problems = Problems(f"the archive {path}")
    partial = into.with_name(into.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if path.name.lower().endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                total = 0
                for member in archive.infolist():
                    _check(member.filename, problems)
                    total += member.file_size
                    if (member.external_attr >> 16) & 0o170000 == 0o120000:
                        problems.add(member.filename, "is a link")
                _check_size(total, problems)
                problems.raise_any("It may be malicious; nothing was unpacked.")
                archive.extractall(partial)
        else:
            with tarfile.open(path) as archive:
                members = archive.getmembers()
                for member in members:
                    _check(member.name, problems)
                    if not (member.isfile() or member.isdir()):
                        problems.add(member.name, "is a link or a device")
                _check_size(sum(member.size for member in members), problems)
                problems.raise_any("It may be malicious; nothing was unpacked.")
                archive.extractall(partial, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{path}: cannot be unpacked ({error}).") from error
    partial.rename(into)
    return into


def _check(name: str, problems: Problems) -> None:
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or (pure.parts and ":" in pure.parts[0]):
        problems.add(name, "points outside the archive")


def _check_size(total: int, problems: Problems) -> None:
    if total > MAX_UNPACKED_BYTES:
        problems.add("all files", f"would take {total / 2**30:.0f} GiB unpacked")
