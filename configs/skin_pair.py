"""Close-up + dermoscopy + what is known of the patient: the diagnosis of a skin lesion.

    drifa train --config configs/skin_pair.py --workdir RUN
        --config.data.modalities.clinical.root=MILK10K
        --config.data.modalities.dermoscopic.root=MILK10K
    drifa train --config configs/skin_pair.py:paper ...          # DRIFA-Net from scratch

The table has one row a lesion: `lesions_wide.csv` of MILK10k, which `drifa benchmark paired-v1
--join milk10k=MILK10K` writes, or one of your own with these columns. `""` is the best method
known for few records (docs/benchmark.md), `paper` the paper's network. Patients are not named in
MILK10k; where your table names them, set `group_column` of both modalities.
"""

from drifa_jax.config import default_config, modality, unknown_variant
from drifa_jax.fusion_presets import fuse_best, train_from_scratch

VARIANTS = ("", "paper")
SIDE = 160


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise unknown_variant(__file__, variant, VARIANTS)
    config = default_config()
    both = {
        "height": SIDE,
        "width": SIDE,
        "format": "manifest",
        "task": "lesion",
        "table": "lesions_wide.csv",
        "id_column": "lesion_id",
        "label_column": "dx",
    }
    config.data.source = "files"
    config.data.modalities = {
        "clinical": modality(
            image_column="clinical",
            numeric_columns=("age_approx",),
            categorical_columns=("sex", "skin_tone_class", "site"),
            **both,
        ),
        "dermoscopic": modality(image_column="dermoscopic", **both),
    }
    config.data.pairing = "paired"
    config.data.augmentation = "photo"
    config.data.in_memory = True
    if variant == "":
        fuse_best(config)
    else:
        train_from_scratch(config)
    return config.lock()
