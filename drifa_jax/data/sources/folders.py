"""Class folders: one root per modality, one folder per class, images anywhere below it.

Two layouts are read: `Training/<class>/*` with `Testing/<class>/*` (also train, test, val,
validation, in any letter case, inside one wrapping folder too), and a single tree `<class>/*`. The
class names are the names of the folders.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from drifa_jax.config import ModalityConfig
from drifa_jax.data.decode import FITS, IMAGE_SUFFIXES, decode_file
from drifa_jax.data.problems import LeftOut, Problems
from drifa_jax.data.readers.any_file import PICTURE
from drifa_jax.data.record import ModalitySpec, TaskSpec, image_spec
from drifa_jax.data.records import Records, make_records
from drifa_jax.data.sources.walking import HIDDEN, class_folders, held_instead, names_below
from drifa_jax.errors import UserError

SPLIT_FOLDERS = {
    "training": "train",
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "testing": "test",
    "test": "test",
}
"""Lower-case folder names that are splits, not classes."""

GET_DATA = (
    "Give the folder that holds the class folders (or Training/ and Testing/) of one modality; "
    "the data sets and where to get them are listed in docs/data.md. "
    "To run without any data, use the SYNTHETIC phantoms: --config configs/brain.py"
)


@dataclass(frozen=True)
class ImageFile:
    """One image found in a class folder.

    Attributes:
      path: relative to the root, with forward slashes; it is also the record id.
      label: index into the classes.
      group: patient, slide or whatever must not straddle a split.
      split: the split of the folder it lies in, or "" in a single tree.
    """

    path: str
    label: int
    group: str
    split: str


@dataclass(frozen=True)
class FolderIndex:
    """What one root holds: its classes and files, in a fixed order, and what was left out."""

    root: Path
    classes: tuple[str, ...]
    files: tuple[ImageFile, ...]
    left_out: LeftOut = field(default_factory=LeftOut)


@dataclass(frozen=True)
class ImageFiles:
    """Reads images by their path below a root, brought to the size of a modality."""

    root: Path
    modality: ModalitySpec
    fit: str = "stretch"

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ValueError(f"fit is {self.fit!r}; choose one of {tuple(FITS)}.")

    def __call__(self, path: str) -> np.ndarray:
        return decode_file(self.root / path, self.modality, fit=self.fit)


def folder_records(
    index: FolderIndex, modality: ModalitySpec, task: str, *, fit: str = "stretch"
) -> Records:
    """The images of class folders as records of one modality and one task.

    A record is called by its path. `Training` and `Testing` are the splits that it brings.
    """
    paths = [file.path for file in index.files]
    if not paths:
        raise UserError(f"The modality {modality.name!r} has no records in {index.root}.")
    return make_records(
        modality,
        TaskSpec(task, index.classes),
        ids=paths,
        groups=[file.group for file in index.files],
        labels=[file.label for file in index.files],
        places=paths,
        splits=[file.split for file in index.files],
        reader=ImageFiles(index.root, modality, fit),
        description=f"{modality.name} images of {index.root}",
        notes=index.left_out.notes(index.root),
    )


def scan(name: str, at: ModalityConfig, quarantine: str | None = None) -> Records:
    """The format `folders`."""
    index = scan_folders(
        at.root,
        classes=at.classes or None,
        group_pattern=at.group_pattern or None,
        include=at.include or None,
        ignore_others=at.ignore_other_classes,
        quarantine=quarantine,
    )
    return folder_records(index, image_spec(name, at), at.task, fit=at.fit)


def scan_folders(
    root: str | Path,
    *,
    classes: Sequence[str] | None = None,
    group_pattern: str | None = None,
    include: str | None = None,
    ignore_others: bool = False,
    quarantine: str | Path | None = None,
) -> FolderIndex:
    """Find the images of one modality, without opening them.

    Args:
      root: holds class folders, or Training/ and Testing/ with class folders.
      classes: names and order of the classes; None takes the sorted names of the folders.
      group_pattern: regular expression searched in the file name, then in the path relative to
        the root; what its first parentheses match (or all of it) is the group. None: every file
        is its own group.
      include: regular expression that a relative path must contain, for sets that mix the
        images with others, for example "CROPPED/".
      ignore_others: whether folders that are not among `classes` are skipped, not an error.
      quarantine: CSV file for images without a group, which are then left out; None raises.

    Raises:
      UserError: with every problem found: no folder, no class, empty classes, classes of the
        test folder that training lacks, files without a group.

    Test: tests/data/sources/test_folders.py.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"The data folder {root} does not exist. {GET_DATA}")
    base = _unwrapped(root)
    split_folders = {
        folder: SPLIT_FOLDERS[folder.name.lower()]
        for folder in _subfolders(base)
        if folder.name.lower() in SPLIT_FOLDERS
    } or {base: ""}
    problems, left_out = Problems(f"the data folder {root}"), LeftOut()
    if base not in split_folders:
        beside = [p for p in base.iterdir() if p not in split_folders]
        if beside:
            left_out.add("folders or files beside the folders of the splits", len(beside))
    if "test" in split_folders.values() and "train" not in split_folders.values():
        problems.add(root, "has a test folder but no training folder")
    found: dict[str, set[str]] = {}
    files: list[tuple[str, str, str]] = []
    for folder, split in split_folders.items():
        of_classes = class_folders(folder, left_out)
        if not of_classes:
            problems.add(folder, "holds no class folders")
        for class_folder in of_classes:
            # One name may be spelt in two Unicode forms, which look the same.
            name = unicodedata.normalize("NFC", class_folder.name)
            undeclared = classes is not None and name not in classes
            images = _images(root, class_folder, include, left_out)
            if undeclared and (ignore_others or not images):
                left_out.add("images of other classes than those declared", len(images))
                continue
            if not images:
                empty = f"is an empty class folder, without {_suffixes()}"
                problems.add(class_folder, held_instead(class_folder, PICTURE) or empty)
            found.setdefault(split, set()).add(name)
            files += [(path, name, split) for path in images]
    names = _check_classes(found, classes, problems)
    problems.raise_any(GET_DATA)
    pattern = re.compile(group_pattern) if group_pattern else None
    entries = []
    for path, name, split in sorted(files):
        group = _group(path, pattern)
        if group is None:
            problems.add(path, f"does not match the group pattern {group_pattern!r}")
            continue
        entries.append(ImageFile(path, names.index(name), group or path, split))
    cure = "Correct the group pattern, so that it matches every path."
    problems.settle(cure, quarantine, left_out)
    return FolderIndex(root, names, tuple(entries), left_out)


