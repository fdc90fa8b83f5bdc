"""From a checkpoint to the tensors of one branch, strictly, and to what its pixels go through."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from drifa_jax.errors import UserError
from drifa_jax.interop.checkpoint_names import checkpoint_slots
from drifa_jax.interop.pretrained.checkpoint import Checkpoint
from drifa_jax.interop.pretrained.dialects import Dialect, dialect_of
from drifa_jax.interop.tensors import Tensors, flatten, read_slots
from drifa_jax.models.functional import Functional
from drifa_jax.models.pixels import Normalisation
from drifa_jax.models.registry import BACKBONES, registered
from drifa_jax.network_options import NetworkOptions


def branch_tensors(
    checkpoint: Checkpoint, backbone: str, num_channels: int, options: NetworkOptions, modality: str
) -> Tensors:
    """Path inside a branch -> array, for every tensor of its backbone.

    Args:
      checkpoint: what was trained elsewhere.
      backbone: its name here.
      num_channels: of the modality's images; the first convolution is adapted to them.
      options: of the network.
      modality: for messages.

    Raises:
      UserError: for another family, width or layer constants, with the tensors that differ.
    """
    dialect = dialect_of(checkpoint)
    _check_family(checkpoint, dialect, backbone, modality)
    _check_options(checkpoint, dialect, options)
    state = dialect.prepare(dialect.strip(checkpoint.tensors))
    shapes = backbone_shapes(backbone, num_channels, options)
    colours = {**shapes, dialect.first: (*shapes[dialect.first][:-2], 3, shapes[dialect.first][-1])}
    slots = checkpoint_slots(colours, dialect.naming, state)
    try:
        tensors = read_slots(state, slots, f"{checkpoint.source} (branch {modality})")
    except UserError as error:
        fitting = [name for name in _family(dialect) if _fits(name, state, dialect, options)]
        cure = (
            f"\nIt fits model.backbone={fitting[0]} (of one modality: data.modalities.{modality}"
            ".backbone)."
            if fitting and fitting[0] != backbone
            else ""
        )
        raise UserError(f"{error}{cure}") from error
    statistics = stated_normalisation(checkpoint)
    tensors[dialect.first] = adapted(tensors[dialect.first], num_channels, statistics)
    return tensors


def stated_normalisation(checkpoint: Checkpoint) -> Normalisation:
    """What the pixels of three channels went through; of its family where it does not say."""
    return checkpoint.normalisation or dialect_of(checkpoint).normalisation


def normalisation_for(stated: Normalisation, num_channels: int) -> Normalisation:
    """Of a modality with another number of channels: the means, or the colours in turn."""
    if num_channels == len(stated.mean):
        return stated
    if num_channels == 1:
        mean, std = (float(np.mean(values)) for values in (stated.mean, stated.std))
        return Normalisation((mean,), (std,))
    turns = [k % len(stated.mean) for k in range(num_channels)]
    return Normalisation(*(tuple(v[k] for k in turns) for v in (stated.mean, stated.std)))


def adapted(kernel: np.ndarray, num_channels: int, stated: Normalisation) -> np.ndarray:
    """A first kernel `[*window, 3, out]` for images of another number of channels.

    Grey images take the sum over colours, each weighted by its deviation over the one that grey
    pixels are divided by: a grey image and itself in all three colours then differ by a constant,
    which is zero where the colours share one mean. More channels repeat the colours in turn,
    scaled so that the response to a constant image stays.
    """
    num_colours = kernel.shape[-2]
    if num_channels == num_colours:
        return kernel
    if num_channels == 1:
        (std,) = normalisation_for(stated, 1).std
        shares = np.asarray([std / own for own in stated.std], kernel.dtype)
        return (kernel * shares[:, None]).sum(-2, keepdims=True)
    repeated = kernel[..., np.arange(num_channels) % num_colours, :]
    return repeated * np.asarray(num_colours / num_channels, kernel.dtype)


def backbone_shapes(
    backbone: str, num_channels: int, options: NetworkOptions
) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter and statistic of a backbone alone."""
    make = registered(BACKBONES, "model.backbone", backbone)
    alone = Functional(lambda rngs: make(num_channels, options=options, rngs=rngs))
    trees = flatten(alone.abstract_params), flatten(alone.abstract_statistics)
    return {path: tuple(leaf.shape) for tree in trees for path, leaf in tree.items()}


def _family(dialect: Dialect) -> list[str]:
    return [name for name in BACKBONES if re.fullmatch(dialect.backbones, name)]


def _check_family(checkpoint: Checkpoint, dialect: Dialect, backbone: str, modality: str) -> None:
    if not re.fullmatch(dialect.backbones, backbone):
        raise UserError(
            f"{checkpoint.source} is a {dialect.name}, but the backbone of {modality} is "
            f"{backbone!r}. Set model.backbone (or data.modalities.{modality}.backbone) to one of "
            f"{', '.join(_family(dialect))}, or start this modality afresh with "
            f"data.modalities.{modality}.pretrained=none."
        )


def _check_options(checkpoint: Checkpoint, dialect: Dialect, options: NetworkOptions) -> None:
    needed = dict(dialect.options)
    if "batch_norm_epsilon" in needed and "batch_norm_eps" in checkpoint.declared:
        needed["batch_norm_epsilon"] = checkpoint.declared["batch_norm_eps"]
    for name, value in needed.items():
        if getattr(options, name) != value:
            raise UserError(
                f"{checkpoint.source}: {dialect.name} was trained with {name} {value!r}, but "
                f"model.{name} is {getattr(options, name)!r}, which gives other features. Set "
                f"model.{name}={value}."
            )


def _fits(name: str, state: Mapping[str, np.ndarray], dialect: Dialect, options) -> bool:
    slots = checkpoint_slots(backbone_shapes(name, 3, options), dialect.naming, state)
    return {slot.name: slot.shape for slot in slots} == {k: x.shape for k, x in state.items()}
