"""Images that lie twice in a set, counted before anything is decoded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drifa_jax.data.duplicates import same_files
from drifa_jax.data.sources.folders import SPLIT_FOLDERS
from drifa_jax.plan.modality import Found
from drifa_jax.plan.survey import MOST_HEADERS


def copies(modality: Found) -> list[str]:
    """What is said of the copies among its images; nothing where there are none.

    Test: tests/plan/test_plan.py.
    """
    names = modality.images
    chosen: Sequence[int] = range(len(names))
    if len(names) > MOST_HEADERS:
        chosen = np.linspace(0, len(names) - 1, MOST_HEADERS).astype(int).tolist()
    places = [
        [chosen[k] for k in same] for same in same_files([modality.root / names[k] for k in chosen])
    ]
    if not places:
        return []
    surplus = sum(len(same) - 1 for same in places)
    first, second = (names[k] for k in places[0][:2])
    told = [
        f"{surplus} of {len(chosen)} images are copies of others, byte for byte, such as {second} "
        f"of {first}"
    ]
    crossing = sum(len(same) for same in places if len({_split(names[k]) for k in same}) > 1)
    if crossing and modality.splits:
        told.append(f"{crossing} images lie in one split and, the same, in another")
    if modality.classes_of:
        by_class = [{modality.classes_of[k]: names[k] for k in reversed(same)} for same in places]
        unlike = [classes for classes in by_class if len(classes) > 1]
        if unlike:
            first, second = sorted(unlike[0].values())[:2]
            told.append(
                f"{len(unlike)} images lie in two classes at once, such as {first} and {second}: "
                "correct the labels of one"
            )
    return told


def _split(name: str) -> str:
    return SPLIT_FOLDERS.get(name.partition("/")[0].lower(), "")
