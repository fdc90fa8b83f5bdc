"""Every file below a folder: links followed, hidden ones counted and left out."""

from __future__ import annotations

import os
from pathlib import Path

from drifa_jax.data.problems import LeftOut

HIDDEN = (".", "__MACOSX")
"""How names begin that the system made, not the user: `.DS_Store`, `._scan.dcm`, `.git`."""


def files_below(folder: Path, left_out: LeftOut) -> list[Path]:
    """Sorted paths of what is no folder below `folder`, dangling links included.

    Linked folders are entered, but none a second time on the way down, so links may form loops.
    """
    found: list[Path] = []
    waiting = [(folder, frozenset([os.path.realpath(folder)]))]
    while waiting:
        here, above = waiting.pop()
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.name.startswith(HIDDEN):
                    left_out.add("hidden folders" if entry.is_dir() else "hidden files")
                elif not entry.is_dir():
                    found.append(Path(entry.path))
                elif not entry.is_symlink():
                    waiting.append((Path(entry.path), above))
                elif (real := os.path.realpath(entry.path)) not in above:
                    waiting.append((Path(entry.path), above | {real}))
                else:
                    left_out.add("links back to a folder above")
    return sorted(found)
