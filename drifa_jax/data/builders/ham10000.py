"""HAM10000 dermoscopy, with the lesion as the group and the patient's table."""

from __future__ import annotations

from pathlib import Path

from drifa_jax.data.builders.medical_images import Example, Facts, MedicalImages
from drifa_jax.data.problems import Problems
from drifa_jax.data.table import read_table

COLUMNS = ("dx_type", "age", "sex", "localization")


class Ham10000(MedicalImages):
    """Seven kinds of pigmented lesions."""

    FACTS = Facts(
        title="HAM10000 (Skin Cancer MNIST)",
        homepage="https://www.kaggle.com/datasets/kmader/skin-cancer-mnist-ham10000",
        citation="P. Tschandl, C. Rosendahl, H. Kittler, The HAM10000 dataset, Scientific Data 5, "
        "180161, 2018, doi:10.7910/DVN/DBW86T",
        licence="CC BY-NC-SA 4.0",
        folder="skin-cancer-mnist-ham10000",
        task="skin",
        classes=("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"),
        published={
            "full": {
                "akiec": 327,
                "bcc": 514,
                "bkl": 1099,
                "df": 115,
                "mel": 1113,
                "nv": 6705,
                "vasc": 142,
            }
        },
        caveats="A lesion has up to six images: split by lesion. About half of the labels are "
        "not histology (dx_type).",
        columns=COLUMNS,
    )

    def list_examples(self, root: Path) -> dict[str, list[Example]]:
        rows = read_table(root / "HAM10000_metadata.csv")
        # Some copies hold each folder twice, in two letter cases; the first is as good.
        paths: dict[str, Path] = {}
        for path in sorted(root.rglob("*.jpg")):
            paths.setdefault(path.stem, path)
        problems = Problems(f"the download {root}")
        examples = []
        for row in rows:
            image_id = row["image_id"]
            if image_id not in paths:
                problems.add(image_id, "is in the table, but there is no such image")
                continue
            columns = {column: row[column] for column in COLUMNS}
            examples.append(
                Example(image_id, paths[image_id], row["dx"], row["lesion_id"], columns)
            )
        problems.raise_any("Download the set again.")
        return {"full": examples}
