"""What each parameter of a network is for, as its modules declare it.

Training treats parameters by their role: it freezes branches, gives a backbone's first layers
smaller steps than its heads, and lets no weight decay pull embeddings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from flax import nnx

from drifa_jax.models.backbones.contract import LayeredBackbone
from drifa_jax.models.backbones.slice_attention import SlicePooling
from drifa_jax.models.drifa_net import DRIFANet
from drifa_jax.models.embedding import Embedding
from drifa_jax.models.mfa import MFA

BACKBONE, ATTENTION, HEAD = PARTS = ("backbone", "attention", "head")


@dataclass(frozen=True)
class Role:
    """The role of one parameter.

    Attributes:
      part: of `PARTS`. MFA and the attention to slices are attention inside a branch as well.
      modality: whose branch it is in; empty outside branches, and of the attention to slices, which
        follows a backbone: where the branch is frozen, it still has to be learnt.
      above: layers of its backbone from its own to the heads, itself included: 1 in the last
        layer. 0 outside backbones, and in those that declare no layers.
      embeds: whether it is an `Embedding`.
    """

    part: str
    modality: str = ""
    above: int = 0
    embeds: bool = False


def parameter_roles(network: DRIFANet) -> dict[str, Any]:
    """The role of every parameter, in nested dicts of the names that the parameters have.

    Only types and shapes are read, so the arrays may be tracers.
    """
    roles = {}
    for modality, branch in network.branches.items():
        attention = {
            id(parameter): Role(ATTENTION, modality if isinstance(module, MFA) else "")
            for _, module in nnx.iter_graph(branch)
            if isinstance(module, MFA | SlicePooling)
            for parameter in _parameters((module,))
        }
        above = {}
        if isinstance(branch, LayeredBackbone):
            layers = branch.parts_in_order()
            above = {
                id(parameter): len(layers) - number
                for number, parts in enumerate(layers)
                for parameter in _parameters(parts)
            }
        for parameter in _parameters((branch,)):
            if id(parameter) in attention:
                roles[id(parameter)] = attention[id(parameter)]
            else:
                steps = above.get(id(parameter), 0)
                embeds = isinstance(parameter, Embedding)
                roles[id(parameter)] = Role(BACKBONE, modality, steps, embeds)
    of_heads = [network.heads] + ([] if network.reading is None else [network.reading])
    for part, modules in ((ATTENTION, [network.fusion]), (HEAD, of_heads)):
        for parameter in _parameters(modules):
            roles[id(parameter)] = Role(part, embeds=isinstance(parameter, Embedding))
    nested: dict[str, Any] = {}
    for path, parameter in nnx.iter_graph(network):
        if isinstance(parameter, nnx.Param):
            *parents, name = path
            group = nested
            for parent in parents:
                group = group.setdefault(parent, {})
            group[name] = roles[id(parameter)]
    return nested


def _parameters(parts: Iterable[Any]) -> Iterator[nnx.Param]:
    for part in parts:
        for _, node in nnx.iter_graph(part):
            if isinstance(node, nnx.Param):
                yield node
