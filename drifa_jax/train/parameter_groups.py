"""Which parameters are trained, and how: the one place that reads roles for the optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax

from drifa_jax.config import TrainConfig
from drifa_jax.errors import UserError
from drifa_jax.models.building import declared_roles
from drifa_jax.models.description import NetworkDescription
from drifa_jax.models.parameter_roles import Role

ALL_BRANCHES = "branches"
"""In `train.frozen`: every modality."""


@dataclass(frozen=True)
class ParameterGroups:
    """How each parameter is trained; without arguments, all alike.

    A part of a tree has its structure, and None in the place of leaves that do not belong to it,
    which JAX passes over.

    Attributes:
      frozen: modalities whose branches stay as they are.
      trainable: a bool for each parameter, or None where all are trained.
    """

    frozen: frozenset[str] = frozenset()
    trainable: Any = None

    def trained(self, params: Any) -> Any:
        """The part of a tree of parameters that is trained."""
        if self.trainable is None:
            return params
        return jax.tree.map(lambda trains, leaf: leaf if trains else None, self.trainable, params)

    def trains_branches(self, modalities: Iterable[str]) -> bool | dict[str, bool]:
        """Whether each branch is in training, as a network is told: frozen ones predict."""
        return {m: m not in self.frozen for m in modalities} if self.frozen else True


ALL_ALIKE = ParameterGroups()


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

    Raises:
      UserError: when `train.frozen` names no modality, or nothing is left to be trained.
    """
    frozen = _frozen(train.frozen, tuple(description.modalities))
    if not frozen:
        return ALL_ALIKE
    roles = declared_roles(description)
    trainable = _each(lambda role: role.modality not in frozen, roles)
    if not any(jax.tree.leaves(trainable)):
        raise UserError(
            f"config: train.frozen is {list(train.frozen)}, which leaves nothing to train; the "
            "network has no parameters outside these branches."
        )
    return ParameterGroups(frozen, trainable)


def _frozen(named: tuple[str, ...], modalities: tuple[str, ...]) -> frozenset[str]:
    for name in named:
        if name not in (*modalities, ALL_BRANCHES):
            raise UserError(
                f"config: train.frozen names {name!r}; give modalities, of "
                f"{', '.join(modalities)}, or {ALL_BRANCHES!r} for all of them."
            )
    return frozenset(modalities if ALL_BRANCHES in named else named)


def _each(value_of: Callable[[Role], Any], roles: Any) -> Any:
    return jax.tree.map(value_of, roles, is_leaf=lambda node: isinstance(node, Role))
