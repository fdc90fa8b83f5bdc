"""Branches that start from weights trained elsewhere, and pixels as those weights expect them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from drifa_jax.config import Config, ModalityConfig
from drifa_jax.errors import UserError
from drifa_jax.models.description import NetworkDescription

AFRESH = "none"
PRETRAINED = "train.pretrained"


def pretrained_of(config: Config) -> dict[str, tuple[str, str]]:
    """Modality -> where its weights are and the field that says so, of pretrained modalities."""
    kept = config.data.only_modalities or tuple(config.data.modalities)
    found = {}
    for name, modality in config.data.modalities.items():
        field = f"data.modalities.{name}.pretrained" if modality.pretrained else PRETRAINED
        where = modality.pretrained or config.train.pretrained
        if name in kept and where not in ("", AFRESH):
            found[name] = (where, field)
    return found


def with_checkpoint_pixels(config: Config, saved: Config | None) -> tuple[Config, list[str]]:
    """The configuration with the mean and deviation that pretrained weights expect, and notes.

    They become fields of the modalities, so that they are saved with the run.

    Args:
      config: as it was asked for.
      saved: of the run that goes on, which has them and needs no pretrained file; or None.

    Raises:
      UserError: when weights cannot be read or belong to another network.
    """
    pretrained = pretrained_of(config)
    if not pretrained:
        return config, []
    modalities, notes = dict(config.data.modalities), []
    for name, (where, field) in pretrained.items():
        if saved is not None and pretrained_of(saved).get(name) == (where, field):
            before = saved.data.modalities[name]
            change = {} if modalities[name].mean else {"mean": before.mean, "std": before.std}
        else:
            change, said = _checked(config, name, modalities[name], where, field)
            notes += said
        modalities[name] = dataclasses.replace(modalities[name], **change)
    data = dataclasses.replace(config.data, modalities=modalities)
    return dataclasses.replace(config, data=data), notes


def _checked(
    config: Config, name: str, modality: ModalityConfig, where: str, field: str
) -> tuple[dict[str, tuple[float, ...]], list[str]]:
    """Mean and deviation for a modality whose weights were read and fit; and what to say."""
    from drifa_jax.interop.pretrained.branches import (
        branch_tensors,
        normalisation_for,
        stated_normalisation,
    )
    from drifa_jax.interop.pretrained.checkpoint import open_checkpoint

    backbone = modality.backbone or config.model.backbone
    checkpoint = open_checkpoint(where, backbone, field)
    branch_tensors(checkpoint, backbone, modality.channels, config.model, name)
    pixels = normalisation_for(stated_normalisation(checkpoint), modality.channels)
    notes = []
    size = (modality.height, modality.width)
    if checkpoint.size and checkpoint.size != size:
        notes.append(
            f"{name}: {checkpoint.source} was trained on {_by(checkpoint.size)} pixels; "
            f"data.modalities.{name} reads {_by(size)}."
        )
    if checkpoint.normalisation is None and not modality.mean:
        notes.append(
            f"{name}: {checkpoint.source} does not say what its pixels went through; the usual "
            f"mean {_few(pixels.mean)} and std {_few(pixels.std)} of its family are taken. Set "
            f"data.modalities.{name}.mean and .std where it was trained otherwise."
        )
    if modality.channels != 3:
        notes.append(f"{name}: the first convolution was adapted to {modality.channels} channels.")
    if modality.mean:
        if (modality.mean, modality.std) != (pixels.mean, pixels.std):
            notes.append(
                f"{name}: data.modalities.{name}.mean {_few(modality.mean)} and std "
                f"{_few(modality.std)} are kept; {checkpoint.source} was trained with "
                f"{_few(pixels.mean)} and {_few(pixels.std)}."
            )
        return {}, notes
    return {"mean": pixels.mean, "std": pixels.std}, notes


def pretrained_tensors(config: Config, description: NetworkDescription) -> dict[str, np.ndarray]:
    """Path -> array of every branch that starts from weights trained elsewhere."""
    from drifa_jax.interop.pretrained.branches import branch_tensors
    from drifa_jax.interop.pretrained.checkpoint import open_checkpoint

    tensors: dict[str, np.ndarray] = {}
    for name, (where, field) in pretrained_of(config).items():
        modality = description.modalities.get(name)
        if modality is None:
            continue
        if modality.kind != "image":
            raise UserError(
                f"config: {field} is {where!r}, but {name} is a {modality.kind}, and the weights "
                f"are those of images. Set data.modalities.{name}.pretrained={AFRESH}."
            )
        backbone = description.backbone_of(name)
        checkpoint = open_checkpoint(where, backbone, field)
        branch = branch_tensors(checkpoint, backbone, modality.channels, description.options, name)
        tensors |= {f"branches/{name}/{path}": array for path, array in branch.items()}
    return tensors


def replaced(trees: tuple, tensors: Mapping[str, np.ndarray]) -> tuple:
    """Parameters and statistics with some leaves replaced; members `[e, ...]` get the same."""

    def leaf_of(path, leaf):
        name = "/".join(str(key.key) for key in path)
        return np.broadcast_to(tensors[name], leaf.shape) if name in tensors else leaf

    return jax.tree_util.tree_map_with_path(leaf_of, trees)


def _by(size) -> str:
    return " x ".join(map(str, size))


def _few(values) -> str:
    return "(" + ", ".join(f"{value:.3f}" for value in values) + ")"
