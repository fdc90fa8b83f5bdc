"""The `drifa` command: a table of subcommands, each a thin call into a room of the package."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from drifa_jax.errors import UserError

SUBCOMMANDS: dict[str, str] = {
    "train": "train and evaluate a network from a config file",
}
"""Name -> one line of help; `drifa_jax/commands/<name>.py` holds the arguments and the call."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns its exit code. Prints a `UserError` as one message, exit 1."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="drifa",
        description="DRIFA-Net in JAX: fuse medical imaging modalities. Research use only.",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in SUBCOMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        # Only the chosen command is imported, so that `drifa --help` answers at once.
        if arguments and arguments[0] == name:
            command = importlib.import_module(f"drifa_jax.commands.{name}")
            command.add_arguments(subparser)
    options = parser.parse_args(arguments)
    try:
        return command.run(options)
    except UserError as error:
        print(f"drifa {options.command}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
