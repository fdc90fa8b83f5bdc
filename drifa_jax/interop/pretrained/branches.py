"""From a checkpoint to the tensors of one branch, strictly, and to what its pixels go through."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from flax import nnx

from drifa_jax.errors import UserError
from drifa_jax.interop.checkpoint_names import checkpoint_slots
from drifa_jax.interop.pretrained.checkpoint import Checkpoint
from drifa_jax.interop.pretrained.dialects import Dialect, dialect_of
from drifa_jax.interop.tensors import Slot, Tensors, flatten, read_slots
from drifa_jax.models.backbones.contract import PlacedBackbone, TokenBackbone
from drifa_jax.models.functional import BatchStatistics, Functional, Parameters
from drifa_jax.models.pixels import Normalisation
from drifa_jax.models.registry import BACKBONES, registered
from drifa_jax.network_options import NetworkOptions
from drifa_jax.typing import FeatureMap, Images


def branch_tensors(
    checkpoint: Checkpoint, backbone: str, num_channels: int, options: NetworkOptions, modality: str
) -> tuple[Tensors, list[str]]:
    """Path inside a branch -> array, for every tensor of its backbone; and what changed on the way.

    Positions that were learned on another grid of patches are interpolated to the backbone's.

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
    module, shapes = _alone(backbone, num_channels, options)
    slots = _slots(shapes, dialect, state)
    state, grids = _on_its_grid(state, slots, module)
    notes = [
        f"{modality}: {checkpoint.source} has learned positions for {theirs} patches; they were "
        f"interpolated (bicubic) to the {ours} of {backbone}."
        for theirs, ours in grids
    ]
    try:
        tensors = read_slots(state, slots, f"{checkpoint.source} (branch {modality})")
    except UserError as error:
        raise UserError(f"{error}{_cure(backbone, state, dialect, options, modality)}") from error
    kernel = tensors[dialect.first]
    if (reads := kernel.shape[-2]) not in (3, num_channels):
        field = f"data.modalities.{modality}"
        cure = (
            f"Set {field}.channels=1" if reads == 1 else f"Take others, or {field}.pretrained=none"
        )
        raise UserError(
            f"{checkpoint.source}: its first convolution reads {reads} channel{'s' * (reads > 1)}, "
            f"and {field}.channels is {num_channels}; only colour weights (3) can be adapted to "
            f"another number. {cure}."
        )
    statistics = normalisation_for(stated_normalisation(checkpoint), kernel.shape[-2])
    tensors[dialect.first] = adapted(kernel, num_channels, statistics)
    zeros = [path for path in shapes if re.fullmatch(dialect.zero, path)]
    return tensors | {path: np.zeros(shapes[path], np.float32) for path in zeros}, notes


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
    return _alone(backbone, num_channels, options)[1]


def _alone(
    backbone: str, num_channels: int, options: NetworkOptions
) -> tuple[nnx.Module, dict[str, tuple[int, ...]]]:
    """A backbone alone, without values, and `backbone_shapes`."""
    make, built = registered(BACKBONES, "model.backbone", backbone), []

    def build(rngs):
        built.append(make(num_channels, options=options, rngs=rngs))
        return built[-1]

    alone = Functional(build)
    trees = flatten(alone.abstract_params), flatten(alone.abstract_statistics)
    return built[0], {path: tuple(leaf.shape) for tree in trees for path, leaf in tree.items()}


def stage_maps(
    backbone: str,
    options: NetworkOptions,
    params: Parameters,
    statistics: BatchStatistics,
    images: Images,
) -> dict[str, FeatureMap]:
    """`stem` and `stage_<k>` `[b, *space, c]` of a backbone alone, from normalised images."""
    make, built = registered(BACKBONES, "model.backbone", backbone), []

    def build(rngs):
        built.append(make(images.shape[-1], options=options, rngs=rngs))
        return built[-1]

    branch = Functional(build)

    def call(method: str, *arguments):
        return branch.apply(params, statistics, *arguments, train=False, method=method)[0]

    stages = range(len(built[0].plan))
    if isinstance(built[0], TokenBackbone):
        states = [call("stem_with_tokens", images)]
        for number in stages:
            states.append(call("stage_with_tokens", number, *states[-1]))
        stem, *maps = (placed for placed, _ in states)
    else:
        stem = call("stem", images)
        maps = [call("stage", 0, stem)]
        for number in stages[1:]:
            maps.append(call("stage", number, maps[-1]))
    return {"stem": stem, **{f"stage_{k}": x for k, x in enumerate(maps)}}


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
    for name, value in dialect.options(checkpoint.declared).items():
        if getattr(options, name) != value:
            raise UserError(
                f"{checkpoint.source}: {dialect.name} was trained with {name} {value!r}, but "
                f"model.{name} is {getattr(options, name)!r}, which gives other features. Set "
                f"model.{name}={value}."
            )


