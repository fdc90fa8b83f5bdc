"""DRIFA around networks of one's own, in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
from flax import nnx

from drifa_jax.models.backbones.contract import Backbone
from drifa_jax.models.backbones.table import TabularBranch
from drifa_jax.models.drifa_net import DRIFANet
from drifa_jax.models.initial import initial_rngs
from drifa_jax.models.own_network import OwnNetwork, StageError
from drifa_jax.models.registry import BACKBONES, registered
from drifa_jax.network_options import PAPER, NetworkOptions

RGB = (224, 224, 3)


def with_drifa(
    branches: Mapping[str, nnx.Module | str],
    *,
    tasks: Mapping[str, int],
    stages: Sequence[str] | Mapping[str, Sequence[str]] = (),
    shapes: Mapping[str, Sequence[int]] | None = None,
    tables: Mapping[str, int] | None = None,
    options: NetworkOptions = PAPER,
    rngs: nnx.Rngs | None = None,
) -> DRIFANet:
    """A network of given branches, in which DRIFA steps in after their stages.

    Args:
      branches: modality -> any `nnx.Module` that is called with images `[b, *space, c]`, which is
        copied with its weights; or a name in `models.registry.BACKBONES`.
      tasks: task -> number of classes.
      stages: names of sub-modules of the modules, in the order of their calls, dots between levels;
        one list for all, or one of each modality.
      shapes: modality -> shape `(*space, c)` of one image; 224 x 224 x 3 where it is left out.
        Other sizes are read as well, other channels are not.
      tables: tabular modality -> its number of features.
      options: dropout, parts of the attention, `fuse_at` and so on.
      rngs: key of the initial weights of all that is new; None draws them from key 0.

    Raises:
      ValueError: for a module whose stages cannot be named, with the names to choose from; for an
        unknown backbone.

    See docs/tutorials/own_network.md.
    """
    rngs = initial_rngs(jax.random.key(0)) if rngs is None else rngs
    own = [m for m, branch in branches.items() if not isinstance(branch, str)]
    of_each = dict(stages) if isinstance(stages, Mapping) else dict.fromkeys(own, stages)
    if unknown := sorted({*of_each, *(shapes or {})} - set(branches)):
        raise ValueError(f"stages or shapes name {unknown}; the branches are {list(branches)}.")
    built: dict[str, Backbone] = {}
    for m, branch in branches.items():
        shape = (shapes or {}).get(m, RGB)
        try:
            if isinstance(branch, str):
                make = registered(BACKBONES, f"branches[{m!r}]", branch)
                built[m] = make(shape[-1], options=options, rngs=rngs)
            else:
                built[m] = OwnNetwork(branch, of_each.get(m, ()), shape)
        except StageError as error:
            raise StageError(f"branches[{m!r}]: {error}") from error
    for m, num_features in (tables or {}).items():
        plan = next(iter(built.values())).plan
        built[m] = TabularBranch(num_features, plan, dtype=options.dtype, rngs=rngs)
    return DRIFANet(built, tasks, options=options, rngs=rngs)
