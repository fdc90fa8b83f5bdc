"""Sections as one HTML file that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from drifa_jax.console import RESEARCH_NOTE, printable
from drifa_jax.report.blocks import Section
from drifa_jax.train.run_directory import write_whole

TEMPLATES = Path(__file__).parent / "templates"


def render(
    title: str, subtitle: str, sections: Sequence[Section], *, synthetic: bool, made: str
) -> str:
    """A whole page.

    Args:
      title, subtitle: at its top.
      sections: in their order; those without blocks are left out.
      synthetic: stamps every screen and every printed page.
      made: when and by what the report was made, for its foot.

    Test: tests/report/test_html.py; tests/report/test_browser.py opens it in a browser.
    """
    from markupsafe import Markup

    page = _template().render(
        title=title,
        subtitle=subtitle,
        sections=[section for section in sections if section.blocks],
        synthetic=synthetic,
        made=made,
        research_note=RESEARCH_NOTE,
        style=Markup((TEMPLATES / "report.css").read_text()),
    )
    # Escaping leaves control characters and changes of direction as they are.
    return printable(page)


def write_report(path: Path, page: str) -> None:
    """Writes a page, whole or not at all."""
    write_whole(path, page)


@cache
def _template():
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Only figures drawn by `report.panels`, whose text is escaped there, enter as they are.
    environment.filters["drawing"] = Markup
    return environment.get_template("report.html")
