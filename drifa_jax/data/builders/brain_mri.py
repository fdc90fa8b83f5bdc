"""Brain tumour MRI of Nickparvar (Kaggle), with its official Training and Testing folders."""

from __future__ import annotations

from pathlib import Path

from drifa_jax.data.builders.medical_images import Example, Facts, MedicalImages, from_folders
from drifa_jax.data.sources.folders import scan_folders


class BrainTumorMri(MedicalImages):
    """glioma, meningioma, notumor and pituitary slices."""

    FACTS = Facts(
        title="Brain Tumor MRI Dataset (Nickparvar)",
        homepage="https://www.kaggle.com/datasets/masoudnickparvar/brain-tumor-mri-dataset",
        citation="Masoud Nickparvar, Brain Tumor MRI Dataset, Kaggle, 2021, "
        "doi:10.34740/kaggle/dsv/2645886",
        licence="CC0 1.0",
        folder="brain-tumor-mri-dataset",
        task="tumour",
        classes=("glioma", "meningioma", "notumor", "pituitary"),
        published={
            "train": {"glioma": 1321, "meningioma": 1339, "notumor": 1595, "pituitary": 1457},
            "test": {"glioma": 300, "meningioma": 306, "notumor": 405, "pituitary": 300},
        },
        caveats="No patient identifiers: slices of one patient are in both splits, and hundreds of "
        "test images are copies of training images. The class notumor comes from other sources.",
    )

    def list_examples(self, root: Path) -> dict[str, list[Example]]:
        return from_folders(scan_folders(root))
