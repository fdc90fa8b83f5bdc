"""An ensemble of folds whose tables were encoded apart: each member answers as it does alone."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from PIL import Image

from drifa_jax.config import from_mapping, modality
from drifa_jax.predict.predictor import load

SITES = ("back", "face", "hand", "leg")


@pytest.fixture(scope="module")
def folds(tmp_path_factory, untrained_run):
    """Two of three folds of pictures with a table; the second never saw the site of record 7."""
    root = tmp_path_factory.mktemp("skin")
    lines = ["id,image,label,age,site"]
    for k in range(24):
        Image.new("L", (16, 16), 10 * k).save(root / f"{k}.png")
        age = "" if k == 5 else 20 + 3 * k
        lines.append(f"{k},{k}.png,{'ab'[k % 2]},{age},{'toe' if k == 7 else SITES[k % 4]}")
    (root / "table.csv").write_text("\n".join(lines))
    values = modality(
        root=str(root), format="manifest", table="table.csv", id_column="id", task="dx",
        image_column="image", label_column="label", numeric_columns=("age",),
        categorical_columns=("site",), height=16, width=16, channels=1,
    )  # fmt: skip
    runs = []
    for fold in (0, 2):
        config = from_mapping(
            {
                "data": {
                    "source": "files",
                    "modalities": {"photo": values},
                    "num_folds": 3,
                    "fold": fold,
                    "duplicates": "keep",
                },
                "model": {"width": 4, "backbone": "resnet10"},
                "train": {"batch_size": 4, "num_epochs": 1},
                "uncertainty": {"num_mc_samples": 2},
            }
        )
        runs.append(untrained_run(config, root / "runs" / f"fold-{fold}", fold))
    return runs


def test_each_member_answers_as_it_does_alone(folds):
    row = {"age": "31", "site": "toe"}
    cases = {
        "photo": [np.full((16, 16), 40 * k, np.uint8) for k in range(4)],
        "photo_table": [row, row | {"age": ""}, row | {"site": "face"}, row | {"site": "nose"}],
    }
    with jax.numpy_dtype_promotion("standard"):
        together = load(*folds, post_processing=False)
        alone = [load(run, post_processing=False) for run in folds]
        known = {p.description.readings["photo_table"].encoding.categories for p in alone}
        assert len(known) > 1, "the folds encode alike, which proves nothing"
        for member, own in enumerate(alone):
            expected = own.features(*own.read(cases))[0]
            found = together.features(*together.read(cases))[member]
            # Two matrices are multiplied before, not after, the features: rounding of float32.
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
