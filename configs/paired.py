"""Truly paired records for benchmarks of fusion: several views, or a view and a table, of a person.

    drifa benchmark paired-v1 --root milk10k=MILK10K --root bus_bra=BUSBRA ...

Each variant names the table, one row a record, that lies in the folder of its set;
docs/benchmark.md says how each is made of the set as distributed.

    milk10k   close-up + dermoscopy + table of a lesion, 10 classes
    bus_bra   two ultrasound views of a breast lesion, benign or malignant
    lgg       three aligned brain MRI sequences + table of a patient: does the slice hold tumour?
    ham10000  dermoscopy + table of a lesion, 7 classes

Branches are EfficientNet-Lite0, which starts from ImageNet weights (the extra `pretrained`).
"""

from drifa_jax.config import default_config, modality, unknown_variant
from drifa_jax.fusion_presets import train_as_in_the_study

VARIANTS = ("milk10k", "bus_bra", "lgg", "ham10000")
SIDE = 160


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise unknown_variant(__file__, variant, VARIANTS)
    config = default_config()
    config.data.source = "files"
    config.data.modalities = {
        "milk10k": _milk10k, "bus_bra": _bus_bra, "lgg": _lgg, "ham10000": _ham10000
    }[variant]()  # fmt: skip
    config.data.pairing = "paired"
    config.data.duplicates = "keep"
    config.data.num_folds = 5
    config.data.augmentation = "flip"
    train_as_in_the_study(config)
    return config.lock()


def _view(**fields):
    return modality(height=SIDE, width=SIDE, format="manifest", **fields)


def _milk10k():
    both = {
        "task": "lesion",
        "table": "lesions_wide.csv",
        "id_column": "lesion_id",
        "label_column": "dx",
        # Of MAL_OTH there are too few lesions for ten parts.
        "classes": ("AKIEC", "BCC", "BEN_OTH", "BKL", "DF", "INF", "MEL", "NV", "SCCKA", "VASC"),
        "ignore_other_classes": True,
    }
    return {
        "clinical": _view(
            image_column="clinical",
            numeric_columns=("age_approx",),
            categorical_columns=("sex", "skin_tone_class", "site"),
            **both,
        ),
        "dermoscopic": _view(image_column="dermoscopic", **both),
    }


def _bus_bra():
    both = {"task": "lesion", "id_column": "case", "label_column": "pathology"}
    return {
        "view_1": _view(table="cases_view_1.csv", image_column="view_1", **both),
        "view_2": _view(table="cases_view_2.csv", image_column="view_2", **both),
    }


def _lgg():
    def sequence(name, **table):
        return _view(
            task="tumour",
            table=f"slices_{name}.csv",
            id_column="slice_id",
            image_column=name,
            label_column="tumour_in_slice",
            group_column="patient",
            **table,
        )

    age = {"numeric_columns": ("age",), "categorical_columns": ("tumor_location_code",)}
    return {"flair": sequence("flair", **age), "pre": sequence("pre"), "post": sequence("post")}


def _ham10000():
    return {
        "dermoscopy": _view(
            task="lesion",
            table="HAM10000_metadata.csv",
            label_column="dx",
            group_column="lesion_id",
            numeric_columns=("age",),
            categorical_columns=("sex", "localization"),
        )
    }
