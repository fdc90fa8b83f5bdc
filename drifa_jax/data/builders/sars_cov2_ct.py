"""SARS-CoV-2 chest CT of Soares et al."""

from __future__ import annotations

from pathlib import Path

from drifa_jax.data.builders.medical_images import Example, Facts, MedicalImages, from_folders
from drifa_jax.data.sources.folders import scan_folders

NAMES = {"COVID": "covid", "non-COVID": "non_covid"}


class SarsCov2Ct(MedicalImages):
    """covid and non_covid chest CT slices."""

    FACTS = Facts(
        title="SARS-CoV-2 CT-scan dataset",
        homepage="https://www.kaggle.com/datasets/plameneduardo/sarscov2-ctscan-dataset",
        citation="E. Soares, P. Angelov et al., SARS-CoV-2 CT-scan dataset, 2020, "
        "doi:10.34740/kaggle/dsv/1199870",
        licence="CC BY-NC-SA 4.0",
        folder="sarscov2-ctscan-dataset",
        task="covid",
        classes=("covid", "non_covid"),
        published={"full": {"covid": 1252, "non_covid": 1230}},
        caveats="No patient identifiers (about 120 patients): a split disjoint by patient is "
        "impossible. Sizes and crops correlate with the class.",
    )

    def list_examples(self, root: Path) -> dict[str, list[Example]]:
        return from_folders(scan_folders(root), NAMES)
