"""Weights in any known format: which flags name them, and how they become a network."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax

from drifa_jax.errors import UserError
from drifa_jax.interop.network_files import assemble, described, load_network
from drifa_jax.models.description import NETWORK_FILE, NetworkDescription, describe_network
from drifa_jax.models.functional import BatchStatistics, Parameters
from drifa_jax.rng import root_key

FORMATS = {
    "keras": "a .keras or .weights.h5 file of the authors' notebooks",
    "torch": "a state dict of the PyTorch twin (.pth)",
    "safetensors": "the same names, or ours, in a .safetensors file",
    "pretrained": "weights of a backbone into every branch of images: a folder of Hugging Face or "
    "timm, a state dict, or package (see docs/backbones.md)",
    "network": "a directory that `drifa convert` wrote",
}


def add_weight_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that name weights and the network that they belong to."""
    listed = "; ".join(f"{name}: {meaning}" for name, meaning in FORMATS.items())
    parser.add_argument("--from", dest="source_format", required=True, choices=FORMATS, help=listed)
    parser.add_argument("--input", required=True, help="the file or directory with the weights")
    parser.add_argument(
        "--config",
        help=f"what the network is: a {NETWORK_FILE}, a directory with one, or a training "
        "config FILE.py[:VARIANT] (needed unless --from network)",
    )
    parser.add_argument(
        "--fresh-head",
        action="append",
        default=[],
        metavar="TASK",
        help="do not take this task's head from the file, but initialise it (repeatable)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of freshly initialised parts")


def describe(config: str, overrides: Sequence[tuple[str, str]] = ()) -> NetworkDescription:
    """The network of `--config`: a JSON description, or a training config with its data."""
    if not config.partition(":")[0].endswith(".py"):
        return described(config)
    from drifa_jax.config_files import load_config
    from drifa_jax.data.dataset import open_dataset

    loaded = load_config(config, overrides)
    records = open_dataset(loaded.data).train
    tasks = {task.name: task.num_classes for task in records.tasks}
    return describe_network(loaded, records.modalities, tasks)


def read_weights(
    options: argparse.Namespace,
) -> tuple[NetworkDescription, Parameters, BatchStatistics, list[str]]:
    """The network that the flags name, its weights, and what to tell the user about them.

    Raises:
      UserError: naming the flag, file or tensor at fault.
    """
    kind, path, fresh = options.source_format, Path(options.input), tuple(options.fresh_head)
    if kind == "network":
        if fresh:
            raise UserError("--fresh-head needs a --config with the new number of classes.")
        _, params, statistics, network = load_network(path)
        return network, params, statistics, []
    if kind != "pretrained" and not path.is_file():
        raise UserError(f"--input: there is no file {str(path)!r}.")
    if not options.config:
        raise UserError(f"--config is needed with --from {kind}: a {NETWORK_FILE} or FILE.py.")
    network = describe(options.config, getattr(options, "overrides", ()))
    unknown = sorted(set(fresh) - set(network.tasks))
    if unknown:
        raise UserError(f"--fresh-head names {unknown}; the tasks are {sorted(network.tasks)}.")
    notes = [
        f"head {task!r} is fresh ({network.tasks[task]} classes); it must be trained"
        for task in fresh
    ]
    key: jax.Array | None = root_key(options.seed) if fresh else None
    if kind == "keras":
        from drifa_jax.interop.keras import read_keras

        tensors = read_keras(path, network, fresh)
    elif kind == "pretrained":
        from drifa_jax.interop.pretrained.networks import filled

        images = [m for m, described in network.modalities.items() if described.kind != "table"]
        network, tensors, notes = filled(network, {m: (options.input, "--input") for m in images})
        key = root_key(options.seed)
        notes.append(
            f"{len(tensors)} tensors of the branches come from {options.input}; attention and "
            "heads are fresh and must be trained"
        )
    else:
        from drifa_jax.interop.torch_weights import read_torch

        tensors = read_torch(path, network, fresh)
        notes.append(f"padding is {network.options.padding!r}, which a file cannot say")
    params, statistics = assemble(network, tensors, key)
    return network, params, statistics, notes
