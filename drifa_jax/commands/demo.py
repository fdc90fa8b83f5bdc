"""`drifa demo`: the main job on embedded SYNTHETIC phantoms, without a checkout or data."""

from __future__ import annotations

import argparse
from pathlib import Path

from drifa_jax.commands import train

TAKES_OVERRIDES = True
CONFIG = "configs/brain.py:quick"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument(
        "--workdir", type=Path, help="directory of the run (default: runs/brain-quick)"
    )
    parser.epilog = f"The same as `drifa train --config {CONFIG}`: minutes on two cores."


def run(options: argparse.Namespace) -> int:
    """Trains and tests; returns the exit code of `drifa train`."""
    options.config = CONFIG
    return train.run(options)
