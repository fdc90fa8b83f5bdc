"""`drifa configs`: the config files that the package brings along."""

from __future__ import annotations

import argparse
import ast
import shutil
from pathlib import Path

from drifa_jax.config_files import find_config, presets
from drifa_jax.console import say
from drifa_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument(
        "name", nargs="?", help="a preset, to print it; without one, all are listed"
    )
    parser.add_argument(
        "--copy",
        nargs="?",
        const=Path("configs"),
        type=Path,
        metavar="FOLDER",
        help="write the preset there, to change it (default: configs)",
    )


def run(options: argparse.Namespace) -> int:
    """Lists, prints or copies; returns the exit code."""
    if not options.name:
        if options.copy:
            raise UserError(f"Name what to copy: {', '.join(presets())}.")
        for name, file in presets().items():
            title = ast.get_docstring(ast.parse(file.read_text())).partition("\n")[0]
            print(f"{name:12} {title}")
        say(
            "Train one with `drifa train --config NAME`, copy one with `drifa configs NAME --copy`."
        )
        return 0
    file = find_config(options.name)
    if not options.copy:
        print(file.read_text(), end="")
        return 0
    copy = options.copy / file.name
    if copy.exists():
        raise UserError(f"{copy} exists already; move it away or give another folder.")
    options.copy.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, copy)
    say(f"Wrote {copy}. Train with `drifa train --config {copy}`.")
    return 0
