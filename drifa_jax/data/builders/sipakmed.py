"""SIPaKMeD pap-smear cells, with the cluster image of every cell as its group."""

from __future__ import annotations

from pathlib import Path

from drifa_jax.data.builders.medical_images import Example, Facts, MedicalImages, from_folders
from drifa_jax.data.sources.folders import scan_folders

NAMES = {
    "im_Dyskeratotic": "dyskeratotic",
    "im_Koilocytotic": "koilocytotic",
    "im_Metaplastic": "metaplastic",
    "im_Parabasal": "parabasal",
    "im_Superficial-Intermediate": "superficial_intermediate",
}


class Sipakmed(MedicalImages):
    """Cropped single cells of five types."""

    FACTS = Facts(
        title="SIPaKMeD",
        homepage="https://www.kaggle.com/datasets/prahladmehandiratta/"
        "cervical-cancer-largest-dataset-sipakmed",
        citation="M. E. Plissiti et al., SIPAKMED: a new dataset for feature and image based "
        "classification of normal and pathological cervical cells in Pap smear images, ICIP 2018",
        licence="free for experiments, with citation",
        folder="cervical-cancer-largest-dataset-sipakmed",
        task="cervix",
        classes=tuple(NAMES.values()),
        published={
            "full": {
                "dyskeratotic": 813,
                "koilocytotic": 825,
                "metaplastic": 793,
                "parabasal": 787,
                "superficial_intermediate": 831,
            }
        },
        caveats="Cells of one cluster image share slide and staining; the group is the cluster "
        "image. Slides and patients are not published.",
    )

    def list_examples(self, root: Path) -> dict[str, list[Example]]:
        # The uncropped cluster images lie beside CROPPED/. Their numbers start anew per class.
        pattern = r"^im_[^/]+/.*CROPPED/(\d+)_"
        index = scan_folders(root, include="CROPPED/", group_pattern=pattern)
        examples = from_folders(index, NAMES)
        return {
            split: [Example(e.record_id, e.path, e.label, f"{e.label}/{e.group_id}") for e in some]
            for split, some in examples.items()
        }
