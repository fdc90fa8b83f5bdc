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

`brain_lung_pretrained` has branches with the ImageNet weights of EfficientNet-Lite0, at 160 pixels,
split as `brain_lung` is; `milk10k_pretrained` the same for MILK10k, whose close-up, dermoscopy and
table show the same lesion. It reads `lesions_wide.csv`, one row a lesion, with the columns
lesion_id, clinical, dermoscopic (paths), dx, age_approx, sex, skin_tone_class and site.
`benchmarks/pretrained_study.py` fits heads on their features; `brain_lung_networks` and
`milk10k_networks` are whole networks of these branches at 96 pixels, whose heads read every
resolution, for `benchmarks/pretrained_networks.py`.

32 pixels, a width of 8 and ResNet-10 fit two CPU cores; figures at such a size compare protocols
and parts, not methods. Results, commands and hardware: docs/results.md.
"""

import re

from drifa_jax.config import default_config, modality, unknown_variant
from drifa_jax.fusion_presets import BEST_FUSION

VARIANTS = (
    "brain_lung",
    "brain_lung_leaky",
    "brain_lung_networks",
    "brain_lung_pretrained",
    "milk10k_networks",
    "milk10k_pretrained",
    "skin",
    "skin_leaky",
)
SIDE, PRETRAINED_SIDE, NETWORKS_SIDE = 32, 160, 96


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise unknown_variant(__file__, variant, VARIANTS)
    leaks = variant.endswith("_leaky")
    name = re.sub("_(leaky|networks|pretrained)$", "", variant)
    config = default_config()
    config.data.source = "files"
    config.data.modalities = _modalities(name, leaks)
    config.data.in_memory = True
    config.data.augmentation = "flip"
    config.data.num_folds = 5
    config.data.duplicates = "keep" if leaks else "group"
    config.data.pairing = "index" if leaks else "random"
    if name == "milk10k":
        config.data.pairing = "paired"
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
    if variant.endswith("_networks"):
        _networks(config, num_epochs=4 if name == "brain_lung" else 8)
    if variant.endswith(("_networks", "_pretrained")):
        for at in config.data.modalities.values():
            at.height = at.width = (
                PRETRAINED_SIDE if variant.endswith("_pretrained") else NETWORKS_SIDE
            )
        config.model.backbone, config.model.width = (
            "efficientnet_lite0",
            default_config().model.width,
        )
        config.train.pretrained = "package"
    return config.lock()


def _networks(config, num_epochs):
    """Concatenation of every resolution, trained beside a head a modality."""
    config.model.update(BEST_FUSION)
    config.model.dropout_at, config.model.dropout_rate = "heads", 0.25
    config.train.statistics_batches = 8
    config.train.batch_size = 32
    config.train.num_epochs = num_epochs
    config.train.learning_rate = 1e-3
    config.train.weight_decay = 0.01


def _modalities(name, leaks):
    if name == "brain_lung":
        return {
            "mri": modality(height=SIDE, width=SIDE, channels=1, task="tumour"),
            "ct": modality(height=SIDE, width=SIDE, channels=1, task="lung"),
        }
    if name == "milk10k":
        lesions = dict(format="manifest", table="lesions_wide.csv", id_column="lesion_id")
        lesions |= dict(label_column="dx", task="lesion", height=SIDE, width=SIDE)
        return {
            "closeup": modality(
                image_column="clinical",
                numeric_columns=("age_approx",),
                categorical_columns=("sex", "skin_tone_class", "site"),
                **lesions,
            ),
            "dermoscopy": modality(image_column="dermoscopic", **lesions),
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
