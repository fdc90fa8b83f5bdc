"""Makes a tiny finished run of the present layout, with its answers, to be kept for later releases.

python -m tests.golden.make_run tests/golden/finished/NAME

What another JAX exports of one is kept beside, made in a copy of it:
drifa export COPY tests/golden/exported/jax-VERSION.drifa --samples 4 --no-post-processing
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

KEPT = ("config.json", "preprocessing.json", "network.json", "checkpoints")
"""What predicting reads of a run directory."""


def pictures(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Two records, drawn from a fixed seed."""
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 256, (2, *shape), np.uint8) for name, shape in shapes.items()}


def answers(predictor) -> dict[str, list]:
    """Probabilities by task of the two records."""
    images = pictures({spec.name: spec.shape for spec in predictor.description.modalities})
    prediction = predictor(images, record_ids=["a", "b"])
    return {
        task: np.asarray(prediction[task].probabilities).tolist()
        for task in predictor.description.tasks
    }


def main(folder: Path) -> None:
    import drifa_jax
    from drifa_jax.commands.train import train_and_test
    from drifa_jax.config import from_mapping, modality

    picture = modality(height=16, width=16, channels=1)
    config = from_mapping(
        {
            "data": {
                "modalities": {"mri": picture, "ct": picture},
                "phantoms": {"num_train": 32, "num_validation": 12, "num_test": 20},
            },
            "model": {"width": 2, "backbone": "resnet10"},
            "train": {"batch_size": 8, "num_epochs": 1},
            "uncertainty": {"fit_decisions": False},
        }
    )
    train_and_test(config, folder)
    for path in folder.iterdir():
        if path.name not in KEPT:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    predictor = drifa_jax.load(folder, num_samples=4, post_processing=False)
    (folder / "answers.json").write_text(json.dumps(answers(predictor)) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
