"""Every file below a folder: links followed, hidden ones counted and left out."""

from __future__ import annotations

import os
from pathlib import Path

from drifa_jax.data.problems import LeftOut
from drifa_jax.data.readers.any_file import DICOM, NIFTI, PICTURE, kind_by_name

HIDDEN = (".", "__MACOSX")
"""How names begin that the system made, not the user: `.DS_Store`, `._scan.dcm`, `.git`."""

READ_BY = {
    NIFTI: ("NIfTI files", "format=nifti"),
    DICOM: ("DICOM files", "format=dicom"),
    PICTURE: ("pictures", "format=folders and depth=0"),
}
"""Kind of file -> what they are called, and the fields that read them."""

NOT_TEXT = "files or folders whose names are not UTF-8 (rename them)"


def is_text(name: str) -> bool:
    """Whether a name is text, as records and tables hold it; on Linux it may be any bytes."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def class_folders(folder: Path, left_out: LeftOut) -> list[Path]:
    """Sorted folders in `folder`, where each is a class; what lies beside them is left out."""
    found = []
    for path in sorted(folder.iterdir()):
        if not is_text(path.name):
            left_out.add(NOT_TEXT)
        elif path.name.startswith(HIDDEN):
            left_out.add("hidden folders" if path.is_dir() else "hidden files")
        elif path.is_dir():
            found.append(path)
        else:
            left_out.add("files beside the class folders")
    return found


def files_below(folder: Path, left_out: LeftOut) -> list[Path]:
    """Sorted paths of what is no folder below `folder`; see `names_below`."""
    return sorted(folder / name for name in names_below(folder, left_out))


def names_below(folder: Path, left_out: LeftOut, suffixes: tuple[str, ...] = ()) -> list[str]:
    """Relative names, with forward slashes, of what is no folder below `folder`, in no order.

    Dangling links are among them. Linked folders are entered, but none a second time on the way
    down, so links may form loops. A folder whose name ends in one of `suffixes` counts as a file:
    who reads it will name it. Names, not paths: making paths of 100,000 files takes a second.
    """
    found: list[str] = []
    waiting = [("", frozenset([os.path.realpath(folder)]))]
    while waiting:
        here, above = waiting.pop()
        with os.scandir(os.path.join(folder, here)) as entries:
            for entry in entries:
                name = here + entry.name
                if not is_text(entry.name):
                    left_out.add(NOT_TEXT)
                elif entry.name.startswith(HIDDEN):
                    left_out.add("hidden folders" if entry.is_dir() else "hidden files")
                elif not entry.is_dir() or entry.name.lower().endswith(suffixes):
                    found.append(name)
                elif not entry.is_symlink():
                    waiting.append((name + "/", above))
                elif (real := os.path.realpath(entry.path)) not in above:
                    waiting.append((name + "/", above | {real}))
                else:
                    left_out.add("links back to a folder above")
    return found


def held_instead(folder: Path, wanted: str) -> str:
    """What a class folder without the wanted kind holds, and how it is read; empty of nothing."""
    kinds = {kind_by_name(name) for name in names_below(folder, LeftOut())}
    for kind, (called, fields) in READ_BY.items():
        if kind in kinds - {wanted}:
            return f"holds {called} and no {READ_BY[wanted][0]}; read them by {fields}"
    return ""
