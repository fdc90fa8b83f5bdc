"""What a report is made of: sections of plain blocks, which the template turns into HTML.

A new section is a function that returns a `Section`; it needs no HTML. All text is escaped by
the template, so that a class called `<b>` shows as it is written.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from drifa_jax.evaluate.intervals import Interval
from drifa_jax.inline_pictures import data_uri
from drifa_jax.report.canvas import Panel


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
      text: what it says.
      detail: in small letters below it.
      bar: (low, value, high) in [0, 1], drawn as a small bar; decoration of what the text says.
      share: in [0, 1], darkens the cell; likewise.
      blank: an answer that the authors still owe.
    """

    text: str
    detail: str = ""
    bar: tuple[float, float, float] | None = None
    share: float | None = None
    blank: bool = False


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str
    kind: str = "heading"


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

    text: str
    kind: str = "prose"


@dataclass(frozen=True)
class Note:
    """A paragraph that must not be overlooked; `alarm` makes it louder."""

    text: str
    alarm: bool = False
    kind: str = "note"


@dataclass(frozen=True)
class Facts:
    """Terms and what they are; `wide` where the texts are long, one to a line."""

    items: Sequence[tuple[str, str]]
    wide: bool = False
    kind: str = "facts"


@dataclass(frozen=True)
class Number:
    """One headline number."""

    label: str
    value: str
    interval: str
    bar: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Numbers:
    """Headline numbers side by side."""

    title: str
    numbers: Sequence[Number]
    kind: str = "numbers"


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row heads it.

    Attributes:
      caption: its name.
      header: of the columns.
      rows: of cells, plain text or `Cell`.
      note: below it.
      wide: text columns, which wrap; otherwise columns of numbers, which do not.
      corner: what rows and columns are, for a confusion matrix.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    note: str = ""
    wide: bool = False
    kind: str = "table"


@dataclass(frozen=True)
class Row:
    """Tables, facts and figures side by side where the page is wide enough."""

    blocks: Sequence[Table | Facts | Panels]
    kind: str = "row"


@dataclass(frozen=True)
class Panels:
    """Figures side by side, as many as the width has room for."""

    panels: Sequence[Panel]
    kind: str = "panels"


@dataclass(frozen=True)
class Picture:
    """A picture of pixels, as `data:` address, with what it shows in words."""

    source: str
    alt: str
    caption: str
    width: int
    height: int


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side."""

    pictures: Sequence[Picture]
    kind: str = "pictures"


@dataclass(frozen=True)
class Case:
    """One record: its pictures, and what is known and said of it.

    Attributes:
      title: in a few words.
      pictures: one below the other.
      facts: terms and what they are.
      note: in small letters at the end.
    """

    title: str
    pictures: Sequence[Picture]
    facts: Sequence[tuple[str, str]]
    note: str = ""


@dataclass(frozen=True)
class Cases:
    """Cases side by side."""

    cases: Sequence[Case]
    kind: str = "cases"


Block = Heading | Prose | Note | Facts | Numbers | Table | Row | Panels | Pictures | Cases


@dataclass(frozen=True)
class Section:
    """A part of a report, with an anchor and a place in the contents."""

    anchor: str
    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)


def picture(pixels: np.ndarray, *, alt: str, caption: str) -> Picture:
    """A picture from `[h, w, 3]`, `[h, w, 1]` or `[h, w]` uint8."""
    from PIL import Image

    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8:
        raise ValueError(f"pixels are {pixels.dtype}; give uint8.")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    packed = io.BytesIO()
    Image.fromarray(pixels).save(packed, "PNG", optimize=True)
    return Picture(data_uri(packed.getvalue()), alt, caption, pixels.shape[1], pixels.shape[0])


def figure(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def interval_text(interval: Interval) -> str:
    """The interval in words, or why there is none."""
    if interval.value is None:
        return f"undefined: {interval.reason}"
    if interval.low is None:
        return f"no interval: {interval.reason}" if interval.reason else ""
    return f"{interval.low:.3f} to {interval.high:.3f}" + (
        " (exact)" if interval.method == "exact" else ""
    )


def interval_cell(interval: Interval, *, bar: bool = True) -> Cell:
    """A figure with its interval below."""
    drawn = None
    if bar and interval.low is not None and 0 <= interval.low <= interval.high <= 1:
        drawn = (interval.low, interval.value, interval.high)
    return Cell(figure(interval.value), interval_text(interval), drawn)
