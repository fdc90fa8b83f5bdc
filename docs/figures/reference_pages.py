"""The pages of every config field and every command-line option, from the code that has them.

    python docs/figures/reference_pages.py

writes `docs/configuration.md` and `docs/command_line.md`; tests/docs/test_reference_pages.py holds
that they are what the code says.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

from drifa_jax.cli import SUBCOMMANDS
from drifa_jax.config import Config, ModalityConfig

DOCS = Path(__file__).resolve().parents[1]
PAGES = ("configuration.md", "command_line.md")


def configuration() -> str:
    """Every field of the configuration: name, default and meaning, by group."""
    lines = [
        "# Every field of the configuration",
        "",
        "```bash",
        "drifa demo --workdir runs/seven --config.train.seed=7",
        "```",
        "",
        "A config file is Python that starts from `default_config()` and changes fields; the",
        "command line overrides them as `--config.GROUP.FIELD=VALUE`. Unknown names are errors.",
        "A list is written with commas, with or without brackets: `--config.model.fuse_at=2,-1`,",
        "`'[2, -1]'` or `'(2, -1)'`. Text is taken as it is.",
        "Written by `python docs/figures/reference_pages.py` from `drifa_jax/config.py`,",
        "`network_options.py` and `machine_options.py`.",
    ]
    for name, kind in _groups(Config):
        lines += ["", f"## {name}", "", *_introduction(kind), ""]
        lines += ["| field | default | meaning |", "| --- | --- | --- |"]
        meanings = meanings_of(kind)
        for field in dataclasses.fields(kind):
            if not dataclasses.is_dataclass(_type(kind, field.name)):
                row = (f"`{field.name}`", f"`{_default(field)}`", meanings.get(field.name, ""))
                lines.append("| " + " | ".join(_cell(cell) for cell in row) + " |")
    return "\n".join(lines) + "\n"


def command_line() -> str:
    """Every subcommand with its options, as `--help` says them."""
    lines = [
        "# The command line",
        "",
        "```bash",
        "drifa --help",
        "```",
        "",
        "`drifa COMMAND --help` says the same of one command. Commands that take overrides read",
        "`--config.GROUP.FIELD=VALUE` besides ([every field](configuration.md)). `drifa --parts",
        "FILE.py COMMAND` runs that Python file first, which registers parts of your own. Written",
        "by `python docs/figures/reference_pages.py`.",
    ]
    for name, summary in SUBCOMMANDS.items():
        module = importlib.import_module(f"drifa_jax.commands.{name}")
        parser = argparse.ArgumentParser(prog=f"drifa {name}", allow_abbrev=False)
        module.add_arguments(parser)
        overrides = " Takes overrides." if getattr(module, "TAKES_OVERRIDES", False) else ""
        lines += ["", f"## drifa {name}", "", f"{summary[0].upper()}{summary[1:]}.{overrides}"]
        for title, part in _parsers(parser):
            lines += ["", *([f"### {title}", ""] if title else [])]
            lines += ["| option | meaning |", "| --- | --- |"]
            lines += [f"| {_cell(option)} | {_cell(help)} |" for option, help in options_of(part)]
    return "\n".join(lines) + "\n"


def meanings_of(kind: type) -> dict[str, str]:
    """Field -> what comments (on its line, and whole lines above it) or the docstring say of it."""
    source = textwrap.dedent(inspect.getsource(kind))
    lines = source.splitlines()
    # `getdoc` takes the indentation off, which Python itself does from 3.13 on.
    described = inspect.getdoc(kind) or ""
    documented = dict(re.findall(r"^  (\w+): (.+(?:\n    .+)*)", described, re.M))
    found = {}
    for node in ast.parse(source).body[0].body:
        if not isinstance(node, ast.AnnAssign):
            continue
        above, number = [], node.lineno - 2
        while lines[number].lstrip().startswith("#"):
            above.insert(0, lines[number].lstrip("# "))
            number -= 1
        _, hash_, beside = lines[node.end_lineno - 1][node.end_col_offset :].partition("#")
        text = " ".join([*above, *([beside.strip()] if hash_ else [])])
        found[node.target.id] = text or " ".join(documented.get(node.target.id, "").split())
    return found


def options_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """(option as it is typed, help) of each, but for `--help`."""
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        if not action.option_strings:
            typed = action.metavar or action.dest
            typed = typed if isinstance(typed, str) else " ".join(typed)
        else:
            taken = "" if action.nargs == 0 else f" {_metavar(action)}"
            typed = ", ".join(action.option_strings) + taken
        text = (action.help or "").replace("%(default)s", str(action.default))
        yield f"`{typed}`", text


def _parsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield "", parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield f"{parser.prog} {name}", inner


def _metavar(action: argparse.Action) -> str:
    if action.choices:
        return "|".join(map(str, action.choices))
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    return action.metavar or action.dest.upper()


def _groups(kind: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    for field in dataclasses.fields(kind):
        inner = _type(kind, field.name)
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(inner):
            yield name, inner
            if name == "data":
                yield "data.modalities.NAME", ModalityConfig
            yield from _groups(inner, f"{name}.")


def _type(kind: type, name: str) -> object:
    return typing.get_type_hints(kind)[name]


def _introduction(kind: type) -> list[str]:
    return [" ".join((kind.__doc__ or "").split("\n\n")[0].split())]


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default) if field.default != "" else '""'
    made = field.default_factory()
    return "{}" if isinstance(made, Mapping) else repr(made)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Writes the pages."""
    for page in PAGES:
        (DOCS / page).write_text(globals()[page.removesuffix(".md")]())


if __name__ == "__main__":
    main()
