"""What folder and file names say: classes, splits, modalities, and who a picture is of."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from drifa_jax.data.sources.folders import SPLIT_FOLDERS
from drifa_jax.errors import UserError

MOST_CLASSES = 40
FEWEST_BY_CLASS = 5
"""Images in a class, on average; folders of fewer are patients, not classes."""

MODALITY_WORDS = re.compile(
    r"mri|mr|ct|pet|spect|xray|x-ray|cxr|us|ultrasound|oct|fundus|dermoscopy|dermoscopic|clinical"
    r"|histology|pap|smear|mammography|t1|t2|t1c|flair|dwi|adc|angiography|endoscopy",
    re.IGNORECASE,
)

MODALITY_PARTS = re.compile(
    r"mri|xray|x-ray|ultrasound|dermoscop\w*|fundus|mammogra\w*|histolog\w*|endoscop\w*",
    re.IGNORECASE,
)
"""Words that mean a modality inside a longer name too."""
RADIOLOGY = re.compile(r"mr|mri|ct|x-?ray|cxr|us|ultrasound|t1c?|t2|flair|dwi|adc|pre|post")
"""Modalities without colour, whatever their files have room for."""

NAMED_PATIENT = r"((?:patient|pat|subject|sub|pid)[-_ ]?\d+)"
GROUP_PATTERNS = (
    (r"^(\d+) \(", "the number before ' (' in the file name"),
    (r"^(\d{3,}(?:-\d{3,})*)[-_]\d+", "the number before the last one in the file name"),
    (r"^(TCGA[-_]\w\w[-_]\w{4})", "the TCGA case in the file name"),
    (NAMED_PATIENT, "the patient number in the file name"),
    (r"(case[-_ ]?\d+)", "the case number in the file name"),
    (r"^([A-Za-z]+[-_]?\d{3,})[-_]\d", "the name before the last number of the file name"),
)
"""Where file names hold a patient, slide or lesion: pattern, and in words. The first that fits."""


def modality_name(text: str) -> str:
    """The modality that a folder or file name tells; "image" where it tells none."""
    words = re.split(r"[\W_]+", text.lower())
    whole = next((word for word in words if MODALITY_WORDS.fullmatch(word)), None)
    inside = MODALITY_PARTS.search(text)
    return whole or (inside.group().lower() if inside else "image")


@dataclass(frozen=True)
class ClassTree:
    """Folders of classes.

    Attributes:
      top: folder above splits or classes, relative to the survey; "" for its root.
      classes: names of the folders, sorted.
      counts: class -> images.
      splits: split -> images; empty where the tree brings none.
      images: relative to `top`.
      classes_of: the class of each.
      inner: whether images lie in further folders below their class.
    """

    top: str
    classes: tuple[str, ...]
    counts: dict[str, int]
    splits: dict[str, int]
    images: tuple[str, ...]
    classes_of: tuple[str, ...]
    inner: bool


def class_tree(names: Sequence[str], top: str = "") -> ClassTree | None:
    """The classes that folder names make; None where they make none.

    Folders that hold one folder for each modality are no classes.

    Args:
      names: of files, relative to the folder `top`.
      top: kept for the answer.
    """
    parts = [PurePosixPath(name).parts for name in names]
    # Folders that wrap everything say nothing.
    while parts and len({p[0] for p in parts}) == 1 and all(len(p) > 2 for p in parts):
        if parts[0][0].lower() in SPLIT_FOLDERS:
            break
        top = f"{top}/{parts[0][0]}" if top else parts[0][0]
        parts = [p[1:] for p in parts]
    if not parts:
        return None
    heads = {path[0].lower() for path in parts if len(path) > 1}
    brings_splits = bool(heads) and heads <= set(SPLIT_FOLDERS)
    place = int(brings_splits)
    inside = [path for path in parts if len(path) > place + 1]
    counts = Counter(path[place] for path in inside)
    if not 1 <= len(counts) <= MOST_CLASSES or len(inside) < FEWEST_BY_CLASS * len(counts):
        return None
    if len(inside) < 0.9 * len(parts):
        return None
    below = {path[place + 1].lower() for path in inside if len(path) > place + 2}
    if len(below) > 1 and all(MODALITY_WORDS.fullmatch(folder) for folder in below):
        return None
    splits = Counter(SPLIT_FOLDERS[path[0].lower()] for path in inside if brings_splits)
    return ClassTree(
        top,
        tuple(sorted(counts)),
        dict(sorted(counts.items())),
        dict(splits),
        tuple("/".join(path) for path in inside),
        tuple(path[place] for path in inside),
        any(len(path) > place + 2 for path in inside),
    )


def small_classes(names: Sequence[str]) -> dict[str, int]:
    """Folder -> images, where a few folders of too few images would be classes; else nothing."""
    parts = [PurePosixPath(name).parts for name in names]
    counts = Counter(path[0] for path in parts if len(path) > 1)
    few = 2 <= len(counts) <= 12 and len(parts) < FEWEST_BY_CLASS * len(counts)
    return dict(sorted(counts.items())) if few else {}


def including(tree: ClassTree, pattern: str) -> ClassTree:
    """The part of a tree whose paths contain a pattern.

    Raises:
      UserError: where nothing does.
    """
    kept = [k for k, name in enumerate(tree.images) if re.search(pattern, name)]
    if not kept:
        raise UserError(f"--include {pattern} fits none of {len(tree.images)} images.")
    classes_of = tuple(tree.classes_of[k] for k in kept)
    counts = dict(sorted(Counter(classes_of).items()))
    images = tuple(tree.images[k] for k in kept)
    return replace(tree, classes=tuple(counts), counts=counts, images=images, classes_of=classes_of)


def modality_trees(names: Sequence[str]) -> dict[str, ClassTree]:
    """Folder -> its class tree, where the folders at the top are modalities; else nothing.

    They are where they are no splits, and all of them are trees of classes with names in common
    (numbers are patients), or are called as modalities are.
    """
    below: dict[str, list[str]] = defaultdict(list)
    for name in names:
        head, slash, rest = name.partition("/")
        if slash:
            below[head].append(rest)
    if not 2 <= len(below) <= 8 or {head.lower() for head in below} <= SPLIT_FOLDERS.keys():
        return {}
    trees = {head: class_tree(rest, head) for head, rest in below.items()}
    if not all(tree is not None and len(tree.classes) > 1 for tree in trees.values()):
        return {}
    shared = set.intersection(*(set(tree.classes) for tree in trees.values()))
    shared = {name for name in shared if not re.search(r"\d", name)}
    if len(shared) > 1 or all(MODALITY_WORDS.fullmatch(head) for head in below):
        return dict(sorted(trees.items()))
    return {}


@dataclass(frozen=True)
class Grouping:
    """How a file name tells whose image it is.

    Attributes:
      pattern: regular expression; what its parentheses match is the group.
      words: the same for a reader.
      by_class: class -> groups.
      groups: of all classes.
    """

    pattern: str
    words: str
    by_class: dict[str, int]
    groups: int


def grouping(tree: ClassTree) -> Grouping | None:
    """The pattern that finds patients in the names of a class tree; None where none is found.

    A pattern counts where it fits every name and makes at least ten groups and twice as many as
    there are classes, some of them of several images; one that says patient, with any number.
    """
    tried = list(GROUP_PATTERNS)
    if tree.inner:
        split = "(?:[^/]+/)" if tree.splits else ""
        tried.insert(0, (rf"^{split}([^/]+/[^/]+)/", "the folder below the class"))
    for pattern, words in tried:
        found = grouped(tree, pattern, words)
        fewest = 1 if pattern == NAMED_PATIENT else max(10, 2 * len(tree.classes))
        if found and fewest <= found.groups < len(tree.images):
            return found
    return None


def grouped(tree: ClassTree, pattern: str, words: str) -> Grouping | None:
    """The groups that a pattern makes, as `data.sources.folders` does; None where it misfits."""
    expression = re.compile(pattern)
    members: dict[str, set[str]] = {}
    for name, kind in zip(tree.images, tree.classes_of, strict=True):
        match = expression.search(name.rsplit("/", 1)[-1]) or expression.search(name)
        if match is None:
            return None
        members.setdefault(kind, set()).add(match.group(1 if expression.groups else 0))
    by_class = {name: len(groups) for name, groups in sorted(members.items())}
    return Grouping(pattern, words, by_class, len(set().union(*members.values())))
