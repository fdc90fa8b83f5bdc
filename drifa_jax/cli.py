"""The `drifa` command: a table of subcommands, each a thin call into a room of the package."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from drifa_jax.buckets import local_copy, url_of
from drifa_jax.console import say
from drifa_jax.errors import UserError
from drifa_jax.whole_files import UNWRITABLE

SUBCOMMANDS: dict[str, str] = {
    "demo": "train and test a small network on embedded SYNTHETIC phantoms",
    "configs": "list, show and copy the config files that the package brings along",
    "plan": "look at data as they lie, and write the configuration that fits them",
    "run": "verify, train, evaluate, explain, report and export, over all folds",
    "train": "train and evaluate a network from a config file",
    "ablate": "measure what each part of a network is worth by taking it away",
    "benchmark": "compare ways to fuse on published folds of truly paired records",
    "data": "prepare, verify, count and show the data of a configuration",
    "convert": "bring weights from Keras, PyTorch or safetensors, and back",
    "parity": "compare a network with its PyTorch twin, intermediate by intermediate",
    "predict": "diagnose images with a trained network, with uncertainty",
    "serve": "a local page and a JSON endpoint for one case, by a network that stays warm",
    "explain": "where a network looked, and what each modality gave, case by case",
    "evaluate": "metrics with intervals, figures and one HTML report of a run",
    "compare": "paired statistics of two or more runs on the same records",
    "compile": "compile for a slice of TPUs before one is rented: does it fit, how fast can it be",
    "monitor": "watch a deployment over time against the validation records of its run",
    "export": "write a trained network as one portable file",
}
"""Name -> one line of help; `drifa_jax/commands/<name>.py` holds the arguments and the call."""

READS_FROM_BUCKETS = {
    **dict.fromkeys(("predict", "serve", "explain", "monitor", "export"), "paths"),
    **dict.fromkeys(("evaluate", "compare"), "runs"),
}
"""Command -> the argument with runs and files, of which copies are made here."""
KEEPS_IN_BUCKETS = ("train", "demo")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns its exit code. Prints a `UserError` as one message, exit 1."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = _with_parts(arguments)
    except UserError as error:
        say(f"drifa: {error}")
        return 1
    parser = argparse.ArgumentParser(
        prog="drifa",
        description="DRIFA-Net in JAX: fuse medical imaging modalities. Research use only.",
    )
    version = importlib.metadata.version("drifa-jax")
    parser.add_argument("--version", action="version", version=f"drifa_jax {version}")
    parser.add_argument(
        "--parts",
        metavar="FILE.py",
        help="run this Python file first, which registers backbones and other parts of your own",
    )
    command = None
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in SUBCOMMANDS.items():
        subparser = subparsers.add_parser(
            name, help=summary, description=summary, allow_abbrev=False
        )
        # Only the chosen command is imported, so that `drifa --help` answers at once.
        if arguments and arguments[0] == name:
            command = importlib.import_module(f"drifa_jax.commands.{name}")
            command.add_arguments(subparser)
    if getattr(command, "MIXES_FLAGS_AND_PATHS", False):
        # Flags may stand between paths; a parser of subcommands cannot take them apart itself.
        chosen = subparsers.choices[arguments[0]]
        options, unknown = chosen.parse_known_intermixed_args(arguments[1:])
        options.command = arguments[0]
    else:
        options, unknown = parser.parse_known_args(arguments)
    try:
        if getattr(command, "TAKES_OVERRIDES", False):
            options.overrides = parse_overrides(unknown)
        elif unknown:
            raise UserError(
                f"unknown argument {unknown[0]!r}; see `drifa {options.command} --help`."
            )
        _bring_from_buckets(options)
        return command.run(options)
    except BrokenPipeError:
        # Who read the output has left; Python flushes once more at exit and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UserError as error:
        say(f"drifa {options.command}: {error}")
        return error.exit_code
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        say(
            f"drifa {options.command}: {error.filename or 'a file'} cannot be read or written: "
            f"{error.strerror}. What was there is as it was; free some space or choose another "
            "place."
        )
        return 1
    except KeyboardInterrupt:
        print(f"drifa {options.command}: interrupted", file=sys.stderr)
        return 130


def _with_parts(arguments: list[str]) -> list[str]:
    """What is left of the arguments once the file of a leading `--parts` has been run."""
    first, equals, file = arguments[0].partition("=") if arguments else ("", "", "")
    if first != "--parts":
        return arguments
    if not equals:
        file = arguments[1] if len(arguments) > 1 else ""
    if not file:
        raise UserError("--parts needs a Python file that registers parts of your own.")
    from drifa_jax.config_files import run_file

    run_file(file, "--parts")
    return arguments[1 if equals else 2 :]


def _bring_from_buckets(options: argparse.Namespace) -> None:
    """Puts local copies in the place of the runs and files in buckets that a command reads.

    Raises:
      UserError: for what a command cannot take from a bucket, or not write into one.
    """
    for name, value in vars(options).items():
        values = value if isinstance(value, list) else [value]
        urls = [url_of(given) if isinstance(given, str | Path) else None for given in values]
        if not any(urls):
            continue
        if name == "workdir" and options.command in KEEPS_IN_BUCKETS:
            continue
        # The nodes of a cluster would not see a copy on this machine.
        alone = getattr(options, "engine", "local") == "local"
        read = alone and READS_FROM_BUCKETS.get(options.command) == name
        # The last path of an export is what it writes.
        last = urls[-1] if options.command == "export" else None
        if not read or last:
            raise UserError(
                f"{last or next(filter(None, urls))}: `drifa {options.command}` does not go to a "
                "bucket for this; mount the bucket (gcsfuse, mount-s3) and name the folder."
            )
        for position, url in enumerate(urls):
            if url:
                values[position] = type(values[position])(copy := local_copy(url))
                say(f"{url} is copied to {copy}; what is written beside it stays there.")


def parse_overrides(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """`--config.a.b=v` and `--config.a.b v` as pairs `("a.b", "v")`.

    Raises:
      UserError: for anything else.
    """
    pairs, waiting = [], list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name, equals, value = argument.partition("=")
        if not name.startswith("--config.") or len(name) == len("--config."):
            raise UserError(
                f"unknown argument {argument!r}; overrides look like --config.train.seed=1."
            )
        if not equals:
            if not waiting:
                raise UserError(f"{argument} needs a value.")
            value = waiting.pop(0)
        pairs.append((name.removeprefix("--config."), value))
    return pairs


if __name__ == "__main__":
    sys.exit(main())
