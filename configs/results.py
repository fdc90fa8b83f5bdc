"""The studies of docs/results.md: small networks on real images, honest and leaky protocols.

    drifa ablate configs/results.py:brain_lung
        --config.data.modalities.mri.root=BRAIN_MRI --config.data.modalities.ct.root=LUNG_CT
    drifa ablate configs/results.py:skin --config.data.modalities.dermoscopy.root=HAM10000

`brain_lung` reads the Kaggle sets "Brain Tumor MRI Dataset" and "IQ-OTH/NCCD lung cancer"
(the authors' notebook pairs these two), `skin` the Kaggle set "Skin Cancer MNIST: HAM10000" with
age, sex and site from its table as a second modality of the same patients. Both are honest:
near duplicates (and images of one lesion) never straddle two splits.

`brain_lung_leaky` and `skin_leaky` split the same images as the released notebooks do: at random,
image by image, duplicates kept, strangers paired by index. Beside the honest figures they show
what leakage buys.

32 pixels, a width of 8 and ResNet-10 fit two CPU cores; figures at such a size compare protocols
and parts, not methods. Results, commands and hardware: docs/results.md.
"""

from drifa_jax.config import default_config, modality, unknown_variant

VARIANTS = ("brain_lung", "brain_lung_leaky", "skin", "skin_leaky")
SIDE = 32


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise unknown_variant(__file__, variant, VARIANTS)
    name, leaks = variant.removesuffix("_leaky"), variant.endswith("_leaky")
    config = default_config()
    config.data.source = "files"
    config.data.modalities = _modalities(name, leaks)
    config.data.in_memory = True
    config.data.augmentation = "flip"
    config.data.num_folds = 5
    config.data.duplicates = "keep" if leaks else "group"
    config.data.pairing = "index" if leaks else "random"
    config.model.width = 8
    config.model.backbone = "resnet10"
    # Short runs: batch norm must not remember a network long gone, nor dropout hide all.
    config.model.batch_norm_momentum = 0.9
    config.model.dropout_rate = 0.1
    config.train.batch_size = 64
    config.train.num_epochs = 12
    config.train.learning_rate = 3e-3
    config.train.schedule = "cosine"
    config.train.warmup_steps = 20
    config.train.class_weights = "balanced"
    return config.lock()


def _modalities(name, leaks):
    if name == "brain_lung":
        return {
            "mri": modality(height=SIDE, width=SIDE, channels=1, task="tumour"),
            "ct": modality(height=SIDE, width=SIDE, channels=1, task="lung"),
        }
    return {
        "dermoscopy": modality(
            height=SIDE,
            width=SIDE,
            task="lesion",
            format="manifest",
            table="HAM10000_metadata.csv",
            label_column="dx",
            group_column="" if leaks else "lesion_id",
            numeric_columns=("age",),
            categorical_columns=("sex", "localization"),
        )
    }