def _slots(shapes: Mapping[str, Sequence[int]], dialect: Dialect, state: Tensors) -> list[Slot]:
    """Slots of all that a file holds; the first convolution has as many channels as the file's."""
    absent = f"{dialect.drawn}|{dialect.zero}"
    read = {path: shape for path, shape in shapes.items() if not re.fullmatch(absent, path)}
    *window, _, num_out = read[dialect.first]
    (first,) = checkpoint_slots({dialect.first: read[dialect.first]}, dialect.naming, state)
    num_channels = state[first.name].shape[1] if np.ndim(state.get(first.name, 0)) > 1 else 3
    read[dialect.first] = (*window, num_channels, num_out)
    return checkpoint_slots(read, dialect.naming, state)


def _on_its_grid(
    state: Tensors, slots: Sequence[Slot], module: nnx.Module
) -> tuple[Tensors, list[tuple[str, str]]]:
    """The file's tensors with positions on the backbone's grid, and the two grids that differed.

    Positions that cannot be brought there stay, and are refused with all else that differs.
    """
    slot = next((slot for slot in slots if slot.path == "positions"), None)
    if slot is None or slot.name not in state or not isinstance(module, PlacedBackbone):
        return state, []
    found = state[slot.name]
    if found.ndim < 2 or found.shape == slot.shape or found.shape[-1] != slot.shape[-1]:
        return state, []
    try:
        fitted = module.fitted_positions(found.reshape(found.shape[-2:]).astype(np.float32))
    except ValueError:
        return state, []
    theirs, ours = (math.isqrt(shape[-2]) for shape in (found.shape, slot.shape))
    grids = [(f"{theirs} x {theirs}", f"{ours} x {ours}")]
    return state | {slot.name: fitted.reshape(slot.shape)}, grids


def _cure(
    backbone: str, state: Tensors, dialect: Dialect, options: NetworkOptions, modality: str
) -> str:
    """Which backbone the tensors fit, or what no backbone has; empty where the shapes are right."""
    widths = sorted({options.width, NetworkOptions().width})
    for width, name in itertools.product(widths, _family(dialect)):
        other = dataclasses.replace(options, width=width)
        module, shapes = _alone(name, 3, other)
        slots = _slots(shapes, dialect, state)
        fitted, _ = _on_its_grid(state, slots, module)
        if {slot.name: slot.shape for slot in slots} == {n: x.shape for n, x in fitted.items()}:
            if name == backbone and width == options.width:
                return ""
            wider = f" and model.width={width}" if width != options.width else ""
            return (
                f"\nIt fits model.backbone={name}{wider} (of one modality: data.modalities."
                f"{modality}.backbone)."
            )
    told = f"No backbone here has these shapes, {backbone} has others."
    for slot in _slots(backbone_shapes(backbone, 3, options), dialect, state):
        found = getattr(state.get(slot.name), "shape", slot.shape)
        if slot.path == "positions" and found != slot.shape:
            told = (
                f"{slot.name} {found} holds positions of no square grid of patches, which cannot "
                f"be interpolated to those of {backbone}."
            )
        elif slot.path == dialect.first and found[2:] != slot.shape[2:]:
            theirs, ours = (" x ".join(map(str, shape[2:])) for shape in (found, slot.shape))
            told = f"Its first convolution sees {theirs} pixels at once, that of {backbone} {ours}."
            break
    return (
        f"\n{told} Use another checkpoint, or start this modality afresh with "
        f"data.modalities.{modality}.pretrained=none."
    )
