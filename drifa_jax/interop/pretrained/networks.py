"""Checkpoints into the branches of a described network, and what to tell the user about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from drifa_jax.errors import UserError
from drifa_jax.interop.pretrained.branches import (
    branch_tensors,
    normalisation_for,
    stated_normalisation,
)
from drifa_jax.interop.pretrained.checkpoint import Checkpoint, open_checkpoint
from drifa_jax.interop.tensors import Tensors
from drifa_jax.models.description import ModalityDescription, NetworkDescription
from drifa_jax.models.pixels import Normalisation

Sources = Mapping[str, tuple[str, str]]
"""Modality -> where its weights are, and the field or flag that says so."""


def filled(
    network: NetworkDescription, sources: Sources
) -> tuple[NetworkDescription, Tensors, list[str]]:
    """The network as its checkpoints expect it, path -> array of those branches, and notes.

    Mean and deviation that the description names itself are kept.

    Raises:
      UserError: naming file, tensor or field, and the cure.
    """
    modalities, tensors, notes = dict(network.modalities), {}, []
    for name, (where, field) in sources.items():
        modality, backbone = modalities[name], network.backbone_of(name)
        if modality.kind != "image" and not modality.slice_attention:
            raise UserError(
                f"{field} is {where!r}, but {name} is a {modality.kind}, and the weights are those "
                f"of images. Let them read slices (data.modalities.{name}.slice_attention=true), "
                f"or set data.modalities.{name}.pretrained=none."
            )
        checkpoint = open_checkpoint(where, backbone, field)
        branch, changes = branch_tensors(
            checkpoint, backbone, modality.channels, network.options, name
        )
        inside = f"branches/{name}" + "/slices" * modality.slice_attention
        tensors |= {f"{inside}/{path}": array for path, array in branch.items()}
        pixels, said = pixels_of(checkpoint, name, modality)
        modalities[name] = dataclasses.replace(modality, mean=pixels.mean, std=pixels.std)
        notes += said + changes
    return dataclasses.replace(network, modalities=modalities), tensors, notes


def pixels_of(
    checkpoint: Checkpoint, name: str, modality: ModalityDescription
) -> tuple[Normalisation, list[str]]:
    """What a modality's pixels go through, its own values first; and what to say of the pixels."""
    stated = normalisation_for(stated_normalisation(checkpoint), modality.channels)
    own = Normalisation(modality.mean, modality.std)
    field, notes = f"data.modalities.{name}", []
    if checkpoint.size and modality.size and tuple(checkpoint.size) != modality.size[-2:]:
        notes.append(
            f"{name}: {checkpoint.source} was trained on {_by(checkpoint.size)} pixels; {field} "
            f"reads {_by(modality.size[-2:])}."
        )
    if own.mean and own != stated:
        notes.append(
            f"{name}: {field}.mean {_few(own.mean)} and std {_few(own.std)} are kept; "
            f"{checkpoint.source} was trained with {_few(stated.mean)} and {_few(stated.std)}."
        )
    elif checkpoint.normalisation is None and not own.mean:
        notes.append(
            f"{name}: {checkpoint.source} does not say what its pixels went through; the usual "
            f"mean {_few(stated.mean)} and std {_few(stated.std)} of its family are taken. Set "
            f"{field}.mean and .std where it was trained otherwise."
        )
    if modality.channels != 3:
        notes.append(f"{name}: the first convolution was adapted to {modality.channels} channels.")
    return own if own.mean else stated, notes


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _few(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.3f}" for value in values) + ")"
