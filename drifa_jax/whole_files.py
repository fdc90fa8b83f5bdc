"""Files and folders that are whole or absent: written under another name, then renamed."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drifa_jax.errors import UserError

UNWRITABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
)
"""Errors of the system that say that a disk is full or must not be written."""

LONGEST_NAME = 255
"""Bytes that file systems allow."""


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A name beside `path` to write a file or a folder under, so that readers never see half.

        with written_whole(folder / "figure.png") as partial:
            figure.savefig(partial)

    When the block ends well it becomes `path`, in one step; when it raises, what it wrote is
    removed and an older `path` stays as it was. The name ends as `path` does, for writers that
    look at the suffix. A folder takes the place of nothing or of an empty folder. What a killed
    process of this machine left beside `path` is removed.
    """
    path = Path(path)
    for left in _left_behind(path):
        remove(left)
    partial = path.with_name(f".{os.getpid()}-{_short(path.name)}")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        remove(partial)
        raise


@contextmanager
def folder_replaced(folder: str | Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` and all that is in it, in one step.

    When the block raises, what it wrote is removed and an older `folder` stays as it was. What a
    killed process left behind is removed here, or put back in its place. Of processes that do it
    at once the last one stays.
    """
    folder = Path(folder)
    for left in _left_behind(folder):
        remove(left)
    fresh = folder.with_name(f".{os.getpid()}-{_short(folder.name)}")
    old = folder.with_name(f".{_short(folder.name)}.old")
    _put_back(old, folder)
    try:
        fresh.mkdir(parents=True)
        yield fresh
        while not _exchanged(fresh, folder):
            if folder.exists():
                os.replace(folder, old)
            try:
                os.replace(fresh, folder)
                break
            except OSError:
                # Another process may have put its own there just now.
                if not folder.exists():
                    raise
    finally:
        _put_back(old, folder)
        remove(fresh)


@contextmanager
def only_one(lock: Path, taken: str) -> Iterator[None]:
    """Keeps other processes out while the block runs.

    Args:
      lock: a file, which stays.
      taken: what to tell the user when another process is in.

    Raises:
      UserError: when another process is in.
      OSError: when the file cannot be written or locked.
    """
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(taken) from error
        yield


def cache_folder() -> Path:
    """The user's folder for what can be made again."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        # In a container a user may have no home.
        cache = Path(tempfile.gettempdir()) / f"cache-of-user-{os.getuid()}"
    return cache / "drifa_jax"


def _put_back(old: Path, folder: Path) -> None:
    """The older folder where a kill between two renames left no other; otherwise it goes."""
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    remove(old)


def _exchanged(first: Path, other: Path) -> bool:
    """Swaps two folders in one step; False where the system cannot (Linux 3.15 and newer can)."""
    at_current_folder, exchange = -100, 2
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError):
        return False
    names = (os.fsencode(path) for path in (first, other))
    return rename(at_current_folder, next(names), at_current_folder, next(names), exchange) == 0


def _left_behind(path: Path) -> Iterator[Path]:
    """What processes that are gone wrote for `path`."""
    ending = f"-{_short(path.name)}"
    if not path.parent.is_dir():
        return
    for name in os.listdir(path.parent):
        number = name.removeprefix(".").removesuffix(ending)
        if name == f".{number}{ending}" and number.isdecimal() and not _is_alive(int(number)):
            yield path.with_name(name)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _short(name: str) -> str:
    """The name, or where nothing could stand beside it a short one with the same suffix."""
    if len(os.fsencode(name)) <= LONGEST_NAME - 20:
        return name
    suffix = Path(name).suffix
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()
    return digest + (suffix if len(suffix) < 20 else "")


def remove(path: Path) -> None:
    """Deletes a file, or a folder with all that is in it; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
