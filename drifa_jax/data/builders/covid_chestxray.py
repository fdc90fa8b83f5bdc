"""COVID-19 Image Data Collection of Cohen et al.: chest X-rays with a clinical table."""

from __future__ import annotations

from pathlib import Path

from drifa_jax.data.builders.medical_images import Example, Facts, MedicalImages
from drifa_jax.data.table import read_table

COLUMNS = ("sex", "age", "view", "license")


class CovidChestxray(MedicalImages):
    """X-rays of patients with and without COVID-19, as far as the finding is stated."""

    FACTS = Facts(
        title="COVID-19 Image Data Collection",
        homepage="https://github.com/ieee8023/covid-chestxray-dataset",
        citation="J. P. Cohen, P. Morrison, L. Dao, COVID-19 Image Data Collection, "
        "arXiv:2003.11597, 2020",
        licence="by image, in the column license",
        folder="covid-chestxray-dataset",
        task="covid",
        classes=("covid", "other"),
        published={},
        caveats="The collection grew for a year, so there is no one published count. Several "
        "images per patient: the group is the patient. Images whose finding is not stated (todo, "
        "unknown) and images that are no X-ray are left out. Notes of the clinicians are not "
        "stored, since they may name the diagnosis.",
        columns=COLUMNS,
    )

    def list_examples(self, root: Path) -> dict[str, list[Example]]:
        examples = []
        for row in read_table(root / "metadata.csv"):
            path = root / (row.get("folder") or "images") / row["filename"]
            finding = row["finding"].lower()
            stated = finding not in ("", "todo", "unknown")
            if not stated or row["modality"] != "X-ray" or not path.is_file():
                continue
            label = "covid" if "covid" in finding else "other"
            columns = {column: row[column] for column in COLUMNS}
            examples.append(
                Example(row["filename"], path, label, f"patient-{row['patientid']}", columns)
            )
        return {"full": examples}
