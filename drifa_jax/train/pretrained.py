"""Branches that start from weights trained elsewhere, and pixels as those weights expect them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from drifa_jax.config import Config
from drifa_jax.data.record import ModalitySpec, VolumeSpec
from drifa_jax.errors import UserError
from drifa_jax.models.description import (
    NETWORK_FILE,
    ModalityDescription,
    NetworkDescription,
    describe_network,
    load_description,
)

AFRESH = "none"


def pretrained_of(config: Config) -> dict[str, tuple[str, str]]:
    """Modality -> where its weights are and the field that says so, of pretrained modalities."""
    kept = config.data.only_modalities or tuple(config.data.modalities)
    found = {}
    for name, modality in config.data.modalities.items():
        field = f"data.modalities.{name}.pretrained" if modality.pretrained else "train.pretrained"
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
    if saved is not None:
        asked = {m: at for m, at in pretrained.items() if pretrained_of(saved).get(m) == at}
        stated, notes = {m: saved.data.modalities[m] for m in asked}, []
    elif pretrained:
        stated, notes = _read(config, pretrained)
    else:
        stated, notes = _of_folder(config.train.initial_weights), []
    modalities = {
        name: dataclasses.replace(modality, mean=stated[name].mean, std=stated[name].std)
        if name in stated and not modality.mean
        else modality
        for name, modality in config.data.modalities.items()
    }
    data = dataclasses.replace(config.data, modalities=modalities)
    return dataclasses.replace(config, data=data), notes


def _read(config: Config, pretrained: Mapping[str, tuple[str, str]]):
    """The pretrained modalities as their weights expect them, and what to say; all is checked."""
    # Imported here: only runs that bring weights along need the interop extra.
    from drifa_jax.interop.pretrained.networks import filled

    specs = []
    for name in pretrained:
        at = config.data.modalities[name]
        sides = (at.height, at.width, at.channels)
        specs.append(VolumeSpec(name, at.depth, *sides) if at.depth else ModalitySpec(name, *sides))
    # Of the tasks nothing is known yet, and branches do not depend on them.
    network, _, notes = filled(describe_network(config, specs, {"any": 1}), pretrained)
    return network.modalities, notes


def _of_folder(initial_weights: str) -> Mapping[str, ModalityDescription]:
    """The modalities of the network that a run starts from, if any."""
    if not initial_weights:
        return {}
    folder = initial_weights_file(initial_weights).parent
    return load_description(folder).modalities if (folder / NETWORK_FILE).is_file() else {}


def initial_weights_file(folder: str) -> Path:
    """The file with the weights in the folder that `train.initial_weights` names.

    Raises:
      UserError: where there is none.
    """
    # Imported here: only runs that bring weights along need the interop extra.
    from drifa_jax.interop.network_files import WEIGHTS_FILE

    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        lacks = f"holds no {WEIGHTS_FILE}" if path.parent.is_dir() else "is no folder"
        raise UserError(
            f"config: train.initial_weights is {folder!r}, which {lacks}; give a folder written "
            "by `drifa convert`."
        )
    return path


def pretrained_tensors(config: Config, network: NetworkDescription) -> dict[str, np.ndarray]:
    """Path -> array of every branch that starts from weights trained elsewhere."""
    sources = {m: at for m, at in pretrained_of(config).items() if m in network.modalities}
    if not sources:
        return {}
    from drifa_jax.interop.pretrained.networks import filled

    return filled(network, sources)[1]


def replaced(tree, tensors: Mapping[str, np.ndarray]):
    """A tree of parameters or statistics with some leaves replaced; members `[e, ...]` alike."""

    def leaf_of(path, leaf):
        name = "/".join(str(key.key) for key in path)
        return np.broadcast_to(tensors[name], leaf.shape) if name in tensors else leaf

    return jax.tree_util.tree_map_with_path(leaf_of, tree)
