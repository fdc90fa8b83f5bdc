"""The way to fuse that the study of docs/fusion_protocol.md ended with, for config files."""

from __future__ import annotations

from typing import Any

from drifa_jax.network_options import READ_RESOLUTIONS

NO_ATTENTION: dict[str, Any] = {"mfa_parts": (), "stage_mfa_parts": (), "mifa_parts": ()}
"""Fields of the config group `model` that leave branches apart until the heads read them."""

BEST_FUSION: dict[str, Any] = NO_ATTENTION | {
    "readout": "auxiliary",
    "read_stages": READ_RESOLUTIONS,
}
"""Fields of `model`: concatenation of every resolution, trained beside a head a modality."""


def fuse_best(config: Any) -> None:
    """Sets what the best known method for few records needs, in place; the paper's is the default.

    Pretrained branches that stay as they are, `BEST_FUSION`, modality dropout, and the training
    options of the study: docs/benchmark.md has its figures.

    Args:
      config: of `config.default_config()`.
    """
    config.model.backbone = "efficientnet_lite0"
    config.model.update(BEST_FUSION)
    config.model.batch_norm_momentum = 0.9
    config.data.modality_dropout = 0.1
    config.train.class_weights = "none"
    config.train.pretrained = "package"
    config.train.frozen = ("branches",)
    config.train.batch_size = 64
    config.train.num_epochs = 30
    config.train.schedule = "cosine"
    config.train.learning_rate = 1e-4
    config.train.weight_decay = 0.1
