"""Dermoscopy + pap smear on unpaired records: a head for each (the paper's skin and cervix).

    python -m drifa_jax.main --config configs/skin_cervix.py
        --config.data.modalities.dermoscopy.root=HAM10000
        --config.data.modalities.pap_smear.root=SIPAKMED

HAM10000 is the Kaggle download "Skin Cancer MNIST: HAM10000": its table names class and lesion,
and lesions stay on one side of the splits. SIPAKMED is the Kaggle download "Cervical Cancer
largest dataset"; cropped cells of one slide stay on one side. `skin_cervix.py:herlev` takes the
class folders of the Herlev set instead. HAM10000 is imbalanced (58 to 1), hence class weights.
Accuracy on the full sets: not yet measured.
"""

from drifa_jax.config import default_config, modality, unknown_variant

VARIANTS = ("", "herlev")


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise unknown_variant(__file__, variant, VARIANTS)
    config = default_config()
    config.data.source = "files"
    config.data.modalities = {
        "dermoscopy": modality(
            format="manifest",
            task="skin",
            table="HAM10000_metadata.csv",
            label_column="dx",
            group_column="lesion_id",
        ),
        "pap_smear": modality(task="cervix", group_pattern=r"^(\d+)_", include="CROPPED/")
        if variant == ""
        else modality(task="cervix", group_pattern=r"^(\d+)-"),
    }
    config.data.augmentation = "paper"
    config.train.class_weights = "balanced"
    config.train.num_epochs = 200
    return config.lock()
