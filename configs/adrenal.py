"""Adrenal glands as volumes: hyperplasia or not, from their shape (AdrenalMNIST3D).

    drifa train --config configs/adrenal.py --workdir RUN
        --config.data.modalities.gland.root=adrenalmnist3d.npz
    drifa train --config configs/adrenal.py:slices --workdir RUN
        --config.data.modalities.gland.root=adrenalmnist3d.npz
    drifa train --config configs/adrenal.py:pretrained --workdir RUN
        --config.data.modalities.gland.root=adrenalmnist3d.npz

The file is that of MedMNIST v2 (Yang et al., 2023): volumes of 28 x 28 x 28 voxels with splits of
their own. `""` is a ResNet-10 of three spatial axes; `slices` runs a ResNet-10 of pictures over
the 28 slices of each volume and pools them by attention; `pretrained` so with EfficientNet-Lite0,
whose ImageNet weights stay as they came, over 8 slices of 48 x 48 pixels. Results, commands and
hardware: docs/results.md.
"""

from drifa_jax.config import default_config, modality, unknown_variant

VARIANTS = ("", "slices", "pretrained")
SIDE = 28


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise unknown_variant(__file__, variant, VARIANTS)
    config = default_config()
    config.data.source = "files"
    config.data.modalities = {
        "gland": modality(
            depth=SIDE,
            height=SIDE,
            width=SIDE,
            channels=1,
            format="npz",
            task="adrenal",
            classes=("normal", "hyperplasia"),
            slice_attention=variant != "",
        )
    }
    # The two glands of a person mirror each other.
    config.data.augmentation = "flip"
    config.data.in_memory = True
    config.model.width = 16
    config.model.backbone = "resnet10"
    # Short runs: batch norm must not remember a network long gone, nor dropout hide all.
    config.model.batch_norm_momentum = 0.9
    config.model.dropout_rate = 0.1
    config.train.batch_size = 32
    config.train.num_epochs = 30
    config.train.learning_rate = 1e-3
    config.train.schedule = "cosine"
    config.train.warmup_steps = 34
    config.train.class_weights = "balanced"
    if variant == "pretrained":
        # Smaller pictures leave nothing of the map before the last stages.
        config.data.modalities.gland.update(depth=8, height=48, width=48)
        config.model.backbone, config.model.width = (
            "efficientnet_lite0",
            default_config().model.width,
        )
        config.train.pretrained = "package"
        config.train.frozen = ("branches",)
        config.train.num_epochs = 8
    return config.lock()
