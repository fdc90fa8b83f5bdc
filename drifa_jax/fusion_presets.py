"""What the study of docs/fusion_protocol.md trained, and ended with, for config files."""

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


def train_as_in_the_study(config: Any) -> None:
    """Sets branches and training options of every method of the study, in place.

    Args:
      config: of `config.default_config()`.
    """
    config.model.backbone = "efficientnet_lite0"
    config.data.modality_dropout = 0.1
    config.train.pretrained = "package"
    config.train.batch_size = 64
    config.train.num_epochs = 30
    config.train.schedule = "cosine"
    config.train.learning_rate = 1e-4
    config.train.weight_decay = 0.1


def fuse_best(config: Any) -> None:
    """Sets what the best known method for few records needs, in place; the paper's is the default.

    `BEST_FUSION` on branches that stay as they are, trained as in the study: docs/benchmark.md has
    its figures.
    """
    train_as_in_the_study(config)
    config.model.update(BEST_FUSION)
    config.model.batch_norm_momentum = 0.9
    config.train.class_weights = "none"
    config.train.frozen = ("branches",)


def train_from_scratch(config: Any) -> None:
    """Sets training options of a network that starts from nothing on few records, in place."""
    config.model.batch_norm_momentum = 0.9
    config.train.class_weights = "balanced"
    config.train.num_epochs = 100
    config.train.early_stopping_patience = 20
