"""The program of an exported file, from the network's description and its weights.

`export` writes it, and a file whose program has expired gets it anew (`rebuilt`): JAX promises to
read a program for six months of its own releases, while a description is read by every later
release of this package.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from drifa_jax.errors import UserError
from drifa_jax.models.building import build_network
from drifa_jax.models.description import NetworkDescription
from drifa_jax.models.functional import Functional
from drifa_jax.predict.predictor import fused_features
from drifa_jax.uncertainty.mc_dropout import make_sampler

PLATFORMS = ("cpu", "cuda", "tpu")
PROMISED = datetime.timedelta(days=183)
"""For how long JAX promises to read a program, counted from the release that wrote it."""

SIDES = ("num_features", "depth", "height", "width", "channels")
"""Of a modality in a card, in the order of an array's axes."""


def program_of(
    network: Functional,
    leaves: Sequence[np.ndarray],
    modalities: Mapping[str, Mapping[str, Any]],
    *,
    num_samples: int,
    may_lack_modalities: bool,
    with_features: bool,
) -> jax.export.Exported:
    """Samples (and fused features) of any number of records, for cpu, cuda and tpu.

    The weights are arguments, so that a file holds them once.

    Args:
      network: the functional core.
      leaves: of parameters and statistics, each with the axis `e` of members.
      modalities: as in a card.
      num_samples: of each member.
      may_lack_modalities: whether presence is read.
      with_features: whether fused features are answered as well.
    """
    # One sample a pass: the program cannot know the memory of the machine that runs it.
    sampler = make_sampler(network, num_samples=num_samples, samples_per_pass=1)
    structure = jax.tree.structure((network.abstract_params, network.abstract_statistics))

    def program(leaves, pixels, present, words, key_data):
        state = jax.tree.unflatten(structure, leaves)
        key = jax.random.wrap_key_data(key_data, impl="threefry2x32")
        held = present if may_lack_modalities else None
        samples = sampler(*state, pixels, key, words, None, held)
        if not with_features:
            return samples
        return samples, fused_features(network, *state, pixels, held)

    (count,) = jax.export.symbolic_shape("b")
    read = {}
    for name, sides in modalities.items():
        shape = (count, *(sides[side] for side in SIDES if side in sides))
        dtype = jnp.float32 if "num_features" in sides else jnp.uint8
        read[name] = jax.ShapeDtypeStruct(shape, dtype)
    return jax.export.export(jax.jit(program), platforms=PLATFORMS)(
        [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves],
        read,
        {name: jax.ShapeDtypeStruct((count,), jnp.bool_) for name in modalities},
        jax.ShapeDtypeStruct((count, 2), jnp.uint32),
        jax.ShapeDtypeStruct((2,), jnp.uint32),
    )


def leaf_names(network: Functional) -> list[str]:
    """Names of all leaves of parameters and statistics, in their order in a file."""
    described = (network.abstract_params, network.abstract_statistics)
    return [
        jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(described)
    ]


def facts_of(program: jax.export.Exported) -> dict[str, Any]:
    """What a card says of its program: who can read it, and until about when."""
    today = datetime.datetime.now(datetime.UTC).date()
    return {
        "jax": jax.__version__,
        "calling_convention": program.calling_convention_version,
        "written_on": today.isoformat(),
        "readable_until_about": (today + PROMISED).isoformat(),
        "readable_by": f"JAX {jax.__version__} always, and releases of up to six months after it; "
        "later, `drifa export --refresh` writes the program anew",
    }


def rebuilt(card: Mapping[str, Any], leaves: Sequence[np.ndarray]) -> jax.export.Exported:
    """The program of a card, from its description of the network.

    Raises:
      UserError: where this release builds another network, or the card describes none.
    """
    if "network" not in card:
        raise UserError(
            "the file was written by a release that kept no description of the network; export "
            "its run again."
        )
    network = build_network(NetworkDescription.from_json(card["network"], "its network"))
    shapes = [
        leaf.shape
        for leaf in jax.tree.leaves((network.abstract_params, network.abstract_statistics))
    ]
    if leaf_names(network) != card["leaves"] or shapes != [leaf.shape[1:] for leaf in leaves]:
        raise UserError(
            "this release of drifa_jax builds other parameters than the file holds; it was "
            f"written by drifa_jax {card['versions']['drifa_jax']}."
        )
    return program_of(
        network,
        leaves,
        card["modalities"],
        num_samples=card["num_samples"],
        may_lack_modalities=card["may_lack_modalities"],
        with_features=card["out_of_distribution"] is not None,
    )
