"""Files and folders that are whole or absent: written under another name, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A name beside `path` to write a file or a folder under, so that readers never see half.

        with written_whole(folder / "figure.png") as partial:
            figure.savefig(partial)

    When the block ends well it becomes `path`, in one step; when it raises, what it wrote is
    removed and an older `path` stays as it was. The name ends as `path` does, for writers that
    look at the suffix. A folder takes the place of nothing or of an empty folder.
    """
    path = Path(path)
    partial = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
        raise


@contextmanager
def folder_replaced(folder: str | Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` and all that is in it, in one step.

    When the block raises, what it wrote is removed and an older `folder` stays as it was. One
    process at a time: what a killed one left behind is removed here.
    """
    folder = Path(folder)
    fresh = folder.with_name(f".{folder.name}.new")
    old = folder.with_name(f".{folder.name}.old")
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        yield fresh
        if folder.exists():
            os.replace(folder, old)
        os.replace(fresh, folder)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
