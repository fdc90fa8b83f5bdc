"""Brain stroke CT slices of Rahman (Kaggle), with patients from the file names."""

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

NAMES = {"Normal": "normal", "Stroke": "stroke"}


class BrainStrokeCt(MedicalImages):
    """normal and stroke slices, labelled per patient."""

    FACTS = Facts(
        title="Brain Stroke CT Image Dataset (Rahman)",
        homepage="https://www.kaggle.com/datasets/afridirahman/brain-stroke-ct-image-dataset",
        citation="Afridi Rahman, Brain Stroke CT Image Dataset, Kaggle, 2021",
        licence="not stated",
        folder="brain-stroke-ct-image-dataset",
        task="stroke",
        classes=("normal", "stroke"),
        published={"full": {"normal": 1551, "stroke": 950}},
        caveats="The number before the bracket in a file name is the patient. Labels are per "
        "patient, so many slices of the class stroke show no lesion.",
    )

    def list_examples(self, root: Path) -> dict[str, list[Example]]:
        root = find_root(root, "Brain_Data_Organised")
        return from_folders(scan_folders(root, group_pattern=r"^(\d+) \("), NAMES)
