"""`drifa plan`: looks at data as they lie, and writes the configuration that fits them."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from drifa_jax.config import Config
from drifa_jax.console import progress, say
from drifa_jax.errors import UserError

EPILOG = """\
PATHS are folders, tables or array files, each with the name of its modality if you like:

    drifa plan mri=/data/mri ct=/data/ct
    drifa plan /data/cohort.csv
    drifa plan /data

What the data leave open is asked for by the name of a flag. Writes the config file, and beside it
one HTML page with a contact sheet, counts of classes and sizes, and every reason."""
MIXES_FLAGS_AND_PATHS = True
PAIRINGS = ("paired", "random", "by_task")
ANSWERS = {
    "table": ("FILE", "which table has the labels"),
    "label": ("COLUMN", "which column of the table is the label"),
    "label_table": ("FILE", "which other table has the labels of those images"),
    "group_column": ("COLUMN", "which column names the patient, lesion or case"),
    "group_pattern": ("REGEX", "where the file names hold the patient; its parentheses are the id"),
    "include": ("REGEX", "what the path of an image must contain"),
    "pairing": ("HOW", "paired, random or by_task, see docs/data.md"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("paths", nargs="+", metavar="[NAME=]PATH", help="see below")
    parser.add_argument("--out", type=Path, default=Path("plan.py"), help="default: plan.py")
    for name, (metavar, meaning) in ANSWERS.items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, default="", metavar=metavar, help=meaning)
    parser.add_argument(
        "--hours",
        type=float,
        metavar="H",
        help="that the run may take on this machine (default: 1 on a CPU, 8 elsewhere)",
    )
    parser.add_argument(
        "--no-measure",
        action="store_true",
        help="do not compile and run a training step to learn how large a batch fits and how long "
        "the run takes (half a minute)",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG


def run(options: argparse.Namespace) -> int:
    """Plans, prints and writes; nothing is written where a question is open."""
    _check(options)
    write_plan(options)
    return 0


def write_plan(options: argparse.Namespace) -> Path:
    """Writes the config file and its page; returns the config file."""
    import jax

    from drifa_jax.plan.batch import Room
    from drifa_jax.plan.config_file import config_text, rows, write_config
    from drifa_jax.plan.copies import copies
    from drifa_jax.plan.duration import in_words
    from drifa_jax.plan.found import find_modalities
    from drifa_jax.plan.modality import Answers
    from drifa_jax.plan.page import write_page
    from drifa_jax.plan.plan import make_plan
    from drifa_jax.plan.survey import cache_file, image_headers, looks_grey
    from drifa_jax.train.step_cost import device_memory, step_cost

    answers = Answers(**{name: getattr(options, name) for name in ANSWERS})
    found = find_modalities([_place(text) for text in options.paths], answers, say)
    total = sum(len(modality.images) for modality in found)
    headers = {}
    with progress("reading headers", total) as advance:
        for modality in found:
            if modality.pictures:
                cache = cache_file(modality.root)
                headers[modality.name] = image_headers(
                    modality.root, modality.images, advance, cache
                )
                modality.facts += copies(modality)
    grey = {m.name: looks_grey(m.root, m.images) for m in found if headers.get(m.name)}
    device = jax.default_backend()

    def measure(config: Config, tasks: Mapping[str, int]) -> Room | None:
        if options.no_measure or (available := device_memory()) is None:
            return None
        say("measuring memory and time of a training step (--no-measure leaves it out)")
        return Room(device, available, step_cost(config, tasks))

    plan = make_plan(found, headers, grey, device, answers, measure, options.hours)
    plan.config()  # whatever is out of its range is told now
    write_config(options.out, config_text(plan, command_line(options)))
    page = options.out.with_suffix(".html")
    following = [f"drifa run {options.out}", f"drifa train --config {options.out}"]
    write_page(page, plan, found, headers, following)
    _print(rows(plan))
    for warning in plan.warnings:
        say(f"Note: {warning}.")
    takes = "" if plan.seconds is None else f", which takes up to {in_words(plan.seconds)} here"
    say(f"Written: {options.out}, to be read and edited, and {page}. Next: {following[0]}{takes}")
    return options.out


def command_line(options: argparse.Namespace) -> str:
    """The command that plans the same, as the config file quotes it."""
    return shlex.join(["drifa", "plan", *options.paths, *_answered(options)])


def _check(options: argparse.Namespace) -> None:
    """An error where a flag cannot be meant, before anything is looked at."""
    if options.hours is not None and not options.hours > 0:
        raise UserError(f"--hours is {options.hours}; it must be above 0.")
    if options.pairing not in ("", *PAIRINGS):
        raise UserError(f"--pairing is {options.pairing!r}; it must be {', '.join(PAIRINGS)}.")
    for flag in ("group_pattern", "include"):
        try:
            re.compile(getattr(options, flag))
        except re.error as error:
            called = "--" + flag.replace("_", "-")
            raise UserError(
                f"{called} {getattr(options, flag)}: is no regular expression ({error})."
            ) from error
    if options.out.suffix != ".py":
        raise UserError(f"--out {options.out}: a config file ends in .py.")
    for file in (options.out, options.out.with_suffix(".html")):
        if file.exists():
            raise UserError(f"{file} exists already; move it away or choose another --out.")


def _place(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if equals and name.isidentifier():
        return name, Path(path)
    return "", Path(text)


def _answered(options: argparse.Namespace) -> list[str]:
    return [
        f"--{name.replace('_', '-')}={getattr(options, name)}"
        for name in (*ANSWERS, "hours")
        if getattr(options, name)
    ]


def _print(told: Sequence[tuple[str, str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from drifa_jax.console import printable

    console = Console()
    if not console.is_terminal:
        for row in told:
            print("  ".join(printable(cell) for cell in row))
        return
    table = Table("setting", "value", "reason", show_lines=False)
    for row in told:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)
