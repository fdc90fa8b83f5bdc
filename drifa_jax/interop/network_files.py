"""A network on disk: `network.json` says what it is, `weights.safetensors` holds its numbers.

Three lines to bring weights along (here from the authors' Keras file):

    network = NetworkDescription({"a": 3, "b": 3}, {"cell": 5, "skin": 7}, NetworkOptions())
    tensors = read_keras("model.keras", network)
    params, statistics = assemble(network, tensors)

A directory that `save_network` wrote holds no code and depends on no framework.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from drifa_jax.data.readers import containers
from drifa_jax.errors import UserError
from drifa_jax.interop.tensors import Slot, Tensors, flatten, read_slots, same_slot, unflatten
from drifa_jax.models.building import build_network, head_features
from drifa_jax.models.description import (
    NetworkDescription,
    load_description,
    save_description,
)
from drifa_jax.models.functional import BatchStatistics, Functional, Parameters
from drifa_jax.models.registry import READOUTS
from drifa_jax.rng import stream
from drifa_jax.whole_files import written_whole

WEIGHTS_FILE, CHECKSUM = "weights.safetensors", "drifa_sha256"


def shapes(network: NetworkDescription) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter, then of every batch statistic."""
    return {path: tuple(leaf.shape) for tree in _abstract(network) for path, leaf in tree.items()}


def assemble(
    network: NetworkDescription, tensors: Mapping[str, np.ndarray], key: jax.Array | None = None
) -> tuple[Parameters, BatchStatistics]:
    """Parameter and statistics trees from path -> array.

    Args:
      network: what the tensors belong to.
      tensors: of every path, or of some when there is a key.
      key: of the initial values of absent tensors; None makes an absent tensor an error.
    """
    absent = [path for path in shapes(network) if path not in tensors]
    if absent and key is None:
        raise ValueError(f"no values for {absent[:5]} and no key to initialise them from.")
    tensors = dict(tensors)
    if absent and all(path.startswith("heads/") for path in absent):
        # A head alone needs no other part of the network.
        for task in sorted({path.split("/")[1] for path in absent}):
            tensors |= _initial_head(network, task, key)
    elif absent:
        params, statistics = build_network(network).init(key)
        initial = flatten(params) | flatten(statistics)
        tensors |= {path: initial[path] for path in absent}
    params, statistics = (
        unflatten({path: jnp.asarray(tensors[path]) for path in tree})
        for tree in _abstract(network)
    )
    return params, statistics


def _abstract(network: NetworkDescription) -> tuple[dict[str, Any], dict[str, Any]]:
    functional = build_network(network)
    return flatten(functional.abstract_params), flatten(functional.abstract_statistics)


def native_slots(network: NetworkDescription) -> list[Slot]:
    """Slots of our own weights file, whose names are the paths."""
    return [same_slot(path, path, shape, shape) for path, shape in shapes(network).items()]


def save_network(
    directory: str | Path,
    network: NetworkDescription,
    params: Parameters,
    statistics: BatchStatistics,
) -> None:
    """Writes `network.json` and `weights.safetensors`; nothing appears unless all is written.

    Raises:
      UserError: if the directory exists and holds anything.
    """
    from safetensors.numpy import save_file

    tensors = {
        path: np.asarray(value, order="C")
        for path, value in (flatten(params) | flatten(statistics)).items()
    }
    # The one place where a network is written checks what all converters promise.
    read_slots(tensors, native_slots(network), "the network to save")

    def write(folder: Path) -> None:
        save_description(folder, network)
        save_file(tensors, folder / WEIGHTS_FILE, metadata={CHECKSUM: _checksum(tensors)})

    write_directory(directory, write)


def load_network(
    directory: str | Path,
) -> tuple[Functional, Parameters, BatchStatistics, NetworkDescription]:
    """A network from a directory that `save_network` wrote."""
    directory = Path(directory)
    network = described(directory)
    weights = directory / WEIGHTS_FILE
    tensors = read_slots(read_safetensors(weights), native_slots(network), str(weights))
    return build_network(network), *assemble(network, tensors), network


def described(path: str | Path) -> NetworkDescription:
    """The description in a JSON file or a folder, checked to be of a network that can be built."""
    network = load_description(path)
    try:
        build_network(network)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return network


def read_safetensors(path: str | Path) -> Tensors:
    """Every tensor of a safetensors file, by name; pure data.

    Raises:
      UserError: when it is no whole safetensors file, or one of ours that was changed.
    """
    tensors, metadata = containers.read_safetensors(path)
    if metadata.get(CHECKSUM, wanted := _checksum(tensors)) != wanted:
        raise UserError(f"{path}: its weights are not what was written; copy or convert it again.")
    return tensors


def _checksum(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of names, types, shapes and values; files of others have none."""
    found = hashlib.sha256()
    for name, values in sorted(tensors.items()):
        found.update(f"{name} {values.dtype} {values.shape}\n".encode())
        found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()


def write_directory(directory: str | Path, write) -> None:
    """Lets `write` fill a neighbour of `directory`, then renames it into place."""
    directory = Path(directory).absolute()
    refuse_existing(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(directory) as partial:
        partial.mkdir()
        write(partial)


def refuse_existing(path: str | Path) -> None:
    """An output must not exist yet, but for an empty directory."""
    path = Path(path)
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists():
        raise UserError(f"{path} exists already; choose another output or remove it first.")


def _initial_head(network: NetworkDescription, task: str, key: jax.Array) -> Tensors:
    options, num_classes = network.options, network.tasks[task]
    make = READOUTS[options.readout]
    num_features = head_features(network)
    head = Functional(lambda rngs: make(num_features, num_classes, options=options, rngs=rngs))
    params, statistics = head.init(stream(key, "fresh head", task))
    leaves = flatten(params) | flatten(statistics)
    return {f"heads/{task}/{path}": np.asarray(leaf) for path, leaf in leaves.items()}
