"""Every part of a network that a configuration can name.

To add one, write a file that offers the contract beside it and add one line here; a config file
or a program of yours may add its own in the same way, `BACKBONES["mine"] = my_backbone`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from drifa_jax.models.backbones.contract import Backbone, TokenBackbone
from drifa_jax.models.backbones.convnext import CONVNEXT_PLANS, ConvNeXt
from drifa_jax.models.backbones.densenet import DENSENET_PLANS, DenseNet
from drifa_jax.models.backbones.efficientnet import EFFICIENTNET_PLANS, EfficientNet
from drifa_jax.models.backbones.resnet import ResNet
from drifa_jax.models.backbones.swin import SWIN_PLANS, Swin
from drifa_jax.models.backbones.vit import VIT_PLANS, ViT
from drifa_jax.models.fusions.contract import Fusion
from drifa_jax.models.fusions.drifa import DRIFAFusion
from drifa_jax.models.fusions.identity_gates import IdentityGates
from drifa_jax.models.readouts.auxiliary import AuxiliaryHeads
from drifa_jax.models.readouts.average import AveragedHeads
from drifa_jax.models.readouts.concatenate import ConcatenatedHead
from drifa_jax.models.readouts.contract import Readout
from drifa_jax.models.readouts.experts import ExpertHeads

BACKBONES: dict[str, Callable[..., Backbone | TokenBackbone]] = {
    "resnet10": partial(ResNet, plan="resnet10"),
    "resnet18": partial(ResNet, plan="resnet18"),
    "resnet34": partial(ResNet, plan="resnet34"),
    "resnet50": partial(ResNet, plan="resnet50"),
    **{name: partial(ConvNeXt, plan=plan) for name, plan in CONVNEXT_PLANS.items()},
    **{name: partial(EfficientNet, plan=plan) for name, plan in EFFICIENTNET_PLANS.items()},
    **{name: partial(DenseNet, plan=plan) for name, plan in DENSENET_PLANS.items()},
    **{name: partial(Swin, plan=plan) for name, plan in SWIN_PLANS.items()},
    **{name: partial(ViT, plan=plan) for name, plan in VIT_PLANS.items()},
}
"""`(num_channels, *, options, rngs) -> Backbone`, of models/backbones/contract.py."""

VOLUME_BACKBONES = {"resnet10", "resnet18", "resnet34", "resnet50", *DENSENET_PLANS}
"""Names of the backbones with a form of three spatial axes, which `num_axes=3` builds. Any other
reads volumes slice by slice, under `backbones.slice_attention`."""

FUSIONS: dict[str, Callable[..., Fusion]] = {
    "drifa": DRIFAFusion,
    "identity_gates": IdentityGates,
}
"""`(channels, *, last, options, rngs) -> Fusion`, of models/fusions/contract.py."""

READOUTS: dict[str, Callable[..., Readout]] = {
    "concatenate": ConcatenatedHead,
    "average": AveragedHeads,
    "experts": ExpertHeads,
    "auxiliary": AuxiliaryHeads,
}
"""`(num_features, num_classes, *, options, rngs) -> Readout`, of models/readouts/contract.py."""


def registered(registry: Mapping[str, Any], field: str, name: str) -> Any:
    """The entry of a name.

    Raises:
      ValueError: for an unknown name, with the valid ones.
    """
    if name not in registry:
        raise ValueError(f"{field} is {name!r}; choose one of {sorted(registry)}.")
    return registry[name]
