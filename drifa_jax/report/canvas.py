"""Small figures, one idea each, that read at the width of a phone; PNG, SVG, and SVG in a page.

A figure in a page is the same SVG with its colours replaced by the page's, so that it follows
dark mode and print, and with its letters as text. Figures of SYNTHETIC data say so in the
picture, wherever it is copied to.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drifa_jax.console import printable
from drifa_jax.whole_files import written_whole

PAPER, INK, FAINT, GRID = "#fffffe", "#1c2127", "#5b6370", "#dfe3e8"
SERIES = (
    "#2563b8",
    "#b8500f",
    "#1c7c54",
    "#7a3fa8",
    "#b3261e",
    "#0d7380",
    "#7a5b1e",
    "#a8326e",
    "#5f6b12",
    "#515964",
)
"""At least 4.5:1 on white; the page gives each a lighter twin for the dark."""
ALARM = SERIES[4]
WIDTH, HEIGHT = 4.3, 3.4
MOST_POINTS = 250
"""Of a curve; more cannot be seen at this size."""
SYNTHETIC_STAMP = "SYNTHETIC data"

STYLE = {
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "drifa",
}


@dataclass(frozen=True)
class Panel:
    """A figure in a page.

    Attributes:
      name: of its files.
      svg: to be put into the page.
      alt: what it shows, in words, for who cannot see it.
      caption: for everyone.
    """

    name: str
    svg: str
    alt: str
    caption: str


class Canvas:
    """One pair of axes with the house style, to be drawn on and then saved."""

    def __init__(self, *, width: float = WIDTH, height: float = HEIGHT):
        import matplotlib

        # The object interface needs no display and keeps no list of figures.
        from matplotlib.figure import Figure

        with matplotlib.rc_context(STYLE):
            self.figure = Figure(figsize=(width, height))
            self.axes = self.figure.add_axes((0.15, 0.145, 0.81, 0.74))

    def label(self, x: str, y: str) -> None:
        """Names of the axes."""
        self.axes.set_xlabel(x)
        self.axes.set_ylabel(y)

    def unit_square(self) -> None:
        """Axes from 0 to 1, a hair beyond so that lines at the border are seen."""
        self.axes.set(xlim=(-0.015, 1.015), ylim=(-0.015, 1.015))

    def legend(self, **options: Any) -> None:
        """The legend: above the axes, where it hides nothing, or where `options` say."""
        above = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.98), "ncols": 3}
        options = options or above | {"handlelength": 1.4, "columnspacing": 1.2}
        import matplotlib

        with matplotlib.rc_context(STYLE):
            self.axes.legend(**options)

    def save(self, folder: Path, name: str, *, alt: str, caption: str, synthetic: bool) -> Panel:
        """Writes `name.png` and `name.svg`, whole or not at all."""
        import matplotlib

        if synthetic:
            self.figure.text(
                0.99, 0.985, SYNTHETIC_STAMP, ha="right", va="top", fontsize=7.5, color=ALARM
            )
        with matplotlib.rc_context(STYLE):
            plain_text(self.figure)
            png, svg = io.BytesIO(), io.BytesIO()
            self.figure.savefig(png, dpi=160, format="png")
            # Without a date the same figure is the same file.
            self.figure.savefig(svg, format="svg", metadata={"Date": None, "Title": printable(alt)})
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / f"{name}.png", png.getvalue())
        # Labels of axes are made while drawing; no name may leave XML or change its direction.
        text = printable(svg.getvalue().decode())
        _write(folder / f"{name}.svg", text.encode())
        return Panel(name, inline_svg(text, name, alt), alt, caption)


def plain_text(figure: Any) -> None:
    """Has all words of a figure drawn as they are: a class may be called `$x$`."""
    from matplotlib.text import Text
    from matplotlib.ticker import FuncFormatter

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            # Names of ticks are put there while drawing, by a formatter of this kind.
            if isinstance(formatter := axis.get_major_formatter(), FuncFormatter):
                axis.set_major_formatter(lambda *tick, shown=formatter: printable(shown(*tick)))
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_text(printable(text.get_text()))


def inline_svg(svg: str, name: str, alt: str) -> str:
    """An SVG file as an element of a page: its own ids, the page's colours, a name."""
    from markupsafe import escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<title>.*?</title>", "", svg, count=1, flags=re.DOTALL)
    own = re.sub(r"[^a-zA-Z0-9]+", "-", name)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{own}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{own}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{own}-\1)", svg)
    colours = {PAPER: "--paper", INK: "--ink", FAINT: "--faint", GRID: "--grid"}
    colours |= {colour: f"--series-{i}" for i, colour in enumerate(SERIES, start=1)}
    for colour, variable in colours.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", svg)
    viewbox = re.search(r'viewBox="[^"]+"', svg).group(0)
    head = (
        f'<svg {viewbox} role="img" aria-label="{escape(alt)}" xmlns="http://www.w3.org/2000/svg">'
    )
    return head + svg[svg.index(">") + 1 :]


def _write(path: Path, data: bytes) -> None:
    with written_whole(path) as partial:
        partial.write_bytes(data)
