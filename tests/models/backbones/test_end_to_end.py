"""A branch of maps and one of tokens through the commands: trained, predicted with, explained."""

from functools import partial

import jax

from drifa_jax.cli import main
from drifa_jax.commands.train import train_and_test
from drifa_jax.config import from_mapping, modality
from drifa_jax.models.backbones.convnext import ConvNeXt, ConvNeXtPlan
from drifa_jax.models.backbones.vit import ViT, ViTPlan
from drifa_jax.models.registry import BACKBONES

SMALL = {
    "convnext_atto": partial(ConvNeXt, plan=ConvNeXtPlan((1, 1), (4, 6))),
    "vit_tiny": partial(ViT, plan=ViTPlan(8, 4, 2, 8, 3, num_registers=1)),
}
"""Names of the registry, each for a small network of its family."""


def test_a_run_trains_predicts_and_explains(tmp_path, monkeypatch):
    for name, small in SMALL.items():
        monkeypatch.setitem(BACKBONES, name, small)
    mri, ct = (modality(height=32, width=32, channels=1, backbone=name) for name in SMALL)
    config = from_mapping(
        {
            "data": {
                "modalities": {"mri": mri, "ct": ct},
                "phantoms": {"num_train": 8, "num_validation": 6, "num_test": 6},
            },
            "model": {"fuse_at": (-1,)},
            "train": {"batch_size": 8, "num_epochs": 1},
            "eval": {"batch_size": 8},
            "uncertainty": {"num_mc_samples": 2, "fit_decisions": False},
        }
    )
    run = tmp_path / "run"
    # Optax raises a float to an integer power, which strict dtypes forbid.
    with jax.numpy_dtype_promotion("standard"):
        assert train_and_test(config, run) == 0
        assert (run / "metrics.json").is_file()
        assert main(["explain", str(run)]) == 0
    assert list((run / "explanations").glob("*.png"))
