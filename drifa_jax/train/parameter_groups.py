"""Which parameters are trained, and how: the one place that reads roles for the optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax

from drifa_jax.config import RateScales, TrainConfig
from drifa_jax.errors import UserError
from drifa_jax.models.building import declared_roles
from drifa_jax.models.description import NetworkDescription
from drifa_jax.models.parameter_roles import ATTENTION, BACKBONE, HEAD, Role

ALL_BRANCHES = "branches"
"""In `train.frozen`: every modality but tables, whose branches start from nothing."""


@dataclass(frozen=True)
class ParameterGroups:
    """How each parameter is trained; without arguments, all alike.

    A part of a tree has its structure, and None in the place of leaves that do not belong to it,
    which JAX passes over.

    Attributes:
      frozen: modalities whose branches stay as they are.
      trainable: a bool for each parameter, or None where all are trained.
      embeddings: of the trained part, a bool for each parameter, whether it is none of a map's
        weights though it is shaped like them; None where there is no such, or no decay.
      rate_scales: of the trained part, what each parameter's learning rate is multiplied by; None
        where it is 1 everywhere.
    """

    frozen: frozenset[str] = frozenset()
    trainable: Any = None
    embeddings: Any = None
    rate_scales: Any = None

    def trained(self, params: Any) -> Any:
        """The part of a tree of parameters that is trained."""
        if self.trainable is None:
            return params
        return _part(self.trainable, params)

    def trained_statistics(self, statistics: Any) -> Any:
        """The part of a tree of batch statistics that is not of frozen branches."""
        branches = statistics.get("branches", {})
        frozen = {m: jax.tree.map(lambda _: None, branches[m]) for m in self.frozen & set(branches)}
        return statistics | {"branches": branches | frozen} if frozen else statistics

    def trains_branches(self, modalities: Iterable[str]) -> bool | dict[str, bool]:
        """Whether each branch is in training, as a network is told: frozen ones predict."""
        return {m: m not in self.frozen for m in modalities} if self.frozen else True


ALL_ALIKE = ParameterGroups()


def part_like(part: Any, whole: Any) -> Any:
    """The leaves of a tree that another one has a leaf for; None has none."""
    return jax.tree.map(
        lambda leaf, of_whole: None if leaf is None else of_whole,
        part,
        whole,
        is_leaf=lambda leaf: leaf is None,
    )


def completed(part: Any, whole: Any) -> Any:
    """A part of a tree with what it lacks taken from the whole; None lacks everything."""
    return jax.tree.map(
        lambda leaf, of_whole: of_whole if leaf is None else leaf,
        part,
        whole,
        is_leaf=lambda leaf: leaf is None,
    )


def parameter_groups(description: NetworkDescription, train: TrainConfig) -> ParameterGroups:
    """The groups that a configuration asks for.

    A backbone's layer has the rate scale `backbone * layer_decay ** n`, where n is 1 for its last
    layer and rises towards the pixels; attention and heads have their own scales.

    Raises:
      UserError: when `train.frozen` names no modality, nothing is left to be trained, or
        `train.layer_decay` is asked of a backbone that declares no layers.

    Source: Clark et al., "ELECTRA", ICLR 2020 (layer-wise decay); Loshchilov and Hutter, "Decoupled
    weight decay regularization", ICLR 2019.
    """
    frozen = _frozen(train.frozen, description)
    scales = train.rate_scales
    scaled = scales != RateScales() or train.layer_decay != 1.0
    if not (frozen or scaled or train.weight_decay):
        return ALL_ALIKE
    roles = declared_roles(description)
    trainable = None
    if frozen:
        trainable = _each(lambda role: role.modality not in frozen, roles)
        roles = _part(trainable, roles)
    if not _listed(roles):
        raise UserError(
            f"config: train.frozen is {list(train.frozen)}, which leaves nothing to train; the "
            "network has no parameters outside these branches."
        )
    if train.layer_decay != 1.0:
        _check_layers(description, train, _listed(roles))
    by_part = {BACKBONE: scales.backbone, ATTENTION: scales.attention, HEAD: scales.heads}
    embeds = train.weight_decay > 0 and any(role.embeds for role in _listed(roles))
    return ParameterGroups(
        frozen,
        trainable,
        _each(lambda role: role.embeds, roles) if embeds else None,
        _each(lambda role: by_part[role.part] * train.layer_decay**role.above, roles)
        if scaled
        else None,
    )


def _check_layers(description: NetworkDescription, train: TrainConfig, roles: list[Role]) -> None:
    without = {role.modality for role in roles if role.part == BACKBONE and not role.above}
    if without:
        listed = ", ".join(f"{m} ({description.backbone_of(m)})" for m in sorted(without))
        raise UserError(
            f"config: train.layer_decay is {train.layer_decay}, but these branches do not declare "
            f"their layers: {listed}. Leave it at 1, or give their backbones `parts_in_order`."
        )


def _frozen(named: tuple[str, ...], description: NetworkDescription) -> frozenset[str]:
    modalities = description.modalities
    for name in named:
        if name not in (*modalities, ALL_BRANCHES):
            raise UserError(
                f"config: train.frozen names {name!r}; give modalities, of "
                f"{', '.join(modalities)}, or {ALL_BRANCHES!r} for all but tables."
            )
    images = {name for name, modality in modalities.items() if modality.kind != "table"}
    return (frozenset(named) & set(modalities)) | (images if ALL_BRANCHES in named else set())


def _part(chosen: Any, whole: Any) -> Any:
    return jax.tree.map(lambda keeps, leaf: leaf if keeps else None, chosen, whole)


def _each(value_of: Callable[[Role], Any], roles: Any) -> Any:
    return jax.tree.map(value_of, roles)


def _listed(roles: Any) -> list[Role]:
    return jax.tree.leaves(roles)
