"""Dermoscopy + pap smear on unpaired records: a head for each (the paper's Table 1 setting).

    python -m drifa_jax.main --config configs/skin_cervix.py
        --config.data.modalities.dermoscopy.root=HAM10000
        --config.data.modalities.pap_smear.root=SIPaKMeD

HAM10000 is the Kaggle download "Skin Cancer MNIST: HAM10000", SIPaKMeD the Kaggle download
"Cervical Cancer largest dataset". Their classes are imbalanced (58 to 1 in HAM10000), hence
class weights. Accuracy: not yet measured on the full sets.
"""

from drifa_jax.config import default_config, modality, unknown_variant

VARIANTS = ("",)


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise unknown_variant(__file__, variant, VARIANTS)
    config = default_config()
    config.data.source = "folders"
    config.data.modalities = {
        "dermoscopy": modality(task="skin"),
        "pap_smear": modality(task="cervix", group_pattern=r"^(\d+)_"),
    }
    config.data.augmentation = "paper"
    config.train.class_weights = "balanced"
    config.train.num_epochs = 200
    return config.lock()
