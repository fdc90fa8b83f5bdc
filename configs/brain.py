"""Brain MRI + CT: two tasks on paired records (tumour, stroke).

    python -m drifa_jax.main --config configs/brain.py            # SYNTHETIC phantoms, 128 px
    python -m drifa_jax.main --config configs/brain.py:quick      # SYNTHETIC phantoms, minutes
    python -m drifa_jax.main --config configs/brain.py:folders
        --config.data.modalities.mri.root=MRI --config.data.modalities.ct.root=CT
    python -m drifa_jax.main --config configs/brain.py:best ...   # as folders

`quick` reaches a test accuracy of 0.84 (tumour) and 0.82 (stroke) on 1,000 SYNTHETIC records
(seed 0, one CPU device; compiled with other fusions, whose rounding differs, 0.87 and 0.79). Who
recognises every visible lesion in both modalities reaches 0.95, in MRI alone 0.75 and 0.77, in CT
alone 0.72 and 0.74: docs/phantoms.md. The other two: not yet measured.

`folders` reads class folders: brain MRI as `Training/<class>/*.jpg` and `Testing/<class>/*.jpg`,
stroke CT as `<class>/<patient> (<slice>).jpg`, and trains the paper's network on them; `best`
trains the best method known for few records (docs/benchmark.md).
"""

from drifa_jax.config import default_config, modality, unknown_variant
from drifa_jax.fusion_presets import fuse_best, train_from_scratch

VARIANTS = ("", "quick", "folders", "best")


def get_config(variant: str = ""):
    config = default_config()
    # The paper's 0.99 remembers hundreds of steps: longer than a short run has, whose evaluation
    # would then use the statistics of a network long gone.
    config.model.batch_norm_momentum = 0.9
    if variant == "":
        config.data.modalities = {"mri": modality(channels=1), "ct": modality(channels=1)}
        config.data.augmentation = "flip"
        config.train.num_epochs = 30
        config.train.schedule = "cosine"
    elif variant == "quick":
        small = modality(height=64, width=64, channels=1)
        config.data.modalities = {"mri": small, "ct": small}
        config.data.augmentation = "flip"
        config.data.phantoms.num_train = 1500
        config.data.phantoms.num_validation = 200
        config.model.width = 16
        # Six epochs are too few to learn through the paper's dropout of 0.25.
        config.model.dropout_rate = 0.1
        config.train.learning_rate = 3e-3
        config.train.num_epochs = 6
        config.train.schedule = "cosine"
        config.train.warmup_steps = 20
    elif variant in ("folders", "best"):
        config.data.source = "files"
        config.data.modalities = {
            "mri": modality(channels=1, task="tumour"),
            "ct": modality(channels=1, task="stroke", group_pattern=r"^(\d+) \("),
        }
        config.data.augmentation = "paper"
        train_from_scratch(config)
        if variant == "best":
            fuse_best(config)
    else:
        raise unknown_variant(__file__, variant, VARIANTS)
    return config.lock()
