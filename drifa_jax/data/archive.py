"""Unpacking a downloaded archive, without letting it write anywhere else."""

from __future__ import annotations

import shutil
import tarfile
import unicodedata
import zipfile
from pathlib import Path, PurePosixPath

from drifa_jax.data.problems import Problems, reading
from drifa_jax.errors import UserError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
SUFFIXES = (".zip", *TAR_SUFFIXES)
UNREAD_SUFFIXES = (".7z", ".rar", ".zst")
"""Archives that need a program of their own."""

MAX_UNPACKED_BYTES = 500 * 2**30
MAX_RATIO, BOMB_BYTES = 200, 2**30
"""Archives that promise more bytes for each of theirs, and more than a GiB, are taken for bombs."""


def is_archive(path: str | Path) -> bool:
    """Whether a root is to be unpacked: a file, or whatever is named like an archive."""
    return Path(path).is_file() or str(path).lower().endswith((*SUFFIXES, *UNREAD_SUFFIXES))


def unpack(path: str | Path, into: str | Path) -> Path:
    """Unpack a zip or tar file into a folder of its own; returns the folder.

    Nothing is written unless every name stays inside the folder. Names of Windows become folders
    and all names one Unicode form (NFC). A folder that an earlier call finished is used again.

    Raises:
      UserError: no archive that can be read, an encrypted or damaged one, one that is too large;
        listing names with `..`, absolute names, links, devices and names that meet.

    Test: tests/data/test_archive.py.
    """
    path, into = Path(path), Path(into)
    if into.is_dir():
        return into
    if not path.is_file():
        raise UserError(f"The archive {path} does not exist.")
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        kind = "an archive that needs a program of its own"
        kind = kind if name.endswith(UNREAD_SUFFIXES) else "no archive that can be unpacked here"
        raise UserError(
            f"{path}: is {kind} (zip and tar are read). Unpack it, and give the folder."
        )
    problems = Problems(f"the archive {path}")
    partial = into.with_name(into.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with reading(path, "cannot be unpacked"):
            (_unzip if name.endswith(".zip") else _untar)(path, partial, problems)
            partial.rename(into)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return into


def _unzip(path: Path, into: Path, problems: Problems) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.flag_bits & 1 for member in members):
            raise UserError(
                f"{path}: is encrypted. Unpack it with its password, and give the folder."
            )
        names = [member.filename for member in members]
        for member in members:
            member.filename = _plain(member.filename)
            if (member.external_attr >> 16) & 0o170000 == 0o120000:
                problems.add(member.filename, "is a link")
        _check(names, sum(member.file_size for member in members), path, problems)
        archive.extractall(into, members)


def _untar(path: Path, into: Path, problems: Problems) -> None:
    with tarfile.open(path) as archive:
        members, total = [], 0
        for member in archive:
            members.append(member)
            total += member.size
            # Going on would decompress all of it, only to find the next name.
            _check_size(path, total)
        names = [member.name for member in members]
        for member in members:
            member.name = _plain(member.name)
            if not (member.isfile() or member.isdir()):
                problems.add(member.name, "is a link or a device")
        _check(names, sum(member.size for member in members), path, problems)
        archive.extractall(into, members, filter="data")


def _plain(name: str) -> str:
    """A name with forward slashes, in the Unicode form that class folders are compared in."""
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def _check(names: list[str], total: int, path: Path, problems: Problems) -> None:
    spelt: dict[str, str] = {}
    for name in names:
        pure = PurePosixPath(_plain(name))
        if pure.is_absolute() or ".." in pure.parts or (pure.parts and ":" in pure.parts[0]):
            problems.add(name, "points outside the archive")
        elif spelt.setdefault(str(pure), name.rstrip("/")) != name.rstrip("/"):
            problems.add(name, "is there twice, in two spellings")
    _check_size(path, total)
    problems.raise_any("It may be malicious; nothing was unpacked.")
    free = shutil.disk_usage(path.parent).free
    if total > free:
        raise UserError(
            f"{path}: takes {total / 2**30:.1f} GiB unpacked, and {free / 2**30:.1f} GiB are free."
        )


def _check_size(path: Path, total: int) -> None:
    if total > MAX_UNPACKED_BYTES or total > max(BOMB_BYTES, MAX_RATIO * path.stat().st_size):
        raise UserError(
            f"{path}: would take {total / 2**30:.1f} GiB unpacked, or more. It may be malicious; "
            "nothing was unpacked."
        )
