"""`python -m drifa_jax.main --config C`: the same as `drifa train --config C`."""

from __future__ import annotations

import sys

from drifa_jax import cli


def main() -> int:
    """Trains and evaluates as the flags say; returns the exit code."""
    return cli.main(["train", *sys.argv[1:]])


# Data workers are spawned and import this module again; they must not train.
if __name__ == "__main__":
    sys.exit(main())
