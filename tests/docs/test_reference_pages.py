"""The pages of config fields and command-line options say what the code has, all of it."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from drifa_jax.cli import SUBCOMMANDS
from drifa_jax.config import Config

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("pages", DOCS / "figures" / "reference_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ("configuration.md", "command_line.md"))
def test_a_page_is_what_the_code_says(pages, page):
    written = getattr(pages, page.removesuffix(".md"))()
    assert (DOCS / page).read_text() == written, "run python docs/figures/reference_pages.py"


def test_every_field_of_the_configuration_has_a_meaning(pages):
    silent = [
        f"{group}.{field.name}"
        for group, kind in pages._groups(Config)
        for field in dataclasses.fields(kind)
        if not dataclasses.is_dataclass(pages._type(kind, field.name))
        and not pages.meanings_of(kind).get(field.name)
    ]
    assert not silent


def test_the_page_has_every_field_of_the_resolved_configuration():
    text = (DOCS / "configuration.md").read_text()
    for name in Config().flat():
        assert f"| `{name.rpartition('.')[2]}` |" in text, name


def test_every_option_of_every_command_has_a_meaning(pages):
    import argparse

    silent = []
    for name in SUBCOMMANDS:
        parser = argparse.ArgumentParser(prog=name)
        importlib.import_module(f"drifa_jax.commands.{name}").add_arguments(parser)
        for title, part in pages._parsers(parser):
            silent += [
                f"{title or name} {option}" for option, said in pages.options_of(part) if not said
            ]
    assert not silent


def test_a_comment_above_a_field_and_one_beside_it_are_its_meaning(pages, tmp_path):
    source = (
        "from dataclasses import dataclass\n\n\n@dataclass\nclass Example:\n"
        "    first: int = 0  # one\n    # Two lines\n    # above.\n    second: str = '#'\n"
    )
    (tmp_path / "example_config.py").write_text(source)
    spec = importlib.util.spec_from_file_location("example", tmp_path / "example_config.py")
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["example"] = module
    spec.loader.exec_module(module)
    assert pages.meanings_of(module.Example) == {"first": "one", "second": "Two lines above."}
