"""What is said to a person on a terminal or in a log. Names of data are data, never commands."""

from __future__ import annotations

import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

RESEARCH_NOTE = "Research use only. Not a medical device."

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""How cells begin that a spreadsheet would run."""
OBEYED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What a terminal obeys in a cell: controls but tabs and ends of lines, changes of direction."""


def printable(text: str) -> str:
    """Text without control characters and changes of direction, which a terminal would obey.

    Lines stay lines.

    Test: tests/test_console.py.
    """
    return "".join(
        c
        if c == "\n" or c.isprintable() or unicodedata.category(c) == "Zs"
        else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )


def harmless(cell: Any) -> Any:
    """A cell that neither a spreadsheet nor a terminal obeys.

    What would be a formula gets a quote before it. Control characters and changes of direction
    are replaced; Parquet files beside keep them.
    """
    if not isinstance(cell, str):
        return cell
    cell = OBEYED.sub("\N{REPLACEMENT CHARACTER}", cell)
    if not cell.startswith(FORMULA_STARTS):
        return cell
    try:
        float(cell)
    except ValueError:
        return "'" + cell
    return cell


def say(text: str) -> None:
    """A line for a person; standard output is kept for results."""
    print(printable(text), file=sys.stderr, flush=True)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with the time left on a terminal, a line a tenth, with the time left, elsewhere.

    Yields:
      To be called with the number of things done since the last call.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            job = bar.add_task(printable(what), total=total)
            yield lambda count: bar.advance(job, count)
        return
    done, began = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done
        before, done = done * 10 // max(total, 1), done + count
        if done * 10 // max(total, 1) > before:
            left = (time.monotonic() - began) / done * (total - done)
            say(f"{what}: {done} of {total}" + (f", {_short_time(left)} left" if left >= 1 else ""))

    yield advance


def _short_time(seconds: float) -> str:
    """A length of time in its largest unit, for people."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
