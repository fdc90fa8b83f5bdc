"""DRIFA-Net in JAX: multimodal fusion learning with dual attention for medical images.

Research use only, not a medical device.

    from drifa_jax import MFA, MIFA                     # attention for your own Flax model
    from drifa_jax import Functional, NetworkOptions, drifa_net

Names load on first use: importing the package starts no JAX backend, parses no flags and
imports no other framework.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "MFA": "models.mfa",
    "MIFA": "models.mifa",
    "RRABlock": "models.rra",
    "DRIFANet": "models.drifa_net",
    "NetworkOptions": "network_options",
    "NetworkDescription": "models.description",
    "build_network": "models.building",
    "drifa_net": "models.building",
    "with_drifa": "models.with_drifa",
    "own_backbone": "models.own_network",
    "Functional": "models.functional",
    "UserError": "errors",
    "load": "predict.predictor",
    "Predictor": "predict.predictor",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'drifa_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"drifa_jax.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
