"""`drifa convert`: weights from Keras, PyTorch or safetensors into a network, and back."""

from __future__ import annotations

import argparse

from drifa_jax.interop.network_files import refuse_existing, save_network, shapes
from drifa_jax.interop.torch_weights import write_torch
from drifa_jax.interop.weight_sources import add_weight_arguments, read_weights

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    add_weight_arguments(parser)
    parser.add_argument(
        "--output",
        required=True,
        help="what to write; it must not exist. A directory for training and prediction, or, "
        "with --to, a file",
    )
    parser.add_argument(
        "--to",
        choices=("network", "torch", "safetensors"),
        default="network",
        help="network: a directory (default); torch or safetensors: the PyTorch twin's state dict",
    )


def run(options: argparse.Namespace) -> int:
    """Reads all, checks all, then writes; on any error nothing is written."""
    refuse_existing(options.output)
    network, params, statistics, notes = read_weights(options)
    if options.to == "network":
        save_network(options.output, network, params, statistics)
    else:
        write_torch(
            options.output, network, params, statistics, safetensors=options.to == "safetensors"
        )
    for note in notes:
        print(f"note: {note}")
    print(f"{len(shapes(network))} tensors written to {options.output}")
    return 0
