"""The one builder: from a description to a network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from drifa_jax.errors import UserError
from drifa_jax.models.backbones.contract import Backbone, SkippingBackbone, Stage
from drifa_jax.models.backbones.slice_attention import over_slices
from drifa_jax.models.backbones.table import TabularBranch
from drifa_jax.models.description import ModalityDescription, NetworkDescription
from drifa_jax.models.drifa_net import DRIFANet
from drifa_jax.models.functional import Functional
from drifa_jax.models.initial import initial_rngs
from drifa_jax.models.parameter_roles import parameter_roles
from drifa_jax.models.registry import (
    BACKBONES,
    FUSIONS,
    READOUTS,
    VOLUME_BACKBONES,
    registered,
)
from drifa_jax.network_options import PAPER, NetworkOptions


def build_network(description: NetworkDescription) -> Functional:
    """`init` and `apply` of the network that is described; equal descriptions share one.

    Raises:
      UserError: for a name that no registry has, or branches that cannot be fused.
    """
    options = description.options
    # What a name stands for is part of the key: a registry may change.
    entries = [BACKBONES.get(description.backbone_of(m)) for m in description.modalities]
    entries += [FUSIONS.get(options.fusion), READOUTS.get(options.readout)]
    try:
        return _built(description, tuple(entries))
    except ValueError as error:
        raise UserError(str(error)) from error


@functools.lru_cache(maxsize=8)
def _built(description: NetworkDescription, entries: tuple) -> Functional:
    return Functional(functools.partial(build_module, description))


def build_module(description: NetworkDescription, rngs: nnx.Rngs) -> DRIFANet:
    """The network as a module; a table takes the stages of the first image beside it."""
    options = description.options
    branches: dict[str, Backbone] = {}
    tables: dict[str, int] = {}
    for name, modality in description.modalities.items():
        if modality.kind == "table":
            tables[name] = modality.channels
            continue
        branches[name] = _branch(description, name, rngs)
    _check_width(options, branches)
    plan = next(iter(branches.values())).plan if branches else _plan(options)
    for name, num_features in tables.items():
        branches[name] = TabularBranch(num_features, plan, dtype=options.dtype, rngs=rngs)
    return DRIFANet(
        branches,
        description.tasks,
        options=options,
        rngs=rngs,
        normalisations={
            m: described.normalisation for m, described in description.modalities.items()
        },
    )


def _branch(description: NetworkDescription, name: str, rngs: nnx.Rngs) -> Backbone:
    """The backbone of a modality of pictures or volumes."""
    modality, backbone = description.modalities[name], description.backbone_of(name)
    field = f"data.modalities.{name}.backbone" if modality.backbone else "model.backbone"
    make = registered(BACKBONES, field, backbone)
    shared = {"options": description.options, "rngs": rngs}
    if modality.slice_attention:
        return over_slices(make(modality.channels, **shared), **shared)
    if modality.kind != "volume":
        return make(modality.channels, **shared)
    if backbone not in VOLUME_BACKBONES:
        raise ValueError(
            f"{field} is {backbone!r}, which has no form for volumes, as those of {name}. Let it "
            f"read their slices, data.modalities.{name}.slice_attention=true, or choose one of "
            f"{sorted(VOLUME_BACKBONES)}."
        )
    return make(modality.channels, num_axes=3, **shared)


def drifa_net(
    modalities: Mapping[str, int],
    tasks: Mapping[str, int],
    *,
    options: NetworkOptions = PAPER,
    tables: Mapping[str, int] | None = None,
    rngs: nnx.Rngs,
) -> DRIFANet:
    """The paper's network: a backbone for each modality.

        >>> import jax
        >>> from flax import nnx
        >>> options = NetworkOptions(width=4, backbone="resnet10")
        >>> net = drifa_net(
        ...     {"mri": 1, "ct": 1}, {"tumour": 4}, options=options,
        ...     rngs=nnx.Rngs(params=jax.random.key(0)),
        ... )
        >>> images = {"mri": jax.numpy.ones([2, 64, 64, 1]), "ct": jax.numpy.ones([2, 32, 48, 1])}
        >>> logits, _ = nnx.jit(lambda net, images: net(images, train=False))(net, images)
        >>> logits["tumour"].shape
        (2, 4)

    Args:
      modalities: modality -> channels of its images.
      tasks: task -> number of classes.
      options: width, backbone, dropout and parts of the attention.
      tables: tabular modality -> its number of features.
      rngs: key of the initial weights.
    """
    described = {m: ModalityDescription(c) for m, c in modalities.items()}
    described |= {m: ModalityDescription(n, "table") for m, n in (tables or {}).items()}
    return build_module(NetworkDescription(described, tasks, options), rngs)


def head_features(description: NetworkDescription) -> dict[str, int]:
    """Modality -> features of its pooled vector, which the heads read; nothing is computed."""
    return _declared(lambda rngs: build_module(description, rngs).num_features)


def declared_plans(description: NetworkDescription) -> dict[str, tuple[Stage, ...]]:
    """Modality -> stages of its branch; nothing is computed."""
    return _declared(lambda rngs: build_module(description, rngs).plans)


def declared_roles(description: NetworkDescription) -> dict[str, Any]:
    """The role of every parameter, by its names; nothing is computed."""
    return _declared(lambda rngs: parameter_roles(build_module(description, rngs)))


def _check_width(options: NetworkOptions, branches: Mapping[str, Backbone]) -> None:
    """Refuses a width that no branch would take, so that nobody believes that it did."""
    if (
        branches
        and options.width != PAPER.width
        and not any(getattr(branch, "takes_width", False) for branch in branches.values())
    ):
        raise ValueError(
            f"model.width is {options.width}, but the backbone has a width of its own; set "
            f"model.width to {PAPER.width}, the default, or choose a ResNet."
        )


def branches_that_skip(description: NetworkDescription) -> frozenset[str]:
    """The modalities whose backbones can skip blocks in training; nothing is computed."""
    return _declared(
        lambda rngs: frozenset(
            name
            for name, branch in build_module(description, rngs).branches.items()
            if isinstance(branch, SkippingBackbone)
        )
    )


def _plan(options: NetworkOptions) -> tuple[Stage, ...]:
    """The stages of the network's backbone, for tables without an image beside them."""
    make = registered(BACKBONES, "model.backbone", options.backbone)
    return _declared(lambda rngs: make(1, options=options, rngs=rngs).plan)


def _declared(build: Callable[[nnx.Rngs], Any]) -> Any:
    """What a module says of itself, from shapes alone."""
    found = []
    jax.eval_shape(lambda key: found.append(build(initial_rngs(key))), jax.random.key(0))
    return found[0]
