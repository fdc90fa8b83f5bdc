"""Two ultrasound views of a breast lesion, benign or malignant; the second may be missing.

    drifa train --config configs/breast_views.py --workdir RUN
        --config.data.modalities.view_1.root=BUSBRA --config.data.modalities.view_2.root=BUSBRA
    drifa train --config configs/breast_views.py:paper ...       # DRIFA-Net from scratch

A table for each view, one row a case: `cases_view_1.csv` and `cases_view_2.csv` of BUS-BRA, which
`drifa benchmark paired-v1 --join bus_bra=BUSBRA` writes, or those of your own with these columns.
`""` is the best method known for few records (docs/benchmark.md), `paper` the paper's network.
"""

from drifa_jax.config import default_config, modality, unknown_variant
from drifa_jax.fusion_presets import fuse_best, train_from_scratch

VARIANTS = ("", "paper")
SIDE = 160


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise unknown_variant(__file__, variant, VARIANTS)
    config = default_config()
    config.data.source = "files"
    config.data.modalities = {
        view: modality(
            height=SIDE,
            width=SIDE,
            format="manifest",
            task="lesion",
            table=f"cases_{view}.csv",
            id_column="case",
            image_column=view,
            label_column="pathology",
        )
        for view in ("view_1", "view_2")
    }
    config.data.pairing = "paired"
    config.data.augmentation = "flip"
    config.data.in_memory = True
    if variant == "":
        fuse_best(config)
    else:
        train_from_scratch(config)
    return config.lock()
