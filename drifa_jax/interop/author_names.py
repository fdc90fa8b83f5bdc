"""The authors' parts by name: `branch_0/rra_2/mfa1/hifa/conv1/kernel` and so on.

The authors' notebooks number modalities, blocks and heads. These names stand between their
Keras files and our tree, and label the golden numbers that the tests compare with.
"""

from __future__ import annotations

from drifa_jax.errors import UserError
from drifa_jax.interop.network_files import shapes
from drifa_jax.interop.tensors import Slot, same_slot
from drifa_jax.models.description import NetworkDescription
from drifa_jax.network_options import PAPER

_PARTS = {
    "norm": "bn",
    "norm1": "bn1",
    "norm2": "bn2",
    "projection": "proj",
    "projection_norm": "proj_bn",
    "hifa_scale": "global_scale",
    "clia_scale": "local_scale",
    "mgifa_scale": "global_scale",
    "mlifa_scale": "local_scale",
}
_NORM_LEAVES = {
    "scale": "gamma",
    "bias": "beta",
    "mean": "moving_mean",
    "var": "moving_variance",
}


def author_slots(network: NetworkDescription) -> list[Slot]:
    """Slots of the authors' weights, in Keras' layout (NHWC, 1x1 convolutions with four axes)."""
    if network.options.readout != "concatenate":
        raise UserError(
            f"The authors' networks have no readout {network.options.readout!r}, only "
            "'concatenate'."
        )
    if network.options.read_stages != PAPER.read_stages:
        raise UserError(
            "The heads of the authors' networks read the last stage; model.read_stages is "
            f"{network.options.read_stages!r}."
        )
    return [
        part_slot(path, author_name(path, network), shape)
        for path, shape in shapes(network).items()
    ]


def part_slot(path: str, name: str, our_shape: tuple[int, ...]) -> Slot:
    """The slot of one tensor under one of the authors' names."""
    return same_slot(path, name, our_shape, _author_shape(name, our_shape))


def author_name(path: str, network: NetworkDescription) -> str:
    """The authors' name of one of our paths."""
    kind, *rest = path.split("/")
    modalities = list(network.modalities)
    if kind == "heads":
        return f"head_{list(network.tasks).index(rest[0])}/{rest[-1]}"
    if kind == "branches":
        modality, where, *rest = rest
        if where == "stages":
            stage, *rest = rest
            where = f"rra_{stage.removeprefix('stage_')}"
        return f"branch_{modalities.index(modality)}/{where}/{author_leaf(rest, modalities)}"
    stage, part, *rest = rest
    number = stage.removeprefix("stage_")
    if part == "mfa":
        return f"branch_{modalities.index(rest[0])}/mfa_{number}/{author_leaf(rest[1:], ())}"
    return f"mifa_{number}/{author_leaf(rest, modalities)}"


def author_leaf(parts: list[str], modalities: list[str] | tuple[str, ...]) -> str:
    """The authors' name inside one MFA, MIFA or RRA block; modalities are numbered."""
    if len(parts) > 1 and "norm" in parts[-2]:
        parts = [*parts[:-1], _NORM_LEAVES[parts[-1]]]
    if parts[0] == "alpha" and len(parts) == 2:
        return f"alpha_{modalities.index(parts[1])}"
    if parts[:2] == ["mlifa", "convs"]:
        return f"mlifa/conv_{modalities.index(parts[2])}/{parts[3]}"
    return "/".join(_PARTS.get(part, part) for part in parts)


def _author_shape(name: str, our_shape: tuple[int, ...]) -> tuple[int, ...]:
    *_, parent, leaf = ("", *name.split("/"))
    if "scale" in leaf or leaf.startswith("alpha"):
        return (1,) * (4 - len(our_shape)) + our_shape
    is_pointwise = parent.startswith("conv") and leaf == "kernel"
    return (1, 1, *our_shape) if is_pointwise and len(our_shape) == 2 else our_shape
