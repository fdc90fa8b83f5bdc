"""IQ-OTH/NCCD lung cancer CT slices."""

from __future__ import annotations

from pathlib import Path

from drifa_jax.data.builders.medical_images import (
    Example,
    Facts,
    MedicalImages,
    find_root,
    from_folders,
)
from drifa_jax.data.sources.folders import scan_folders

NAMES = {"Bengin cases": "benign", "Malignant cases": "malignant", "Normal cases": "normal"}
"""Folder ("Bengin" is the publisher's spelling) -> class."""


class IqOthnccdLungCt(MedicalImages):
    """benign, malignant and normal chest CT slices."""

    FACTS = Facts(
        title="IQ-OTH/NCCD lung cancer dataset",
        homepage="https://www.kaggle.com/datasets/adityamahimkar/iqothnccd-lung-cancer-dataset",
        citation="H. Alyasriy, M. Al-Huseiny, The IQ-OTH/NCCD lung cancer dataset, Mendeley Data, "
        "2020, doi:10.17632/bhmdr45bh2",
        licence="CC BY 4.0",
        folder="the-iqothnccd-lung-cancer-dataset",
        task="lung",
        classes=("benign", "malignant", "normal"),
        published={"full": {"benign": 120, "malignant": 561, "normal": 416}},
        caveats="110 cases without identifiers, many slices each: a random split leaks. "
        "Group near duplicates before splitting.",
    )

    def list_examples(self, root: Path) -> dict[str, list[Example]]:
        root = find_root(root, "The IQ-OTHNCCD lung cancer dataset")
        # Kaggle adds a folder "Test cases" without labels; only the three classes are read.
        return from_folders(scan_folders(root, classes=tuple(NAMES), ignore_others=True), NAMES)