def _check_classes(
    found: Mapping[str, set[str]], classes: Sequence[str] | None, problems: Problems
) -> tuple[str, ...]:
    seen = set().union(*found.values()) if found else set()
    trained = found.get("train", seen)
    folded = {_letters(name): name for name in trained}
    for split, names in found.items():
        for name in sorted(names - trained):
            meant = folded.get(_letters(name))
            hint = f"; rename it to {meant!r}, which training holds" if meant else ""
            problems.add(
                name, f"is a class of the {split} folder that training does not hold{hint}"
            )
    if classes is None:
        return tuple(sorted(seen))
    for name in sorted(seen - set(classes)):
        problems.add(name, f"is a folder but not one of the declared classes {tuple(classes)}")
    for name in classes:
        if name not in trained:
            problems.add(name, "is a declared class without a folder of training images")
    return tuple(classes)


def _letters(name: str) -> str:
    """A name without what people write in two ways: case, spaces, hyphens, underscores."""
    return re.sub(r"[\W_]+", "", name.casefold())


def _unwrapped(root: Path) -> Path:
    """The folder of the splits, which archives often wrap in one folder more.

    Without splits nobody can tell a wrapping folder of classes from one class of patients.
    """
    inside = _subfolders(root)
    if len(inside) == 1 and inside[0].name.lower() not in SPLIT_FOLDERS:
        if any(folder.name.lower() in SPLIT_FOLDERS for folder in _subfolders(inside[0])):
            return inside[0]
    return root


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(HIDDEN))


def _images(root: Path, folder: Path, include: str | None, left_out: LeftOut) -> list[str]:
    found, inside = [], folder.relative_to(root).as_posix()
    for name in names_below(folder, left_out, IMAGE_SUFFIXES):
        path, suffix = f"{inside}/{name}", os.path.splitext(name)[1].lower()
        if suffix not in IMAGE_SUFFIXES:
            left_out.add(f"files that are no images ({suffix or 'no suffix'})")
        elif include is not None and not re.search(include, path):
            left_out.add(f"images without {include!r} in their path")
        else:
            found.append(path)
    return sorted(found)


def _group(path: str, pattern: re.Pattern | None) -> str | None:
    if pattern is None:
        return path
    match = pattern.search(path.rsplit("/", 1)[-1]) or pattern.search(path)
    if match is None:
        return None
    return match.group(1) if pattern.groups else match.group(0)


def _suffixes() -> str:
    return ", ".join(IMAGE_SUFFIXES)
