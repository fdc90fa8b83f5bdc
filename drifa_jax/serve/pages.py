"""Pages, made on the server; scripts add comfort, and nothing is fetched from anywhere else."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from drifa_jax.console import RESEARCH_NOTE, printable
from drifa_jax.predict.restored import Description

HERE = Path(__file__).parent
STATIC = {"serve.css": "text/css", "serve.js": "text/javascript"}


def render(template: str, description: Description, **values: Any) -> str:
    """A page, or the part of one.

    Args:
      template: name of its file.
      description: of what the network reads and answers.
      values: what the template asks for.
    """
    page = (
        _templates()
        .get_template(template)
        .render(
            research_note=RESEARCH_NOTE,
            synthetic=description.synthetic,
            trained_on=description.data,
            may_lack=description.may_lack_modalities,
            tasks_asked=description.tasks,
            **values,
        )
    )
    # Escaping leaves control characters and changes of direction as they are.
    return printable(page)


@functools.cache
def static(name: str) -> str:
    """A style sheet or script."""
    return (HERE / "static" / name).read_text()


@functools.cache
def _templates():
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
